"""A batch's step: bases that know nothing learn, an executor steps, and steps are counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from filteropt.execute.bucketed import bucketed
from filteropt.execute.choice import choose
from filteropt.execute.fused import captured
from filteropt.execute.items import Ahead, Item, foresee
from filteropt.execute.layout import Layout
from filteropt.execute.plan import Batch
from filteropt.measure import Reading, local
from filteropt.recipe import Bound
from filteropt.rounding import held
from filteropt.trees import leaves, restore

__all__ = ["update"]

ParameterState = dict[str, Any]


def update(
    bound: Bound,
    batch: Batch,
    states: Mapping[Tensor, ParameterState],
    gain: float,
    *,
    fused: bool | None = None,
    capturable: bool = False,
) -> Layout | None:
    """Step the parameters of one batch in place.

    Args:
        bound: the composition.
        batch: the parameters and their numbers.
        states: every parameter's tensors by name, ``step`` among them.
        gain: factor on the displacement.
        fused: whether the step is to be compiled; ``None`` leaves that to the number of weights.
        capturable: whether it is compiled and no number is read from a device.

    Returns:
        How the parameters lie in memory, where every weight is treated on its own.
    """
    if bound.filter.basis.turns and batch.t == 1:
        batch = _taught(bound, batch, states)
    filter, layout = bound.filter, batch.layout
    members = [p for r in batch.readings for p in r.block.members if not layout or batch.ahead]
    moved = [p for p in members if p.grad is not None]
    counts = [local(states[p]["step"]) for p in moved]
    items = (_item(bound, states[r.p], r) for r in batch.readings)
    if filter.basis.turns or not filter.posterior.elementwise:
        bucketed(filter, batch.scalars, items, gain, t=batch.t if filter.basis.turns else None)
        for count in counts:
            count.add_(1)
    elif batch.readings:
        layout = layout or Layout(items, counts)
        layout.take([r.raw for r in batch.readings])
        executor = captured if capturable else choose(filter, layout.weights, fused)
        executor(filter, batch.scalars, layout, gain, batch.ahead)
        layout.release()
        layout.count()
    if batch.ahead is not None:
        for p in moved if layout is None else ():
            foresee(local(p), _means(batch.ahead, states[p]), batch.ahead)
        _note(batch.ahead, [states[p] for p in moved])
    return layout


def _item(bound: Bound, state: ParameterState, reading: Reading) -> Item:
    """What an executor is given, in the coordinates of the step before."""
    kept = [local(state[key]) for key in bound.names(reading.block)]
    return Item(
        reading.block, reading.raw, restore(bound.form(reading.block), map(held, kept)), kept
    )


def _means(ahead: Ahead, state: ParameterState) -> list[Tensor]:
    """The posterior means of the other latents."""
    return [local(state[f"mean_{i}"]) for i in range(1, 1 + len(ahead.drift))]


def _note(ahead: Ahead, states: list[ParameterState]) -> None:
    """Keep how means were predicted to move, which leads back from there."""
    drift = {f"drift_{i}": factor for i, factor in enumerate(ahead.drift, 1)}
    for name, value in {"decay": ahead.decay, **drift}.items():
        kept = [local(state[name]) for state in states]
        if kept:
            torch._foreach_copy_(kept, [kept[0].new_tensor(float(value))] * len(kept))


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
