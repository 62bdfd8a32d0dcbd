"""What a group's step finds again: parameters and beliefs that lie where they lay in the last one.

A step looks at every parameter: its options, its name, its tensors, how they lie in memory. That is
kept, with what tells whether it still holds; a step that finds all as it was reads gradients alone.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from filteropt.blocks import blocks_of
from filteropt.execute.choice import is_elementwise
from filteropt.execute.layout import Layout
from filteropt.execute.overlaps import form_of
from filteropt.execute.plan import Batch
from filteropt.execute.rows import as_row, numbers_in
from filteropt.measure import NOTHING, PLAIN, Reading
from filteropt.recipe import Bound
from filteropt.types import Raw

__all__ = ["Standing", "Standings"]

Group = dict[str, Any]
States = Mapping[Tensor, dict[str, Any]]

FEW = 1024
"""Groups that are kept: one for each, and more where gradients come and go."""


class Standing:
    """A group after a step, and where all that belongs to it lies.

    Args:
        group: its options.
        bound: its composition.
        readings: its parameters that have a gradient.
        batches: those of one age together.
        layouts: how each batch lies in memory.
        states: every parameter's tensors by name.

    Attributes:
        group: the options.
        subjects: how to call the parameters, and what is filtered together.
        weights: the same parameters.
    """

    def __init__(
        self,
        group: Group,
        bound: Bound,
        readings: list[Reading],
        batches: list[Batch],
        layouts: list[Layout],
        states: States,
    ) -> None:
        self.subjects = [(r.name, r.block) for r in readings]
        self._bound, self._layouts = bound, layouts
        self.group, self._linearize_at = group, group["linearize_at"]
        self._params = list(group["params"])
        self._forms = [(p.shape, p.stride()) for p in self._params]
        self._live = [p.grad is not None for p in self._params]
        self.weights = [r.p for r in readings]
        self._plain = all(r.raw.grad is r.p.grad and r.raw[1:] == NOTHING for r in readings)
        self._slopes, self._spared = [form_of(r.p.grad) for r in readings], list[int]()
        self._members = [[id(r.p) for r in batch.readings] for batch in batches]
        self._states = [states[r.p] for r in readings]
        self._names = (*bound.names(readings[0].block), "step")
        self._kept = [x for state in self._states for x in state.values()]
        self._tensors = [x for x in self._kept if isinstance(x, Tensor)]
        self._pointers = [x.data_ptr() for x in (*self._params, *self._tensors)]
        self._steps, self._aside = (
            [state[name] for state in self._states if name in state]
            for name in ("step", "evaluating")
        )
        self._step_row = as_row(self._steps)
        self._aside_row = as_row(self._aside) if self._aside else None

    def holds(self, group: Group, bound: Bound, states: States) -> bool:
        """Whether everything is there, and lies where it did.

        Args:
            group: the options, now.
            bound: the composition, now.
            states: every parameter's tensors by name, now.

        Returns:
            Whether a step may go by what is known.
        """
        params = group["params"]
        return (
            group is self.group
            and len(params) == len(self._params)
            and all(map(operator.is_, params, self._params))
            and [p.grad is not None for p in params] == self._live
            and group["linearize_at"] == self._linearize_at
            and self._there(states)
            and [x.data_ptr() for x in (*params, *self._tensors)] == self._pointers
            and [(p.shape, p.stride()) for p in params] == self._forms
            and self._serves(bound)
            and not (self._aside and any(numbers_in(self._aside, self._aside_row)))
        )

    def _there(self, states: States) -> bool:
        """Whether the states are those that are known, with just the tensors that are."""
        now = list(map(states.get, self.weights))
        if not all(map(operator.is_, now, self._states)):
            return False
        kept = [x for state in self._states for x in state.values()]
        return len(kept) == len(self._kept) and all(map(operator.is_, kept, self._kept))

    def _serves(self, bound: Bound) -> bool:
        """Whether a composition is the one that is known, but for its numbers."""
        if bound is self._bound:
            return True
        like, first = bound.filter.likelihood, self.subjects[0][1]
        alike = (
            is_elementwise(bound.filter)
            and len(blocks_of(self._params, like)) == len(self._params)
            and (*bound.names(first), "step") == self._names
            and _types(bound.form(first)) == _types(self._bound.form(first))
        )
        self._bound = bound if alike else self._bound
        return alike

    def readings(self, bound: Bound) -> list[Reading] | None:
        """Gradients that can be used as they are and lie as they did, in memory of their own.

        Args:
            bound: the composition, which needs nothing else.

        Returns:
            A reading of every parameter; ``None`` if they have to be looked at one by one.
        """
        grads: list[Any] = [p.grad for p in self.weights]
        if not self._plain or list(map(form_of, grads)) != self._slopes:
            return None
        pointers = list(map(Tensor.data_ptr, grads))
        if pointers != self._spared:
            if not all(layout.spares(grads) for layout in self._layouts):
                return None
            self._spared = pointers
        limits = {dtype: bound.limit(x) for dtype, x in {x.dtype: x for x in grads}.items()}
        return [
            Reading(name, block, Raw(grad), limits[grad.dtype])
            for (name, block), grad in zip(self.subjects, grads, strict=True)
        ]

    def ages(self) -> list[float]:
        """The step that each parameter is about to take, 1 for the first."""
        return [1 + step for step in numbers_in(self._steps, self._step_row)]

    def batches(self) -> list[float]:
        """Which batch each parameter is in, for those that are in step with each other."""
        found = {i: float(place) for place, batch in enumerate(self._members) for i in batch}
        return [found[id(p)] for p in self.weights]

    def placed(self, batches: list[Batch], *, known: bool) -> list[Batch]:
        """Batches with their layouts, if those hold.

        Args:
            batches: the group, with what was gathered.
            known: whether that lies as it did.

        Returns:
            The batches, of which none or all have a layout.
        """
        if [[id(r.p) for r in batch.readings] for batch in batches] != self._members:
            return batches
        both = list(zip(batches, self._layouts, strict=True))
        if not known and not all(x.serves([r.raw for r in b.readings]) for b, x in both):
            return batches
        return [batch._replace(layout=layout) for batch, layout in both]


class Standings(dict[Tensor, Standing]):
    """Groups by their first parameter with a gradient; a copy or a pickle of them has none."""

    def attend(self, groups: list[Group]) -> None:
        """Let go of what is known of groups that are no longer there."""
        there = set(map(id, groups))
        for first in [p for p, known in self.items() if id(known.group) not in there]:
            del self[first]

    def find(self, group: Group, bound: Bound, states: States) -> Standing | None:
        """What is known of a group, if that holds."""
        first = next((p for p in group["params"] if p.grad is not None), None)
        known = self.get(first) if first is not None else None
        return known if known is not None and known.holds(group, bound, states) else None

    def keep(
        self,
        group: Group,
        bound: Bound,
        readings: list[Reading],
        batches: list[Batch],
        layouts: list[Layout | None],
        states: States,
    ) -> None:
        """Know a group from now on, if all of it was laid out in plain tensors."""
        known = [layout for layout in layouts if layout is not None]
        if not readings or len(known) < len(layouts) or not all(map(_alone, readings)):
            return
        if len(self) >= FEW:
            self.clear()
        self[readings[0].p] = Standing(group, bound, readings, batches, known, states)

    def __reduce__(self) -> tuple[type[Standings], tuple[()]]:
        """What copying and pickling keep."""
        return Standings, ()


def _alone(reading: Reading) -> bool:
    """Whether a reading is of a parameter by itself, in a tensor of this process."""
    return reading.block.bias is None and type(reading.p) in PLAIN


def _types(tree: object) -> object:
    """What a nested tuple is made of."""
    return (type(tree), *map(_types, tree)) if isinstance(tree, tuple) else tree is None
