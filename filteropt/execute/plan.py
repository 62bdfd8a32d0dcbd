"""A group's step, planned before anything is changed: which parameters share which numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from filteropt import engine
from filteropt.engine import Filter, Scalars
from filteropt.execute.items import Ahead
from filteropt.execute.layout import Layout
from filteropt.linalg import scalar
from filteropt.measure import Reading, is_dtensor
from filteropt.recipe import Bound

__all__ = ["Batch", "plan", "require_prediction"]


class Batch(NamedTuple):
    """Parameters of one group and one age, which share their scalars.

    Attributes:
        t: the step, 1 for the first.
        readings: the parameters and what was gathered for them.
        scalars: the step's numbers.
        ahead: where gradients are taken at the prediction, how the mean is then predicted to move
            until the next step; ``None`` where a step predicts first.
        layout: how they lie in memory, if that is known.
    """

    t: float
    readings: list[Reading]
    scalars: Scalars
    ahead: Ahead | None
    layout: Layout | None = None


def plan(
    bound: Bound,
    readings: list[Reading],
    ages: list[float],
    *,
    gain: float,
    strict: bool,
    clock: Callable[[Tensor], Tensor] | None = None,
) -> list[Batch]:
    """Work out a group's scalars, changing nothing.

    Args:
        bound: the composition.
        readings: the parameters and what was gathered for them.
        ages: the step that each of them is about to take, 1 for the first.
        gain: factor on the displacement.
        strict: whether gradients are taken at the prediction.
        clock: tells a parameter's age in a tensor, from which numbers are worked out where it is;
            then ages only tell parameters apart.

    Returns:
        One batch for every age.

    Raises:
        TypeError: a sharded parameter in a posterior that is not elementwise.
        ValueError: the predicted decay would take the whole mean away, or dynamics that pull have
            no prediction.
    """
    filter, batches = bound.filter, []
    for part in [x for x in (filter.posterior, filter.basis) if not x.elementwise]:
        for reading in [r for r in readings if is_dtensor(r.p)]:
            raise TypeError(
                f"{reading.name()} is sharded, but {type(part).__name__} needs whole tensors; "
                f"use parts that treat every weight on its own, such as Diagonal"
            )
    found = sorted(set(ages))
    for t in found:
        members = readings
        if len(found) > 1:
            members = [r for r, age in zip(readings, ages, strict=True) if age == t]
        now = t if clock is None else clock(members[0].p)
        scalars, ahead = engine.scalars(filter, now, bound.steady), None
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
