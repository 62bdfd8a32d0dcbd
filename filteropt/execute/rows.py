"""States side by side in memory: small ones for one look at all of them, others in large pages."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from filteropt.execute.overlaps import is_dense

__all__ = ["LINE", "SMALL", "as_row", "numbers_in", "side_by_side"]

SMALL = 2**15
"""Tensors of fewer numbers are stepped together, which costs less than a step of each."""
LINE = 64
"""Numbers, of a byte or more, that fill whole lines of the cache."""
PAGE = 2**21
"""Bytes of a large page of memory."""


def side_by_side(states: list[dict[str, Any]]) -> None:
    """Move tensors of new states into one vector for each name, of which they are views.

    Small ones follow each other without gaps. Large ones have vectors of their own on a CPU, in
    large pages where the system has them, and stay where they are on other devices.

    Args:
        states: tensors by name, in the order in which they will be stepped.
    """
    small: dict[object, list[tuple[dict[str, Any], str]]] = {}
    large: dict[object, list[tuple[dict[str, Any], str]]] = {}
    for state in states:
        for name, x in state.items():
            if type(x) is Tensor and x.numel() and is_dense(x):
                if x.numel() < SMALL:
                    small.setdefault((name, x.dtype, x.device), []).append((state, name))
                elif x.device.type == "cpu":
                    large.setdefault((name, x.dtype), []).append((state, name))
    for found in small.values():
        sizes = [state[name].numel() for state, name in found]
        _move(found, _first(found).new_empty(sum(sizes)).split_with_sizes(sizes))
    for found in large.values():
        sizes = [-(-state[name].numel() // LINE) * LINE for state, name in found]
        _move(found, _in_large_pages(_first(found).new_empty(sum(sizes))).split_with_sizes(sizes))


def _first(found: list[tuple[dict[str, Any], str]]) -> Tensor:
    state, name = found[0]
    first: Tensor = state[name]
    return first


def _move(found: list[tuple[dict[str, Any], str]], places: Iterable[Tensor]) -> None:
    for (state, name), place in zip(found, places, strict=True):
        old: Tensor = state[name]
        state[name] = place.as_strided(old.shape, old.stride(), place.storage_offset()).copy_(old)
        place[old.numel() :].zero_()  # so that equal states are saved as equal files


def _in_large_pages(x: Tensor) -> Tensor:
    """A vector that nobody wrote to yet, for which Linux is asked to use large pages."""
    # A step runs through several vectors at once, and a processor knows few pages by heart.
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # where the system has them
    first, end = -(-x.data_ptr() // PAGE) * PAGE, (x.data_ptr() + x.nbytes) // PAGE * PAGE
    if advice is not None and first < end:
        ask = ctypes.CDLL(None).madvise
        ask.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        ask(first, end - first, advice)  # which may be refused, and changes no number
    return x


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
