"""How parameters become runs of vectors: as they lie in memory where they can, else as copies.

A tensor without gaps is a vector as it is. Small tensors, and those with gaps, are copied into one
vector, stepped together and copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from filteropt.execute.flat import Run, run_of
from filteropt.execute.items import Item

__all__ = ["each_run", "tied"]

SMALL = 2**15
"""Tensors of fewer numbers are copied together, which costs less than a step of each."""
TOGETHER = 2**22
"""Numbers that are copied together at most."""


def each_run(items: Iterable[Item], advance: Callable[[Run], None]) -> list[Item]:
    """Advance everything that can be laid out in runs of vectors.

    Args:
        items: parameters of an elementwise composition.
        advance: steps a run in place.

    Returns:
        The items that cannot, as they are. Those are empty, of another tensor type, or overlap in
        memory.
    """
    items, small, rest = list(items), dict[object, list[Run]](), []
    overlapping = tied([item.p for item in items])
    for i, item in enumerate(items):
        run = run_of(item)
        if i in overlapping or not _regular(item, run):
            rest.append(item)
        elif run.p.numel() >= SMALL and _gapless(run):
            advance(_vectors(run))
        else:
            small.setdefault(_kind(run), []).append(run)
    for pack in (pack for alike in small.values() for pack in _packs(alike)):
        if len(pack) == 1 and _gapless(pack[0]):
            advance(_vectors(pack[0]))
        else:
            _advance_together(pack, advance)
    return rest


def _kind(run: Run) -> object:
    """What runs must share to be copied together."""
    return run.p.device, run.names, *(x.dtype for x in run.columns)


def _packs(runs: list[Run]) -> list[list[Run]]:
    """Runs in lists of at most so many numbers together, or of a single run."""
    packs: list[list[Run]] = []
    room = 0
    for run in runs:
        room -= run.p.numel()
        if not packs or room < 0:
            packs.append([])
            room = TOGETHER - run.p.numel()
        packs[-1].append(run)
    return packs


def _advance_together(pack: list[Run], advance: Callable[[Run], None]) -> None:
    """Copy a pack into one run of vectors, advance it, and copy what changed back."""
    sizes = [run.p.numel() for run in pack]
    columns = list(zip(*(run.columns for run in pack), strict=True))
    together = pack[0].of([_row(column, sizes) for column in columns])
    advance(together)
    changed = [0, *range(1 + len(together.names), len(columns))]
    for i in changed:
        parts = zip(columns[i], torch.split(together.columns[i], sizes), strict=True)
        found = [part.view(x.shape) if x.dim() else part[0] for x, part in parts]
        torch._foreach_copy_(list(columns[i]), found)


def _row(column: tuple[Tensor, ...], sizes: list[int]) -> Tensor:
    """Tensors as one vector; a number that n weights share counts n times."""
    parts = zip(column, sizes, strict=True)
    return torch.cat([x.reshape(-1) if x.dim() else x.expand(n) for x, n in parts])


def _vectors(run: Run) -> Run:
    """A run without gaps, in its order in memory, which it shares."""
    if not run.p.dim():
        return run.map(lambda x: x.view(1))
    return run.map(lambda x: x.as_strided((x.numel(),), (1,)) if x.dim() else x)


def _regular(item: Item, run: Run) -> bool:
    """Whether a run is all that there is, in plain tensors of the parameter's shape."""
    p, raw, bias = run.p, item.raw, item.block.bias
    if bias is not None or raw.rows is not None or raw.layer is not None or not p.numel():
        return False
    if not all(type(x) is Tensor for x in run.columns):
        return False
    return all(x.shape == p.shape or not x.dim() for x in run.columns) and run.grad.dim() == p.dim()


def _gapless(run: Run) -> bool:
    """Whether a run's tensors lie without gaps, in one order, each in memory of its own."""
    strides, size = _strides(run.p), 1
    for stride, length in sorted(strides):
        if stride != size:
            return False
        size *= length
    memories = {x.untyped_storage().data_ptr() for x in run.columns}
    return len(memories) == len(run.columns) and all(
        not x.is_neg() and (_strides(x) == strides or not x.dim()) for x in run.columns
    )


def _strides(x: Tensor) -> list[tuple[int, int]]:
    """Stride and length of every dimension that has any."""
    return [(int(s), int(n)) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1]


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
    for stride, length in sorted(_strides(x)):
        if stride <= reach:
            return True
        reach += stride * (length - 1)
    return False


def _span(x: Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends in its memory, in bytes."""
    first = int(x.storage_offset())
    last = first + sum(stride * (length - 1) for stride, length in _strides(x))
    return first * x.element_size(), (last + 1) * x.element_size()
