"""How parameters become runs of vectors: as they lie in memory where they can, else as copies.

A tensor without gaps is a vector as it is. Small tensors, and those with gaps, are copied into one
vector, stepped together and copied back.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from filteropt.execute.flat import Run, gathered, run_of
from filteropt.execute.items import Item
from filteropt.execute.overlaps import strides_of, tied
from filteropt.rounding import held
from filteropt.trees import restore
from filteropt.types import Raw, State

__all__ = ["Layout", "Layouts"]

SMALL = 2**15
"""Tensors of fewer numbers are copied together, which costs less than a step of each."""
TOGETHER = 2**22
"""Numbers that are copied together at most."""
FEW = 64
"""Layouts that are kept: one for each group and age, and more where gradients come and go."""


class Layout:
    """Items of an elementwise composition, and how they lie in memory.

    That is found once, and holds in later steps for as long as everything stays where it was.

    Args:
        items: the parameters.

    Attributes:
        weights: how many numbers they have.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        items = list(items)
        runs = [run_of(item) for item in items]
        self._blocks = [item.block for item in items]
        self._raws: list[Raw | None] = [item.raw for item in items]
        self._form: State | None = runs[0].form if runs else None
        self.weights = sum(run.p.numel() for run in runs)
        self._marks = [_Mark(run) for run in runs]
        self._fixed: dict[int, Run] = {}
        self._rest, self._alone = list[int](), list[int]()
        overlapping, alike = tied([run.p for run in runs]), dict[object, list[int]]()
        for i, (item, run) in enumerate(zip(items, runs, strict=True)):
            if i in overlapping or not _regular(item, run):
                self._rest.append(i)
                continue
            gapless = _gapless(run)
            self._fixed[i] = _without(_vectors(run) if gapless else run)
            if gapless and run.p.numel() >= SMALL:
                self._alone.append(i)
            else:
                alike.setdefault(_kind(run), []).append(i)
        self._packs = [pack for places in alike.values() for pack in self._packed(places)]

    @staticmethod
    def of(items: Iterable[Item]) -> Layout:
        """Items as a layout, which they may be."""
        return items if isinstance(items, Layout) else Layout(items)

    def __iter__(self) -> Iterator[Item]:
        """The items, in order."""
        return map(self._item, range(len(self)))

    def __len__(self) -> int:
        """How many items there are."""
        return len(self._blocks)

    def _item(self, i: int) -> Item:
        """An item, with what was gathered for it in this step."""
        kept = self._marks[i].kept
        state = restore(self._marks[i].form, map(held, kept))
        return Item(self._blocks[i], self._raw(i), state, kept)

    def _packed(self, places: Iterable[int]) -> list[list[int]]:
        """Places in lists of at most so many numbers together, or of a single item."""
        packs: list[list[int]] = []
        room = 0
        for i in places:
            numbers = self._fixed[i].p.numel()
            room -= numbers
            if not packs or room < 0:
                packs.append([])
                room = TOGETHER - numbers
            packs[-1].append(i)
        return packs

    def takes(self, form: State) -> bool:
        """Whether states of a form are of the composition that the layout was found for."""
        known, self._form = self._form, form
        return form is known or _types(form) == _types(known)

    def holds(self, i: int, p: Tensor, raw: Raw, kept: list[Tensor]) -> bool:
        """Whether an item lies where it did; if so, it goes on with what was gathered now."""
        self._raws[i] = raw
        return self._marks[i].holds(p, gathered(raw), kept)

    def release(self) -> None:
        """Let go of what was gathered, whose memory is needed before the next step."""
        self._raws = [None] * len(self)

    def _run(self, i: int) -> Run:
        """An item's vectors, with what was gathered for it in this step."""
        fixed, found = self._fixed[i], gathered(self._raw(i))
        flat = fixed.p.dim() == 1
        new = [x if x.dim() == 1 or not flat else _vector(x) for x in found.values()]
        return Run([fixed.p, *new, *fixed.columns[1:]], tuple(found), fixed.form)

    def _raw(self, i: int) -> Raw:
        raw = self._raws[i]
        assert raw is not None, "what was gathered was released"
        return raw

    def each(self, advance: Callable[[Run], None]) -> list[Item]:
        """Advance everything that can be laid out in runs of vectors.

        Args:
            advance: steps a run in place.

        Returns:
            The items that cannot, as they are. Those are empty, of another tensor type, or overlap
            in memory.
        """
        for i in self._alone:
            advance(self._run(i))
        for places in self._packs:
            pack = [self._run(i) for i in places]
            if len(pack) == 1 and pack[0].p.dim() == 1 and _gapless(pack[0]):
                advance(pack[0])
            else:
                _advance_together(pack, advance)
        return [self._item(i) for i in self._rest]


