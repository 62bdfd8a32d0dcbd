"""Runs that are stepped together: where they lie if they are one vector, else copied into one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from filteropt.execute.flat import Run
from filteropt.execute.numbers import kind_of
from filteropt.execute.rows import as_row
from filteropt.types import Raw

__all__ = ["Pack", "Whole", "vector"]

KEPT = 2**18
"""Numbers up to which the memory for copies is kept."""

Advance = Callable[[list[Run]], None]


class Whole:
    """A run that lies without gaps.

    Args:
        place: which of the items it is.
        run: what belongs to it, as vectors.
    """

    def __init__(self, place: int, run: Run) -> None:
        self._place, self._names, self._form = place, run.names, run.form
        self._p, self._kept, self._kind = run.p, run.kept, kind_of(run)
        self._size = run.p.numel()

    def run(self, raws: list[Raw]) -> Run:
        """The run, given what was gathered for every item."""
        raw, seen = raws[self._place], []
        for name in self._names:
            x: Tensor = getattr(raw, name)
            seen.append(x if x.dim() == 1 or x.numel() < self._size else vector(x))
        return Run([self._p, *seen, *self._kept], self._names, self._form, self._kind)


class Pack:
    """Runs of one kind.

    Args:
        places: which of the items they are.
        runs: what belongs to each, as vectors where they lie without gaps.
    """

    def __init__(self, places: list[int], runs: list[Run]) -> None:
        self._places, self._names, self._form = places, runs[0].names, runs[0].form
        sizes, flat = [run.p.numel() for run in runs], [run.p.dim() == 1 for run in runs]
        kept = zip(*([x.p, *x.kept] for x in runs), strict=True)
        self._kept = [_Column(list(tensors), sizes, flat) for tensors in kept]
        self._seen = [_Column([], sizes, flat) for _ in self._names]

    def advance(self, raws: list[Raw], advance: Advance) -> None:
        """Advance all of them, given what was gathered for every item."""
        seen = [
            column.take([getattr(raws[i], name) for i in self._places])
            for name, column in zip(self._names, self._seen, strict=True)
        ]
        kept = [column.take() for column in self._kept]
        advance([Run([kept[0], *seen, *kept[1:]], self._names, self._form)])
        for column, row in zip(self._kept, kept, strict=True):
            column.give(row)


class _Column:
    """Tensors as one vector: as they lie, if they are one, else copied there and back.

    A number that n weights share is copied n times.

    Args:
        tensors: those that are the same in every step, if any are.
        sizes: how many weights each belongs to.
        flat: whether each of these lies without gaps, in the order of a vector.
    """

    def __init__(self, tensors: list[Tensor], sizes: list[int], flat: list[bool]) -> None:
        self._tensors, self._sizes, self._flat = tensors, sizes, flat
        vectors = tensors and all(x.dim() == 1 for x in tensors)
        self._row = as_row(tensors) if vectors else None
        self._copy: Tensor | None = None
        self._parts: list[Tensor] = []

    def take(self, tensors: list[Tensor] | None = None) -> Tensor:
        """The vector, of these tensors or of those that are the same in every step."""
        if self._row is not None:
            return self._row
        tensors, total = tensors or self._tensors, sum(self._sizes)
        copy = tensors[0].new_empty(total) if self._copy is None else self._copy
        self._copy = copy if total <= KEPT and not copy.is_inference() else None
        if any(x.dim() != 1 for x in tensors):
            tensors = list(map(_straight, tensors, self._sizes, self._flat))
        return torch.cat(tensors, out=copy)

    def give(self, row: Tensor) -> None:
        """Copy the vector back to where it came from."""
        if row is self._row:
            return
        parts = self._parts or [
            part if x.dim() == 1 else part.view(x.shape) if x.dim() else part[0]
            for x, part in zip(self._tensors, row.split_with_sizes(self._sizes), strict=True)
        ]
        self._parts = parts if row is self._copy else []
        torch._foreach_copy_(self._tensors, parts)


def _straight(x: Tensor, n: int, flat: bool) -> Tensor:
    """A tensor, or a number that n weights share, as a vector in the weights' order."""
    if x.dim() == 1:
        return x
    return x.expand(n) if not x.dim() else vector(x) if flat else x.reshape(-1)


def vector(x: Tensor) -> Tensor:
    """A tensor without gaps as a vector.

    Args:
        x: any such tensor.

    Returns:
        A view of it, in its order in memory.
    """
    return x.as_strided((x.numel(),), (1,))
