"""A batch's step: bases turn, an executor steps, and steps are counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from filteropt import engine
from filteropt.execute.items import Item
from filteropt.execute.loop import loop
from filteropt.execute.plan import Ahead, Batch
from filteropt.measure import Reading, local
from filteropt.recipe import Bound
from filteropt.trees import leaves, restore

__all__ = ["update"]

ParameterState = dict[str, Any]


def update(
    bound: Bound, batch: Batch, states: Mapping[Tensor, ParameterState], *, gain: float
) -> None:
    """Step the parameters of one batch in place.

    Args:
        bound: the composition.
        batch: the parameters and their numbers.
        states: every parameter's tensors by name, ``step`` among them.
        gain: factor on the displacement.
    """
    if bound.filter.basis.turns and batch.t == 1:
        batch = _taught(bound, batch, states)
    items = (_item(bound, batch.t, states[r.p], r) for r in batch.readings)
    loop(bound.filter, batch.scalars, items, gain)
    for reading in batch.readings:
        for p in reading.block.members:
            if p.grad is not None:
                _count(batch.ahead, local(p), {k: local(v) for k, v in states[p].items()})


def _item(bound: Bound, t: float, state: ParameterState, reading: Reading) -> Item:
    """What an executor is given, in the coordinates of the step."""
    kept = [local(state[key]) for key in bound.names(reading.block)]
    held = restore(bound.form(reading.block), kept)
    if bound.filter.basis.turns:
        held = engine.refresh(bound.filter, t, held, reading.raw)
    return Item(reading.block, reading.raw, held, kept)


def _count(ahead: Ahead | None, p: Tensor, shard: ParameterState) -> None:
    """Note the step of a parameter that has moved, and move it to its prediction if that is due."""
    shard["step"].add_(1)
    if ahead is not None:
        p.mul_(1 - ahead.decay)
        for i, factor in enumerate(ahead.drift, 1):
            p.add_(shard[f"mean_{i}"], alpha=factor)
            shard[f"drift_{i}"].fill_(factor)
        shard["decay"].fill_(ahead.decay)


def _taught(bound: Bound, batch: Batch, states: Mapping[Tensor, ParameterState]) -> Batch:
    """Let bases learn in which no step may be taken yet; the batch without their parameters."""
    ready, basis = [], bound.filter.basis
    for reading in batch.readings:
        keys, kept = bound.names(reading.block), states[reading.p]
        state = restore(bound.form(reading.block), [kept[key] for key in keys])
        if basis.ready(state.basis) or not bool(reading.raw.grad.any()):
            ready.append(reading)
            continue
        learned, _ = basis.refresh(state.basis, reading.raw, batch.t)
        for key, leaf in zip(keys, leaves(state._replace(basis=learned)), strict=True):
            if leaf is not kept[key]:
                kept[key].copy_(leaf)
    return batch._replace(readings=ready)