class Layouts(dict[Tensor, Layout]):
    """Layouts by their first parameter, a few of them; a copy or a pickle of them has none."""

    def __setitem__(self, first: Tensor, layout: Layout) -> None:
        """Keep a layout, and forget all others where there are too many."""
        if len(self) >= FEW:
            self.clear()
        super().__setitem__(first, layout)

    def __reduce__(self) -> tuple[type[Layouts], tuple[()]]:
        """What copying and pickling keep."""
        return Layouts, ()


class _Mark:
    """Where a run's tensors lie.

    Args:
        run: as it was when its layout was found.
    """

    def __init__(self, run: Run) -> None:
        self.names, self.kept, self.form = run.names, run.kept, run.form
        self.forms = [_form(x) for x in run.columns[: 1 + len(run.names)]]
        self.pointers = [x.data_ptr() for x in (run.p, *run.kept)]
        self.memories = {x.untyped_storage().data_ptr() for x in (run.p, *run.kept)}

    def holds(self, p: Tensor, found: dict[str, Tensor], kept: list[Tensor]) -> bool:
        """Whether tensors lie where the run's did, those that were gathered in their own memory."""
        return (
            tuple(found) == self.names
            and all(map(operator.is_, kept, self.kept))
            and [p.data_ptr(), *(x.data_ptr() for x in kept)] == self.pointers
            and [_form(p), *map(_form, found.values())] == self.forms
            and all(self._apart(x) for x in found.values())
        )

    def _apart(self, x: Tensor) -> bool:
        """Whether a plain tensor lies in other memory, if in any."""
        plain = type(x) is Tensor and not x.is_neg()
        return plain and (x.untyped_storage().data_ptr() not in self.memories or not x.numel())


def _types(tree: object) -> object:
    """What a nested tuple is made of."""
    return (type(tree), *map(_types, tree)) if isinstance(tree, tuple) else tree is None


def _form(x: Tensor) -> tuple[object, ...]:
    """How a tensor lies in its memory."""
    return x.dtype, x.shape, x.stride()


def _kind(run: Run) -> object:
    """What runs must share to be copied together."""
    return run.p.device, run.names, *(x.dtype for x in run.columns)


def _advance_together(pack: list[Run], advance: Callable[[Run], None]) -> None:
    """Copy a pack into one run of vectors, advance it, and copy what changed back."""
    sizes = [run.p.numel() for run in pack]
    columns = list(zip(*(run.columns for run in pack), strict=True))
    together = pack[0].of([_row(column, sizes) for column in columns])
    advance(together)
    changed = [0, *range(1 + len(together.names), len(columns))]
    for i in changed:
        parts = zip(columns[i], torch.split(together.columns[i], sizes), strict=True)
        found = [part if x.dim() == 1 else part.view(x.shape) if x.dim() else part[0]
                 for x, part in parts]  # fmt: skip
        torch._foreach_copy_(list(columns[i]), found)


def _row(column: tuple[Tensor, ...], sizes: list[int]) -> Tensor:
    """Tensors as one vector; a number that n weights share counts n times."""
    parts = zip(column, sizes, strict=True)
    return torch.cat([x if x.dim() == 1 else x.reshape(-1) if x.dim() else x.expand(n)
                      for x, n in parts])  # fmt: skip


def _without(run: Run) -> Run:
    """A run without what was gathered for it."""
    return Run([run.p, *run.kept], (), run.form)


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
