"""Hyperparameters: what a preset's annotations allow, and errors that say so.

A preset's signature is the one place that knows its hyperparameters: names, defaults, kinds and
ranges. ``lr: LearningRate = 1e-3`` reads as "a number in [0, inf)"; the checks, the messages and
the constructors of the named optimizers are all made from it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from torch import Tensor

__all__ = ["Interval", "Scheduled", "check_fields", "check_values", "checked"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Interval:
    """A range of allowed numbers, written as in mathematics.

    Args:
        text: two bounds in round (open) or square (closed) brackets, such as ``"[0, inf)"``.

    Example:
        >>> 0.0 in Interval("[0, 1)"), 1.0 in Interval("[0, 1)")
        (True, False)
    """

    text: str

    def __contains__(self, x: float) -> bool:
        """Whether ``x`` lies in the range; NaN never does."""
        low, high = (float(bound) for bound in self.text[1:-1].split(","))
        above = x >= low if self.text[0] == "[" else x > low
        below = x <= high if self.text[-1] == "]" else x < high
        return above and below


class Scheduled:
    """Marks a learning rate that follows ``lr`` under ``schedule="model"``."""


Nonnegative = Annotated[float, Interval("[0, inf)")]
Positive = Annotated[float, Interval("(0, inf)")]
LearningRate = Annotated[float, Interval("[0, inf)")]
ScheduledRate = Annotated[float, Interval("(0, inf)"), Scheduled()]
ScheduledNonnegative = Annotated[float, Interval("[0, inf)"), Scheduled()]
ScheduledRateOrInf = Annotated[float, Interval("(0, inf]"), Scheduled()]
PositiveFraction = Annotated[float, Interval("(0, 1]")]
Momentum = Annotated[float, Interval("[0, 1)")]
Decay = Annotated[float, Interval("(0, 1)")]
Count = Annotated[int, Interval("[1, inf)")]
Momenta = Annotated[tuple[float, float], Interval("[0, 1)")]


def check_values(owner: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Check every value against its annotation.

    Args:
        owner: who takes these hyperparameters, for the message.
        values: hyperparameters by name.
        hints: annotations by name; a value without one may be anything but NaN.

    Raises:
        TypeError: a value of the wrong kind.
        ValueError: a value outside its range.
    """
    for name, value in values.items():
        _check(owner, name, value, hints.get(name, Any))


def _check(owner: str, name: str, value: object, hint: Any) -> None:
    base, interval = _strip(hint)
    if get_origin(base) in {Union, UnionType}:
        if value is None and type(None) in get_args(base):
            return
        base, inner = _strip(next(a for a in get_args(base) if a is not type(None)))
        interval = interval or inner
    origin = get_origin(base)
    if origin is Literal:
        if value not in get_args(base):
            allowed = " or ".join(repr(x) for x in get_args(base))
            raise ValueError(f"{owner}: {name}={value!r} is not allowed; use {allowed}")
    elif origin is tuple:
        size = len(get_args(base))
        if not isinstance(value, (tuple, list)):
            raise TypeError(
                f"{owner}: {name}={value!r} must be {size} numbers{_within(interval)}, "
                f"not {type(value).__name__}"
            )
        if len(value) != size:
            raise ValueError(f"{owner}: {name}={value!r} must be {size} numbers{_within(interval)}")
        for i, item in enumerate(value):
            _check_number(owner, f"{name}[{i}]", item, interval)
    elif base is float:
        _check_number(owner, name, value, interval)
    elif base is int:
        if not isinstance(value, Integral):
            raise TypeError(f"{owner}: {name}={value!r} must be a whole number{_within(interval)}")
        _check_number(owner, name, value, interval)
    elif base is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{owner}: {name}={value!r} must be True or False")
    elif isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{owner}: {name}=nan is not a number")


def _check_number(owner: str, name: str, value: object, interval: Interval | None) -> None:
    if isinstance(value, Tensor):  # a tensor's value is read only when it is given, never in a step
        if value.numel() != 1 or not value.dtype.is_floating_point:
            raise TypeError(
                f"{owner}: {name}={value!r} must be a number{_within(interval)} or a "
                f"floating-point tensor with one element"
            )
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{owner}: {name}={value!r} must be a number{_within(interval)}, "
            f"not {type(value).__name__}"
        )
    if (interval is not None and float(value) not in interval) or math.isnan(value):
        raise ValueError(f"{owner}: {name}={value!r} must be a number{_within(interval)}")


def _within(interval: Interval | None) -> str:
    return "" if interval is None else f" in {interval.text}"


def _strip(hint: Any) -> tuple[Any, Interval | None]:
    """An annotation without its metadata, and the interval found there."""
    if get_origin(hint) is not Annotated:
        return hint, None
    base, *metadata = get_args(hint)
    return base, next((m for m in metadata if isinstance(m, Interval)), None)


def hints_of(owner: Any, *, metadata: bool = True) -> dict[str, Any]:
    """The annotations of a function's arguments or a class' fields.

    Args:
        owner: a function, a class, or an object that can be called.
        metadata: keep ranges, else give the types alone.

    Returns:
        Annotations by name; none where there are none.
    """
    while isinstance(owner, functools.partial):
        owner = owner.func
    if not (inspect.isroutine(owner) or inspect.isclass(owner)):
        owner = type(owner).__call__
    return _hints(owner, metadata)


@functools.lru_cache(maxsize=256)
def _hints(owner: Hashable, metadata: bool) -> dict[str, Any]:
    try:
        hints = get_type_hints(owner, include_extras=metadata)
    except (TypeError, NameError):  # unannotated, or names that exist for type checkers only
        return {}
    hints.pop("return", None)
    return hints


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a preset: its arguments are checked against their annotations.

    Args:
        function: the preset, a function of annotated hyperparameters.

    Returns:
        The same function, which raises ``TypeError`` or ``ValueError`` for a bad argument.

    Example:
        >>> @checked
        ... def plain(lr: LearningRate = 0.1) -> float: return lr
        >>> plain(lr=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: plain: lr=-1.0 must be a number in [0, inf)
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        check_values(function.__name__, bound.arguments, hints_of(function))
        return function(*args, **kwargs)

    return call


def check_fields(part: Any) -> None:
    """Check a part's dataclass fields against their annotations (call in ``__post_init__``)."""
    check_values(type(part).__name__, vars(part), hints_of(part.__class__))
