"""How parameters become runs of vectors: as they lie in memory where they can, else as copies.

A tensor without gaps is a vector as it is. Small tensors, and those with gaps, are copied into one
vector, stepped together and copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from filteropt.execute.flat import Run, run_of
from filteropt.execute.items import Item
from filteropt.execute.overlaps import Taken, strides_of, tied
from filteropt.rounding import held
from filteropt.trees import restore
from filteropt.types import Raw

__all__ = ["Layout"]

SMALL = 2**15
"""Tensors of fewer numbers are copied together, which costs less than a step of each."""
TOGETHER = 2**22
"""Numbers that are copied together at most."""
NOTHING = Raw(torch.empty(0, device="meta"))


class Layout:
    """Items of an elementwise composition, and how they lie in memory.

    That is found once, and holds for as long as parameters and states stay where they are; what is
    gathered is new in every step.

    Args:
        items: the parameters.

    Attributes:
        weights: how many numbers they have.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        items = list(items)
        runs = [run_of(item) for item in items]
        self._items = [
            item._replace(raw=NOTHING, state=run.form)
            for item, run in zip(items, runs, strict=True)
        ]
        self._raws = [item.raw for item in items]
        self._forms = list(map(_form, self._raws))
        self._taken = Taken(x for run in runs for x in (run.p, *run.kept))
        self.weights = sum(run.p.numel() for run in runs)
        self._rest, packs = list[int](), list[dict[int, Run]]()
        overlapping, alike = tied([run.p for run in runs]), dict[object, dict[int, Run]]()
        for i, (item, run) in enumerate(zip(items, runs, strict=True)):
            if i in overlapping or not _regular(item, run):
                self._rest.append(i)
            elif not _gapless(run):
                alike.setdefault(_kind(run), {})[i] = run
            elif run.p.numel() >= SMALL:
                packs.append({i: _vectors(run)})
            else:
                alike.setdefault(_kind(run), {})[i] = _vectors(run)
        packs += [pack for found in alike.values() for pack in _packed(found)]
        self._packs = [_Pack(list(pack), list(pack.values())) for pack in packs]

    @staticmethod
    def of(items: Iterable[Item]) -> Layout:
        """Items as a layout, which they may be."""
        return items if isinstance(items, Layout) else Layout(items)

    def __iter__(self) -> Iterator[Item]:
        """The items, in order, with what was gathered for them in this step."""
        return map(self._item, range(len(self._items)))

    def _item(self, i: int) -> Item:
        item = self._items[i]
        state = restore(item.state, map(held, item.kept))
        return item._replace(raw=self._raws[i], state=state)

    def serves(self, raws: list[Raw]) -> bool:
        """Whether what was gathered for another step lies as it did, in memory of its own.

        Args:
            raws: it, in the order of the items.

        Returns:
            Whether the layout holds for it; else all has to be found anew.
        """
        found = (x for raw in raws for x in raw if isinstance(x, Tensor))
        return list(map(_form, raws)) == self._forms and all(map(self._taken.spares, found))

    def take(self, raws: list[Raw]) -> None:
        """Go on with what was gathered for another step, until :meth:`release`."""
        self._raws = raws

    def release(self) -> None:
        """Let go of what was gathered, whose memory is needed before the next step."""
        self._raws = []

    def each(self, advance: Callable[[Run], None]) -> list[Item]:
        """Advance everything that can be laid out in runs of vectors.

        Args:
            advance: steps a run in place.

        Returns:
            The items that cannot, as they are. Those are empty, of another tensor type, or overlap
            in memory.
        """
        for pack in self._packs:
            pack.advance(self._raws, advance)
        return [self._item(i) for i in self._rest]


class _Pack:
    """Runs that are stepped together: copied into one and back, or a single one as it lies.

    Args:
        places: which of the items they are.
        runs: what belongs to each, as vectors where they lie without gaps.
    """

    def __init__(self, places: list[int], runs: list[Run]) -> None:
        self._places, self._names, self._form = places, runs[0].names, runs[0].form
        self._sizes = [run.p.numel() for run in runs]
        self._flat = [run.p.dim() == 1 for run in runs]
        self._columns = [list(x) for x in zip(*([x.p, *x.kept] for x in runs), strict=True)]
        self._whole = len(runs) == 1 and _gapless(runs[0])

    def advance(self, raws: list[Raw], advance: Callable[[Run], None]) -> None:
        """Advance all of them, given what was gathered for every item."""
        found = [[getattr(raws[i], name) for i in self._places] for name in self._names]
        if self._whole:
            columns = [self._columns[0], *found, *self._columns[1:]]
            advance(self._run([x if x.dim() < 2 else _vector(x) for (x,) in columns]))
            return
        run = self._run(list(map(self._row, (self._columns[0], *found, *self._columns[1:]))))
        advance(run)
        for column, row in zip(self._columns, (run.p, *run.kept), strict=True):
            self._spread(row, column)

    def _run(self, columns: list[Tensor]) -> Run:
        return Run(columns, self._names, self._form)

    def _row(self, column: list[Tensor]) -> Tensor:
        """Tensors as one vector; a number that n weights share counts n times."""
        if any(x.dim() != 1 for x in column):
            parts = zip(column, self._flat, self._sizes, strict=True)
            column = [
                x if x.dim() == 1 else x.expand(n) if not x.dim() else
                _vector(x) if flat else x.reshape(-1)
                for x, flat, n in parts
            ]  # fmt: skip
        return torch.cat(column)

    def _spread(self, row: Tensor, column: list[Tensor]) -> None:
        """Copy a vector back to where it came from."""
        parts = list(row.split_with_sizes(self._sizes))
        if any(x.dim() != 1 for x in column):
            parts = [
                part if x.dim() == 1 else part.view(x.shape) if x.dim() else part[0]
                for x, part in zip(column, parts, strict=True)
            ]
        torch._foreach_copy_(column, parts)


def _packed(runs: dict[int, Run]) -> list[dict[int, Run]]:
    """Runs by their places, in packs of at most so many numbers together, or of a single run."""
    packs: list[dict[int, Run]] = []
    room = 0
    for i, run in runs.items():
        room -= run.p.numel()
        if not packs or room < 0:
            packs.append({})
            room = TOGETHER - run.p.numel()
        packs[-1][i] = run
    return packs


def _form(raw: Raw) -> tuple[object, ...]:
    """How tensors that were gathered lie in their memory."""
    return tuple(
        [(x.dtype, x.shape, x.stride(), x.is_neg()) if type(x) is Tensor else type(x) for x in raw]
    )


def _kind(run: Run) -> object:
    """What runs must share to be copied together."""
    return run.p.device, run.names, *(x.dtype for x in run.columns)


def _vectors(run: Run) -> Run:
    """A run without gaps, in its order in memory, which it shares."""
    if not run.p.dim():
        return run.map(lambda x: x.view(1))
    return run.map(lambda x: _vector(x) if x.dim() else x)


def _vector(x: Tensor) -> Tensor:
    """A tensor without gaps as a vector, in its order in memory."""
    return x.as_strided((x.numel(),), (1,))


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
    strides, size = strides_of(run.p), 1
    for stride, length in sorted(strides):
        if stride != size:
            return False
        size *= length
    memories = {x.untyped_storage().data_ptr() for x in run.columns}
    return len(memories) == len(run.columns) and all(
        not x.is_neg() and (strides_of(x) == strides or not x.dim()) for x in run.columns
    )
