"""Signatures: from a preset's arguments to an optimizer's constructor and groups."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from torch import Tensor

from filteropt.hyperparameters import Scheduled, hints_of

__all__ = ["constructor", "plain", "preset_values", "scheduled_names"]


def preset_values(
    owner: str, preset: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """A preset's hyperparameters with the given values, else its defaults.

    Args:
        owner: who takes them, for the message.
        preset: the preset.
        given: hyperparameters by name.

    Returns:
        Every hyperparameter of the signature; with ``**`` in it, also every other one given.

    Raises:
        TypeError: an unknown hyperparameter, or a missing one that has no default.
    """
    parameters = inspect.signature(preset).parameters
    named = {n: p for n, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    if len(named) == len(parameters):
        for name, value in given.items():
            if name not in named:
                raise TypeError(
                    f"{owner} has no hyperparameter {name!r} (given {value!r}); "
                    f"it takes {', '.join(named)}"
                )
    values = {n: p.default for n, p in named.items()} | dict(given)
    for name, value in values.items():
        if value is inspect.Parameter.empty:
            raise TypeError(f"{owner} needs a value for {name!r}")
    return values


def plain(value: Any) -> Any:
    """A hyperparameter as a plain value: a one-element tensor as its number."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def scheduled_names(preset: Callable[..., Any]) -> frozenset[str]:
    """Names of the hyperparameters that follow ``lr`` under ``schedule="model"``."""
    return frozenset(
        name
        for name, hint in hints_of(preset).items()
        if any(isinstance(m, Scheduled) for m in getattr(hint, "__metadata__", ()))
    )


def constructor(preset: Callable[..., Any], init: Callable[..., None]) -> Callable[..., None]:
    """A constructor with the preset's own arguments, followed by the optimizer's keywords.

    Args:
        preset: the preset.
        init: ``FilterOptimizer.__init__``, whose first arguments are self, params and preset.

    Returns:
        ``__init__(self, params, <the preset's arguments>, *, <the optimizer's keywords>)``.
    """
    common = list(inspect.signature(init).parameters.values())
    types = get_type_hints(preset)
    own = [
        parameter.replace(annotation=types.get(parameter.name, parameter.annotation))
        for parameter in inspect.signature(preset).parameters.values()
    ]
    keywords = [x for x in common if x.kind is inspect.Parameter.KEYWORD_ONLY]
    signature = inspect.Signature([*common[:2], *own, *keywords])

    @functools.wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        unknown = {k: v for k, v in kwargs.items() if k not in signature.parameters}
        preset_values(type(self).__name__, preset, unknown)
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        del given["self"]
        init(self, given.pop("params"), preset, **given)

    construct.__signature__ = signature  # type: ignore[attr-defined]  # read by inspect.signature
    return construct
