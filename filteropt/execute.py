"""Executors: how the engine's one step runs over many tensors, and how results are stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from filteropt import engine
from filteropt.engine import Filter, Scalars, step
from filteropt.measure import Reading, local
from filteropt.trees import leaves, names, restore, tree_map
from filteropt.types import Raw, State

__all__ = ["hold_posterior", "hold_prediction", "loop", "strict_state", "update"]

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


def update(
    filter: Filter,
    readings: list[Reading],
    states: list[ParameterState],
    *,
    gain: float,
    ahead: float | None,
) -> None:
    """Step the parameters of one group in place; those of equal age share their scalars.

    Args:
        filter: the composition.
        readings: the parameters and what was gathered for them.
        states: their tensors by name, ``step`` among them.
        gain: factor on the displacement.
        ahead: where gradients are taken at the prediction: the fraction by which the mean is then
            predicted to shrink until the next step. ``None``: a step predicts, then conditions.
    """
    form = engine.template(filter)
    kept = names(form)
    ages: dict[float, list[tuple[Reading, ParameterState]]] = {}
    for reading, state in zip(readings, states, strict=True):
        ages.setdefault(1 + float(state["step"]), []).append((reading, state))
    for t, members in ages.items():
        scalars = engine.scalars(filter, t)
        if ahead is not None:  # the last step predicted the mean that the parameters hold
            scalars = scalars._replace(decay=0.0)
        weights = [local(reading.p) for reading, _ in members]
        shards = [{k: local(v) for k, v in state.items()} for _, state in members]
        work = (
            (
                restore(form, [shard[name] for name in kept]),
                reading.raw,
                p.to(reading.raw.grad.dtype),
            )
            for (reading, _), shard, p in zip(members, shards, weights, strict=True)
        )
        results = loop(filter, scalars, work)
        for p, shard, (disp, new) in zip(weights, shards, results, strict=True):
            p.add_(disp, alpha=gain)
            for name, leaf in zip(kept, leaves(new), strict=True):
                shard[name].copy_(leaf)
            shard["step"].fill_(t)
    if ahead is not None:
        for reading, state in zip(readings, states, strict=True):
            reading.p.mul_(1 - ahead)
            state["decay"].fill_(ahead)


def strict_state() -> ParameterState:
    """What a parameter keeps besides its belief where gradients are taken at the prediction.

    Returns:
        ``decay``, by which the last step predicted the mean to shrink, and ``evaluating``, whether
        the parameter holds its posterior mean instead.
    """
    decay = torch.zeros((), dtype=torch.float64, device="cpu")
    return {"decay": decay, "evaluating": torch.tensor(False, device="cpu")}


@torch.no_grad()
def hold_posterior(p: Tensor, state: ParameterState) -> None:
    """Turn a parameter's prediction into its posterior mean, keeping the prediction aside."""
    if "evaluating" in state and not state["evaluating"]:
        state["prediction"] = p.detach().clone()
        p.div_(1 - float(state["decay"]))
        state["evaluating"].fill_(True)


@torch.no_grad()
def hold_prediction(p: Tensor, state: ParameterState) -> None:
    """Bring the prediction back, bit for bit where the parameter was left alone meanwhile."""
    if state.get("evaluating"):
        shrink = 1 - float(state["decay"])
        prediction = state.pop("prediction", p * shrink)
        p.copy_(torch.where(p == prediction / shrink, prediction, p * shrink))
        state["evaluating"].fill_(False)
