"""Transitions that are the same in every step, which are worked out once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from filteropt.linalg import scalar
from filteropt.trees import tree_map
from filteropt.types import Dynamics, Transition

__all__ = ["transition_at"]

FEW = 64
"""Dynamics of which something is known at a time."""

PLAIN = (bool, int, float, str, type(None))

_MET: dict[int, Dynamics] = {}
"""Dynamics that were met, by their ids, which are their own as long as they are held here."""
_STEADY: dict[int, Transition | None] = {}
"""The transition of those that were met twice, unless it depends on the step."""


def transition_at(dynamics: Dynamics, t: Tensor) -> Transition:
    """The dynamics' transition in double precision; one that never looks at the step is known.

    Args:
        dynamics: whose transition is asked for.
        t: steps taken, this one included.

    Returns:
        Its transition into that step.
    """
    key = id(dynamics)
    known = _STEADY.get(key)
    if known is not None:
        return known
    transition: Transition = tree_map(scalar, dynamics.transition(t))
    if key not in _MET and _is_plain(dynamics):
        if len(_MET) >= FEW:
            _MET.clear()
            _STEADY.clear()
        _MET[key] = dynamics
    elif key in _MET and key not in _STEADY:
        _STEADY[key] = transition if _is_steady(dynamics) else None
    return transition


def _is_plain(dynamics: Any) -> bool:
    """Whether a frozen dataclass of plain values tells all that a transition depends on."""
    settings: Any = getattr(type(dynamics), "__dataclass_params__", None)
    if settings is None or not settings.frozen:
        return False
    return all(isinstance(getattr(dynamics, field.name), PLAIN) for field in fields(dynamics))


def _is_steady(dynamics: Dynamics) -> bool:
    """Whether a transition never looks at the step."""
    try:
        dynamics.transition(torch.ones(()).as_subclass(_Unread))
    except _ReadError:
        return False
    return True


def _double(transition: Transition) -> Transition:
    found: Transition = tree_map(scalar, transition)
    return found


class _Unread(Tensor):
    """A number that nobody looks at."""

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise _ReadError


class _ReadError(Exception):
    """Somebody did."""
