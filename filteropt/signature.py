"""Signatures: from a preset's arguments to an optimizer's constructor and groups."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from filteropt.hyperparameters import Scheduled, hints_of

__all__ = ["constructor", "native", "plain", "preset_values", "scheduled_names"]


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def preset_values(
    owner: str, preset: Callable[..., Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A preset's hyperparameters with the given values, else its defaults.

    Args:
        owner: who takes them, for the message.
        preset: the preset.
        given: hyperparameters by name; ``lr`` is a gain if the preset does not take it.

    Returns:
        Values by name, and the names of those that the preset takes, which with ``**`` in its
        signature are all.

    Raises:
        TypeError: an unknown hyperparameter, or a missing one that has no default.
    """
    parameters = inspect.signature(preset).parameters.values()
    named = {p.name: p.default for p in parameters if p.kind not in VARIADIC}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for name, value in given.items():
        if not takes_any and name not in {*named, "lr"}:
            raise TypeError(
                f"{owner} has no hyperparameter {name!r} (given {value!r}); "
                f"it takes {', '.join(named)}"
            )
    values = named | dict(given)
    for name, value in values.items():
        if value is inspect.Parameter.empty:
            raise TypeError(f"{owner} needs a value for {name!r}")
    return values, tuple(name for name in values if takes_any or name in named)


def native(value: Any) -> Any:
    """A number of any library as an int or float, which is what a ``state_dict`` may hold."""
    if type(value) in {tuple, list}:
        return type(value)(native(x) for x in value)
    if isinstance(value, bool) or type(value) in {int, float} or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def plain(value: Any) -> Any:
    """A hyperparameter's present value: a one-element tensor as its number."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else native(value)


def scheduled_names(preset: Callable[..., Any]) -> frozenset[str]:
    """Names of the hyperparameters that follow ``lr`` under ``schedule="model"``."""
    return frozenset(
        name
        for name, hint in hints_of(preset).items()
        if any(
            isinstance(m, Scheduled)
            for part in (hint, *getattr(hint, "__args__", ()))
            for m in getattr(part, "__metadata__", ())
        )
    )


def constructor(
    preset: Callable[..., Any], init: Callable[..., None], defaults: Mapping[str, Any]
) -> Callable[..., None]:
    """A constructor with the preset's own arguments, followed by the optimizer's keywords.

    Args:
        preset: the preset.
        init: ``FilterOptimizer.__init__``, whose first arguments are self, params and preset.
        defaults: the optimizer's keywords whose default differs.

    Returns:
        ``__init__(self, params, <the preset's arguments>, *, <the optimizer's keywords>)``, where
        a preset without an ``lr`` gets one first, 1.0: a plain gain.
    """
    common = list(inspect.signature(init).parameters.values())
    types = hints_of(preset, metadata=False)
    own = [
        parameter.replace(annotation=types.get(parameter.name, parameter.annotation))
        for parameter in inspect.signature(preset).parameters.values()
        if parameter.kind not in VARIADIC
    ]
    if all(parameter.name != "lr" for parameter in own):  # a plain gain, so that schedulers work
        gain = inspect.Parameter(
            "lr", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=1.0, annotation=float
        )
        own.insert(0, gain)
    keywords = [
        x.replace(default=defaults.get(x.name, x.default))
        for x in common
        if x.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    signature = inspect.Signature([*common[:2], *own, *keywords])

    @functools.wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        known = {k: v for k, v in kwargs.items() if k in signature.parameters}
        given = {**defaults, **kwargs, **signature.bind(self, *args, **known).arguments}
        del given["self"]
        init(self, given.pop("params"), preset, **given)

    construct.__signature__ = signature  # type: ignore[attr-defined]  # read by inspect.signature
    return construct
