"""Where tensors lie in memory, and which of them overlap there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Taken", "form_of", "is_dense", "strides_of", "tied"]


class Taken:
    """The memory of some tensors.

    Args:
        tensors: any tensors.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        spans = sorted(_reach(x) for x in tensors if x.numel())
        self._starts, self._ends = [span[0] for span in spans], list[int]()
        for _, end in spans:
            self._ends.append(max(end, self._ends[-1] if self._ends else 0))

    def spares(self, x: Tensor) -> bool:
        """Whether a tensor lies in other memory, if in any."""
        if not x.numel():
            return True
        start, end = (x.data_ptr(), x.data_ptr() + x.nbytes) if x.is_contiguous() else _reach(x)
        i = bisect_right(self._ends, start)
        return i == len(self._ends) or end <= self._starts[i]


def form_of(x: object) -> object:
    """How a plain tensor lies in its memory.

    Args:
        x: anything.

    Returns:
        The same for all tensors that lie alike; the type of what is not a plain tensor.
    """
    if (type(x) is Tensor or type(x) is nn.Parameter) and x.layout is torch.strided:
        return x.dtype, x.shape, x.stride(), x.is_neg()
    return type(x)


def strides_of(x: Tensor) -> list[tuple[int, int]]:
    """Stride and length of every dimension that has any.

    Args:
        x: any tensor.

    Returns:
        A pair for every dimension of more or less than one entry, in order.
    """
    return [(int(s), int(n)) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1]


def is_dense(x: Tensor) -> bool:
    """Whether a tensor fills a piece of memory, in whichever order.

    Args:
        x: any tensor.

    Returns:
        Whether it has no gaps, and no two entries are one number.
    """
    size = 1
    for stride, length in sorted(strides_of(x)):
        if stride != size:
            return False
        size *= length
    return True


def tied(tensors: list[Tensor]) -> set[int]:
    """Which tensors overlap in memory.

    Args:
        tensors: any tensors.

    Returns:
        The places of those that overlap with themselves or with another one.
    """
    places: dict[int, list[int]] = {}
    for i, x in enumerate(tensors):
        if x.numel():
            places.setdefault(x.untyped_storage().data_ptr(), []).append(i)
    found = {i for i, x in enumerate(tensors) if not x.is_contiguous() and _overlaps(x)}
    for shared in places.values():
        last, holder = 0, -1
        for start, end, i in sorted((*_span(tensors[i]), i) for i in shared[len(shared) == 1 :]):
            if start < last:
                found |= {i, holder}
            if end > last:
                last, holder = end, i
    return found


def _overlaps(x: Tensor) -> bool:
    """Whether two entries of a tensor may be one number in memory."""
    reach = 0
    for stride, length in sorted(strides_of(x)):
        if stride <= reach:
            return True
        reach += stride * (length - 1)
    return False


def _reach(x: Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends in the machine's memory."""
    first, last = _span(x)
    return x.data_ptr(), x.data_ptr() + last - first


def _span(x: Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends in its memory, in bytes."""
    first = int(x.storage_offset())
    last = first + sum(stride * (length - 1) for stride, length in strides_of(x))
    return first * x.element_size(), (last + 1) * x.element_size()
