"""Executors: how the engine's one step runs over many tensors, and how results are stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from filteropt import engine
from filteropt.engine import Filter, Scalars, step
from filteropt.linalg import scalar
from filteropt.measure import Reading, is_dtensor, local
from filteropt.recipe import Bound
from filteropt.trees import leaves, restore, tree_map
from filteropt.types import Raw, State

__all__ = [
    "Ahead",
    "Batch",
    "loop",
    "plan",
    "require_prediction",
    "update",
]

ParameterState = dict[str, Any]


def loop(
    filter: Filter, scalars: Scalars, work: Iterable[tuple[State, Raw, Tensor]]
) -> Iterator[tuple[Tensor, State]]:
    """Step one tensor after the other: the reference for every other executor.

    Args:
        filter: the composition.
        scalars: the step's numbers, turned into Python floats here: they are the fastest on an
            eager tensor of any device, and keep a 0-d parameter in its own dtype.
        work: state, gathered values and parameter of each tensor.

    Yields:
        Displacement and new state of each tensor, in order.
    """
    numbers = tree_map(float, scalars)
    for state, raw, p in work:
        yield step(filter, numbers, state, raw, p)


class Ahead(NamedTuple):
    """How a posterior mean moves to the next step's prediction.

    Attributes:
        decay: the fraction of it that is lost.
        drift: what each of the other latents' means adds to it, per unit.
    """

    decay: float
    drift: tuple[float, ...]


class Batch(NamedTuple):
    """Parameters of one group and one age, which share their scalars.

    Attributes:
        t: the step, 1 for the first.
        readings: the parameters and what was gathered for them.
        scalars: the step's numbers.
        ahead: where gradients are taken at the prediction, how the mean is then predicted to move
            until the next step; ``None`` where a step predicts first.
    """

    t: float
    readings: list[Reading]
    scalars: Scalars
    ahead: Ahead | None


def plan(
    bound: Bound, readings: list[Reading], ages: list[float], *, gain: float, strict: bool
) -> list[Batch]:
    """Work out a group's scalars, changing nothing.

    Args:
        bound: the composition.
        readings: the parameters and what was gathered for them.
        ages: the step that each of them is about to take, 1 for the first.
        gain: factor on the displacement.
        strict: whether gradients are taken at the prediction.

    Returns:
        One batch for every age.

    Raises:
        TypeError: a sharded parameter in a posterior that is not elementwise.
        ValueError: the predicted decay would take the whole mean away, or dynamics that pull have
            no prediction.
    """
    filter, batches = bound.filter, []
    for reading in readings:
        for part in (filter.posterior, filter.basis) if is_dtensor(reading.p) else ():
            if not part.elementwise:
                raise TypeError(
                    f"{reading.name()} is sharded, but {type(part).__name__} needs whole tensors; "
                    f"use parts that treat every weight on its own, such as Diagonal"
                )
    for t in sorted(set(ages)):
        members = [r for r, age in zip(readings, ages, strict=True) if age == t]
        scalars, ahead = engine.scalars(filter, t), None
        if strict:  # the last step predicted the mean that the parameters hold
            scalars = scalars._replace(decay=0.0, moves=0.0)
            ahead = _ahead(filter, t + 1, gain)
        batches.append(Batch(t, members, scalars, ahead))
    return batches


def _ahead(filter: Filter, t: float, gain: float) -> Ahead:
    """How the mean moves into step ``t``."""
    require_prediction(filter)
    scalars = engine.scalars(filter, t)
    decay = gain * float(scalars.decay)
    if decay >= 1:
        raise ValueError(
            f"the decay per step, {decay:.3g} (lr * weight_decay, or the dynamics' own), must be "
            f"below 1 with linearize_at='prediction'; lower lr or weight_decay"
        )
    return Ahead(decay, tuple(gain * float(f) for f in scalars.transition.F[0][1:]))


def require_prediction(filter: Filter) -> None:
    """Refuse dynamics that have no prediction to take gradients at.

    Args:
        filter: the composition.

    Raises:
        ValueError: dynamics that pull every weight by its own variance; or of several latents,
            in coordinates that turn.
    """
    if filter.basis.turns and filter.dynamics.k > 1:
        raise ValueError(
            f"linearize_at='prediction': the other latents of {type(filter.dynamics).__name__} are "
            f"known in the coordinates of {type(filter.basis).__name__}; use "
            f"linearize_at='posterior'"
        )
    if filter.dynamics.transition(scalar(1)).pull is not None:
        raise ValueError(
            f"linearize_at='prediction': {type(filter.dynamics).__name__} pulls every weight by "
            f"its own variance, which is not predicted; use linearize_at='posterior'"
        )


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
    weights = [local(reading.p) for reading in batch.readings]
    shards = [{k: local(v) for k, v in states[r.p].items()} for r in batch.readings]
    forms = [bound.form(reading.block) for reading in batch.readings]
    kept = [bound.names(reading.block) for reading in batch.readings]
    means = (
        r.block.whole(p.to(r.raw.grad.dtype), r.block.bias)
        for r, p in zip(batch.readings, weights, strict=True)
    )
    work = (
        (_turned(bound.filter, batch.t, form, keys, shard, r), r.raw, p)
        for form, keys, shard, r, p in zip(forms, kept, shards, batch.readings, means, strict=True)
    )
    results = loop(bound.filter, batch.scalars, work)
    for r, p, keys, shard, (disp, new) in zip(
        batch.readings, weights, kept, shards, results, strict=True
    ):
        moves = r.block.split(disp)
        p.add_(moves[0][1], alpha=gain)
        for name, leaf in zip(keys, leaves(new), strict=True):
            if leaf is not shard[name]:
                shard[name].copy_(leaf)
        _count(batch, p, shard)
        for bias, column in moves[1:]:
            if bias.grad is not None:
                bias.add_(column, alpha=gain)
                _count(batch, bias, states[bias])


def _count(batch: Batch, p: Tensor, shard: ParameterState) -> None:
    """Note the step of a parameter that has moved, and move it to its prediction if that is due."""
    shard["step"].add_(1)
    if batch.ahead is not None:
        p.mul_(1 - batch.ahead.decay)
        for i, factor in enumerate(batch.ahead.drift, 1):
            p.add_(shard[f"mean_{i}"], alpha=factor)
            shard[f"drift_{i}"].fill_(factor)
        shard["decay"].fill_(batch.ahead.decay)


def _turned(
    filter: Filter, t: float, form: State, keys: list[str], shard: ParameterState, reading: Reading
) -> State:
    """A parameter's state, in the coordinates of the step."""
    state = restore(form, [shard[key] for key in keys])
    return engine.refresh(filter, t, state, reading.raw) if filter.basis.turns else state


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
