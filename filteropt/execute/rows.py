"""States side by side in memory, so that one look and one pass serve many small tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from filteropt.execute.overlaps import is_dense

__all__ = ["SMALL", "as_row", "numbers_in", "side_by_side"]

SMALL = 2**15
"""Tensors of fewer numbers are stepped together, which costs less than a step of each."""


def side_by_side(states: list[dict[str, Any]]) -> None:
    """Move small tensors of new states into one vector for each name, of which they are views.

    Args:
        states: tensors by name, in the order in which they will be stepped.
    """
    alike: dict[object, list[tuple[dict[str, Any], str]]] = {}
    for state in states:
        for name, x in state.items():
            if type(x) is Tensor and 0 < x.numel() < SMALL and is_dense(x):
                alike.setdefault((name, x.dtype, x.device), []).append((state, name))
    for found in alike.values():
        tensors = [state[name] for state, name in found]
        sizes = [x.numel() for x in tensors]
        parts = tensors[0].new_empty(sum(sizes)).split_with_sizes(sizes)
        for (state, name), x, part in zip(found, tensors, parts, strict=True):
            place = part.as_strided(x.shape, x.stride(), part.storage_offset())
            state[name] = place.copy_(x)


def as_row(tensors: list[Tensor]) -> Tensor | None:
    """Tensors as one vector, if they lie one after another in one piece of memory.

    Args:
        tensors: vectors, or numbers.

    Returns:
        A view of all of them; ``None`` where there is none.
    """
    first = tensors[0]
    memory, place = first.untyped_storage().data_ptr(), first.data_ptr()
    for x in tensors:
        alike = x.dtype is first.dtype and x.dim() < 2 and x.is_contiguous()
        if not alike or x.data_ptr() != place or x.untyped_storage().data_ptr() != memory:
            return None
        place += x.nbytes
    return first.as_strided((sum(x.numel() for x in tensors),), (1,))


def numbers_in(tensors: list[Tensor], row: Tensor | None) -> list[float]:
    """What numbers hold.

    Args:
        tensors: the numbers.
        row: the same as one vector, if there is one.

    Returns:
        Floats.
    """
    found: list[float] = (torch.stack(tensors) if row is None else row).tolist()
    return found
