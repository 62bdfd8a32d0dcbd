"""How parameters become runs of vectors: as they lie in memory where they can, else as copies.

A tensor without gaps is a vector as it is. Small tensors, and those with gaps, are copied into one
vector, stepped together and copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from filteropt.execute.flat import Run, run_of
from filteropt.execute.items import Item
from filteropt.execute.overlaps import Taken, form_of, is_dense, strides_of, tied
from filteropt.execute.packs import Pack, Whole, vector
from filteropt.execute.rows import SMALL, as_row
from filteropt.rounding import held
from filteropt.trees import restore
from filteropt.types import Raw

__all__ = ["Layout"]

TOGETHER = 2**22
"""Numbers that are copied together at most."""
NOTHING = Raw(torch.empty(0, device="meta"))


class Layout:
    """Items of an elementwise composition, and how they lie in memory.

    That is found once, and holds for as long as parameters and states stay where they are; what is
    gathered is new in every step.

    Args:
        items: the parameters.
        steps: how many steps each of them took.

    Attributes:
        weights: how many numbers they have.
    """

    def __init__(self, items: Iterable[Item], steps: Sequence[Tensor] = ()) -> None:
        items, row = list(items), as_row(list(steps)) if steps else None
        self._steps = list(steps) if row is None else [row]
        self._ones = [x.new_ones(()) for x in self._steps]
        runs = [run_of(item) for item in items]
        self._items = [
            item._replace(raw=NOTHING, state=run.form)
            for item, run in zip(items, runs, strict=True)
        ]
        self._raws = [item.raw for item in items]
        self._forms = list(map(_form, self._raws))
        self._taken = Taken(x for run in runs for x in (run.p, *run.kept))
        self.weights = sum(run.p.numel() for run in runs)
        self._rest, self._packs = list[int](), list[Pack]()
        self._wholes = list[Whole]()
        overlapping, alike = tied([run.p for run in runs]), dict[object, dict[int, Run]]()
        for i, (item, run) in enumerate(zip(items, runs, strict=True)):
            if i in overlapping or not _regular(item, run):
                self._rest.append(i)
            elif not _gapless(run):
                alike.setdefault(_kind(run), {})[i] = run
            elif run.p.numel() >= SMALL:
                self._wholes.append(Whole(i, _vectors(run)))
            else:
                alike.setdefault(_kind(run), {})[i] = _vectors(run)
        for pack in (pack for found in alike.values() for pack in _packed(found)):
            self._packs.append(Pack(list(pack), list(pack.values())))

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
        found = [x for raw in raws for x in raw if isinstance(x, Tensor)]
        return list(map(_form, raws)) == self._forms and self.spares(found)

    def spares(self, tensors: list[Tensor]) -> bool:
        """Whether tensors share no memory with parameters and states."""
        return all(map(self._taken.spares, tensors))

    def take(self, raws: list[Raw]) -> None:
        """Go on with what was gathered for another step, until :meth:`release`."""
        self._raws = raws

    def release(self) -> None:
        """Let go of what was gathered, whose memory is needed before the next step."""
        self._raws = []

    def count(self) -> None:
        """Count a step of every parameter."""
        torch._foreach_add_(self._steps, self._ones)

    def each(self, advance: Callable[[list[Run]], None]) -> list[Item]:
        """Advance everything that can be laid out in runs of vectors.

        Args:
            advance: steps runs in place.

        Returns:
            The items that cannot, as they are. Those are empty, of another tensor type, or overlap
            in memory.
        """
        if self._wholes:
            advance([whole.run(self._raws) for whole in self._wholes])
        for pack in self._packs:
            pack.advance(self._raws, advance)
        return [self._item(i) for i in self._rest]


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
    return tuple(map(form_of, raw))


def _kind(run: Run) -> object:
    """What runs must share to be copied together."""
    return run.p.device, run.names, *(x.dtype for x in run.columns)


def _vectors(run: Run) -> Run:
    """A run without gaps, in its order in memory, which it shares."""
    if not run.p.dim():
        return run.map(lambda x: x.view(1))
    return run.map(lambda x: vector(x) if x.dim() else x)


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
    strides = strides_of(run.p)
    memories = {x.untyped_storage().data_ptr() for x in run.columns}
    return (
        is_dense(run.p)
        and len(memories) == len(run.columns)
        and all(not x.is_neg() and (strides_of(x) == strides or not x.dim()) for x in run.columns)
    )
