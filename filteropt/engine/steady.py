"""Dynamics that do not look at the step: their transition is worked out once."""

from __future__ import annotations

from typing import Any, NoReturn

from filteropt.linalg import scalar
from filteropt.trees import tree_map
from filteropt.types import Dynamics, Transition

__all__ = ["steady"]


class _Unseen:
    """A number that may be handed on, but not be looked at."""

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("this number is not known")

    # All that an object would answer else.
    __eq__ = __ne__ = __bool__ = __hash__ = __str__ = __repr__ = __format__ = _refuse
    __class__ = property(_refuse)  # which isinstance asks for


def steady(dynamics: Dynamics) -> Transition | None:
    """The transition of every step, if dynamics do not look at the step.

    Args:
        dynamics: the model.

    Returns:
        Its numbers as 0-d float64 tensors; ``None`` where the step matters, or where something
        else might change: the model is no frozen dataclass of numbers and words.

    Example:
        >>> from filteropt.models import FixedNoise, ForgetToPrior
        >>> float(steady(FixedNoise(lr=0.5)).Q[0])
        0.25
        >>> steady(ForgetToPrior()) is None
        True
    """
    frozen = getattr(vars(type(dynamics)).get("__dataclass_params__"), "frozen", False)
    held = getattr(dynamics, "__dict__", None)  # which those with slots have not
    if not frozen or held is None or not all(map(_lasts, held.values())):
        return None
    unseen: Any = _Unseen()
    try:
        found: Transition = tree_map(scalar, dynamics.transition(unseen))
    except Exception:  # whatever a model may raise that looks at what is no number
        return None
    return found


def _lasts(value: object) -> bool:
    """Whether a value can never be another one."""
    if isinstance(value, tuple):
        return all(map(_lasts, value))
    return value is None or isinstance(value, float | int | str)
