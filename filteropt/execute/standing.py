"""What a group's step finds again: parameters and beliefs that lie where they lay in the last one.

A step looks at every parameter: its options, its name, its tensors, how they lie in memory. That is
kept, with what tells whether it still holds; a step that finds all as it was reads gradients alone.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from filteropt.blocks import blocks_of
from filteropt.execute.choice import is_elementwise
from filteropt.execute.layout import Layout
from filteropt.execute.plan import Batch
from filteropt.measure import PLAIN, Reading
from filteropt.recipe import Bound

__all__ = ["Standing", "Standings"]

Group = dict[str, Any]
States = Mapping[Tensor, dict[str, Any]]

FEW = 64
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
        subjects: how to call the parameters, and what is filtered together.
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
        self._group, self._linearize_at = group, group["linearize_at"]
        self._params = list(group["params"])
        self._forms = list(map(_form, self._params))
        self._live = [p.grad is not None for p in self._params]
        self._members = [[id(r.p) for r in batch.readings] for batch in batches]
        self._states = [states[r.p] for r in readings]
        self._keys = (*bound.names(readings[0].block), "step")
        self._kept = [state[key] for state in self._states for key in self._keys]
        self._pointers = [x.data_ptr() for x in (*self._params, *self._kept)]

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
            group is self._group
            and len(params) == len(self._params)
            and all(map(operator.is_, params, self._params))
            and [p.grad is not None for p in params] == self._live
            and group["linearize_at"] == self._linearize_at
            and all(map(operator.is_, self._now(states), self._states))
            and all(map(operator.is_, self._tensors(), self._kept))
            and [x.data_ptr() for x in (*params, *self._kept)] == self._pointers
            and list(map(_form, params)) == self._forms
            and self._serves(bound)
            and not any(state.get("evaluating") for state in self._states)
        )

    def _now(self, states: States) -> list[dict[str, Any] | None]:
        return [states.get(block.weight) for _, block in self.subjects]

    def _tensors(self) -> list[Tensor | None]:
        return [state.get(key) for state in self._states for key in self._keys]

    def _serves(self, bound: Bound) -> bool:
        """Whether a composition is the one that is known, but for its numbers."""
        if bound is self._bound:
            return True
        like, first = bound.filter.likelihood, self.subjects[0][1]
        alike = (
            is_elementwise(bound.filter)
            and len(blocks_of(self._params, like)) == len(self._params)
            and (*bound.names(first), "step") == self._keys
            and _types(bound.form(first)) == _types(self._bound.form(first))
        )
        self._bound = bound if alike else self._bound
        return alike

    def ages(self) -> list[float]:
        """The step that each parameter is about to take, 1 for the first."""
        steps: list[float] = torch.stack(
            self._kept[len(self._keys) - 1 :: len(self._keys)]
        ).tolist()
        return [1 + step for step in steps]

    def placed(self, batches: list[Batch]) -> list[Batch] | None:
        """Batches with their layouts, if what was gathered lies as it did; else ``None``."""
        members = [[id(r.p) for r in batch.readings] for batch in batches]
        if members != self._members:
            return None
        if not all(
            layout.serves([r.raw for r in batch.readings])
            for batch, layout in zip(batches, self._layouts, strict=True)
        ):
            return None
        return [b._replace(layout=x) for b, x in zip(batches, self._layouts, strict=True)]


class Standings(dict[Tensor, Standing]):
    """Groups by their first parameter with a gradient; a copy or a pickle of them has none."""

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
        if not readings or len(known) < len(layouts) or not all(map(_plain, readings)):
            return
        if len(self) >= FEW:
            self.clear()
        self[readings[0].p] = Standing(group, bound, readings, batches, known, states)

    def __reduce__(self) -> tuple[type[Standings], tuple[()]]:
        """What copying and pickling keep."""
        return Standings, ()


def _form(x: Tensor) -> tuple[object, ...]:
    """How a tensor lies in its memory."""
    return x.shape, x.stride()


def _plain(reading: Reading) -> bool:
    """Whether a reading is of a parameter by itself, in a tensor of this process."""
    return reading.block.bias is None and type(reading.p) in PLAIN


def _types(tree: object) -> object:
    """What a nested tuple is made of."""
    return (type(tree), *map(_types, tree)) if isinstance(tree, tuple) else tree is None
