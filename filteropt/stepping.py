"""An optimizer's step: everything is read and planned before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filteropt import belief, execute, measure
from filteropt.blocks import Block
from filteropt.execute import Batch
from filteropt.measure import Reading
from filteropt.recipe import Bound, Recipe
from filteropt.upkeep import KeepingOptimizer

__all__ = ["SteppingOptimizer"]

Group = dict[str, Any]


class Work(NamedTuple):
    """A group's step, gathered and planned.

    Attributes:
        new: blocks that may lack some of the state that they need.
        readings: the parameters, and what was gathered for them.
        batches: those that share their numbers.
    """

    new: list[Block]
    readings: list[Reading]
    batches: list[Batch]


class SteppingOptimizer(KeepingOptimizer):
    """An optimizer that steps its groups."""

    fused: bool | None
    _recipe: Recipe
    _standings: execute.Standings

    def _watch(self, bound: Bound, params: list[Tensor]) -> None:
        """Watch the model, if the likelihood or the basis needs more than gradients."""
        for part in (bound.filter.likelihood, bound.filter.basis):
            self._gathering.watch(type(self).__name__, self.model, part, params)

    def _read(self, index: int, bound: Bound) -> Work:
        """Gather and plan a group's step, before anything is changed."""
        group, new = self.param_groups[index], list[Block]()
        standing = self._standings.find(group, bound, self.state) if group["lr"] else None
        if standing is None:
            subjects = self._subjects(index, bound)
            new = [block for _, block in subjects]
        else:
            subjects = standing.subjects
        if not group["lr"]:
            return Work(new, [], [])
        members = standing.weights if standing else [p for _, b in subjects for p in b.members]
        seen = self._seen(bound, members)
        if standing is None:
            for name, block in subjects:
                self._require_ready(block, bound, name)
        maximize, strict = group["maximize"], group["linearize_at"] == "prediction"
        known = standing.readings(bound) if standing and not seen and not maximize else None
        readings = known or [
            _reading(name, block, bound, maximize, seen.get(block.weight, {}))
            for name, block in subjects
        ]
        gain, clock = self._recipe.gain(group), self._clock if self.capturable else None
        ages = self._ages(standing, new)
        batches = execute.plan(bound, readings, ages, gain=gain, strict=strict, clock=clock)
        if standing:
            batches = standing.placed(batches, known=known is not None)
        return Work(new, readings, batches)

    def _seen(self, bound: Bound, params: list[Tensor]) -> dict[Tensor, dict[str, Any]]:
        """What a likelihood and a basis need beside gradients, as fields of ``Raw``."""
        self._watch(bound, params)  # a group may change its mind
        gathered = self._gathering.look(bound.filter.likelihood, params)
        of_layers = self._gathering.look(bound.filter.basis, params)
        if not of_layers:
            return gathered
        return {p: {**gathered.get(p, {}), **of_layers.get(p, {})} for p in params}

    def _ages(self, standing: execute.Standing | None, new: list[Block]) -> list[float]:
        """The steps that parameters are about to take, or what tells these apart in a capture."""
        if measure.capturing():
            if not self.capturable:
                raise RuntimeError(
                    f"{type(self).__name__}: a step that is captured in a CUDA graph would be the "
                    f"same whenever it is done again; construct it with capturable=True and "
                    f"on_nonfinite='ignore', or leave the step out of the graph"
                )
            if standing is None:
                raise RuntimeError(
                    f"{type(self).__name__}: take a step of the same parameters and options before "
                    f"one is captured"
                )
            return standing.batches()
        if standing is not None:
            return standing.ages()
        return [1 + float(self.state.get(b.weight, {}).get("step", 0.0)) for b in new]

    def _clock(self, p: Tensor) -> Tensor:
        """The step that a parameter is about to take, on its device, where nobody reads it."""
        steps = self.state[p]["step"] if p in self.state else torch.zeros((), device=p.device)
        return steps.double() + 1

    def _subjects(self, index: int, bound: Bound) -> list[tuple[Callable[[], str], Block]]:
        """The blocks of a group that have a gradient, and how to call each."""
        group, found = self.param_groups[index], list[tuple[Callable[[], str], Block]]()
        for i, block in self._blocks(group, bound):
            if all(p.grad is None for p in block.members):
                continue
            name = partial(_called, self.param_groups, group, i, block, self.model)
            if group["lr"] and block.weight.grad is None:
                raise RuntimeError(
                    f"{name()} has a gradient in its bias alone: freeze the bias, too, or filter "
                    f"it by itself (bias='diagonal', or another group)"
                )
            found.append((name, block))
        return found

    def _require_ready(self, block: Block, bound: Bound, name: Callable[[], str]) -> None:
        """Refuse a block whose state does not allow a step."""
        state = self.state.get(block.weight, {})
        if state.get("evaluating"):
            raise RuntimeError(f"{name()} holds its posterior mean: call train() before step()")
        if state:
            belief.require_kept(bound, block, state, name)

    def _advance(self, group: Group, bound: Bound, work: Work) -> None:
        """Take a group's step."""
        self._prepare(group, work.new, bound)
        gain = self._recipe.gain(group)
        layouts = [
            execute.update(
                bound, batch, self.state, gain, fused=self.fused, capturable=self.capturable
            )
            for batch in work.batches
        ]
        if any(batch.layout is None for batch in work.batches):
            self._standings.keep(group, bound, work.readings, work.batches, layouts, self.state)


def _reading(
    name: Callable[[], str], block: Block, bound: Bound, maximize: bool, seen: dict[str, Any]
) -> Reading:
    """Gather what belongs to a block."""
    raw = measure.gather(block, name, maximize=maximize, **seen)
    return Reading(name, block, raw, bound.limit(raw.grad))


def _called(
    groups: list[Group], group: Group, i: int, block: Block, model: nn.Module | None
) -> str:
    """What to call a block in a message."""
    index = next(k for k, other in enumerate(groups) if other is group)
    name = measure.name_of(groups, index, i, model)
    return name if block.bias is None else f"{name} (with its bias)"
