"""Nested tuples: mapping over their numbers, and a state's tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from filteropt.types import State

__all__ = ["leaves", "names", "restore", "tree_map"]


def tree_map(function: Callable[[Any], object], tree: Any) -> Any:
    """Apply ``function`` to every leaf of a nested tuple, keeping NamedTuples and ``None``."""
    if tree is None:
        return None
    if isinstance(tree, tuple):
        mapped = [tree_map(function, x) for x in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    return function(tree)


def leaves(state: State) -> list[Tensor]:
    """A state's tensors, in order."""
    found: list[Tensor] = []
    tree_map(found.append, state)
    return found


def names(state: State) -> list[str]:
    """What a state's tensors are called in a ``state_dict``, in order.

    A leaf is called by its NamedTuple's field (``exp_avg``), else by its slot (``cov_0``); the
    means of latents 1, 2, … are called ``mean_1``, ``mean_2``, ….

    Args:
        state: a filter's state for one parameter.

    Returns:
        One name for every tensor of :func:`leaves`.
    """
    belief, like, basis = state
    slots = {"cov": belief.cov, "like": like, "basis": basis}
    means = [f"mean_{i}" for i in range(1, 1 + len(belief.aux))]
    return [*means, *(name for slot, tensors in slots.items() for name in _names(slot, tensors))]


def _names(slot: str, tensors: Any) -> list[str]:
    fields = getattr(tensors, "_fields", None) or [f"{slot}_{i}" for i in range(len(tensors))]
    return [
        name
        for field, value in zip(fields, tensors, strict=True)
        for name in (_names(slot, value) if isinstance(value, tuple) else [field])
    ]


def restore(form: State, tensors: Iterable[Tensor]) -> State:
    """The inverse of :func:`leaves`.

    Args:
        form: any state of the same composition.
        tensors: tensors in the order of :func:`leaves`.

    Returns:
        The state that holds these tensors.
    """
    rest = iter(tensors)
    state: State = tree_map(lambda _: next(rest), form)
    return state
