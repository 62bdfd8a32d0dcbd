"""Runs: weights in a row, with what belongs to them, and a step of them in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from filteropt.engine import Filter, Scalars, step
from filteropt.execute.items import Ahead, Item, add, foresee, store
from filteropt.execute.rows import LINE
from filteropt.rounding import Dither, held
from filteropt.trees import restore, tree_map
from filteropt.types import Raw, Scalar, State

__all__ = ["Run", "advance", "gathered", "pieces", "run_of"]

SHAPED = ("grad", "squares", "products")
"""What may have been gathered that is shaped like the parameter."""


class Run(NamedTuple):
    """Weights that are stepped together, and the tensors that belong to them.

    Attributes:
        columns: the weights, in the parameter's own dtype; what was gathered for them, the gradient
            first; and the state's tensors, of which one without dimensions is shared by all.
        names: what was gathered, by its names.
        form: the form of the state, which holds none of its tensors.
        kind: what tells programs for runs apart, if that is known.
    """

    columns: list[Tensor]
    names: tuple[str, ...]
    form: State
    kind: tuple[object, ...] = ()

    @property
    def p(self) -> Tensor:
        """The weights."""
        return self.columns[0]

    @property
    def grad(self) -> Tensor:
        """Their gradients, in the belief's dtype."""
        return self.columns[1]

    @property
    def kept(self) -> list[Tensor]:
        """The state's tensors."""
        return self.columns[1 + len(self.names) :]

    def of(self, columns: list[Tensor]) -> Run:
        """A run of other tensors, in the same order."""
        return Run(columns, self.names, self.form, self.kind)

    def map(self, function: Callable[[Tensor], Tensor]) -> Run:
        """A run of what a function makes of every tensor."""
        return self.of([function(x) for x in self.columns])


def run_of(item: Item) -> Run:
    """A parameter with what belongs to it, as it is."""
    found, form = gathered(item.raw), tree_map(lambda _: 0, item.state)
    return Run([item.p.detach(), *found.values(), *item.kept], tuple(found), form)


def gathered(raw: Raw) -> dict[str, Tensor]:
    """What was gathered that is shaped like the parameter, by its names."""
    return {name: x for name in SHAPED if (x := getattr(raw, name)) is not None}


def advance(
    filter: Filter, scalars: Scalars, run: Run, gain: Scalar, ahead: Ahead | None = None
) -> None:
    """Step a run in place.

    Args:
        filter: an elementwise composition.
        scalars: the step's numbers.
        run: the weights.
        gain: factor on the displacement.
        ahead: how the mean then moves, where gradients are taken at the prediction.
    """
    mean, old = run.p.to(run.grad.dtype), restore(run.form, map(held, run.kept))
    seen: dict[str, Any] = dict(zip(run.names, run.columns[1:], strict=False))
    disp, state = step(filter, scalars, old, Raw(**seen), mean)
    store(run.kept, state, Dither(mean, run.grad, scalars.t))
    add(run.p, disp, gain)
    if ahead is not None:
        foresee(run.p, state.belief.aux, ahead)


def pieces(run: Run, size: int) -> Iterator[Run]:
    """A run of vectors as shorter ones of about one length, views of it.

    Args:
        run: the weights.
        size: the most weights in a piece.

    Yields:
        The pieces. All but the last have copies of what the weights share, so that each finds it
        as it was.
    """
    n = run.p.numel()
    if n <= size:
        yield run
        return
    last = (n - 1) // size
    even = min(size, -(-n // ((last + 1) * LINE)) * LINE)  # which makes as many pieces
    parts = [x.split(even) if x.dim() else () for x in run.columns]  # type: ignore[no-untyped-call]
    old = [None if x.dim() else x.clone() for x in run.columns]
    for i in range(last + 1):
        yield run.of(
            [
                part[i] if was is None else x if i == last else was.clone()
                for x, part, was in zip(run.columns, parts, old, strict=True)
            ]
        )
