"""What a momentum filter's step is made of, read off its own state.

With the gradient taken at the prediction, the step from one prediction to the next is

    -r Σ_ww g (1 - r d)     the gradient's own part, scaled by the weight's variance,
    + r η p                 what the momentum predicts, p being updated by the same gradient,
    - r d w                 the decay that the prior implies,

with r the schedule's factor. All of it is public: the covariance of the filter's belief, the
momentum's mean in its state, and the gradient.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from filteropt import FilterOptimizer

RECORDS = 120
QUANTILES = (0.1, 0.5, 0.9)
PROTOCOL = 2
"""Raise this when what is recorded changes: older files are then not reused."""


class Parts(NamedTuple):
    """The parts of one parameter's step; their sum is the step."""

    gradient: Tensor
    momentum: Tensor
    decay: Tensor


def parts(optimizer: FilterOptimizer, p: Tensor, before: Tensor, scale: float) -> Parts:
    """Split a step that was just taken.

    Args:
        optimizer: The filter.
        p: One of its parameters, with the gradient that the step used.
        before: The parameter before the step.
        scale: From ``p.grad`` to the gradient of the summed loss.

    Returns:
        The parts, each shaped like the parameter.
    """
    group, state = group_of(optimizer, p), optimizer.state[p]
    gain = group["lr"] / group["base_lr"]
    variance = optimizer.posterior_covariance(p)[..., 0, 0]
    lost = float(state["decay"])
    assert p.grad is not None, "a step was taken"
    moved = -gain * scale * variance * p.grad
    return Parts((1 - lost) * moved, group["lr"] * state["mean_1"], -lost * before)


def group_of(optimizer: FilterOptimizer, p: Tensor) -> dict[str, Any]:
    """The parameter group that a parameter belongs to.

    Args:
        optimizer: The optimizer.
        p: One of its parameters.

    Returns:
        The group.
    """
    return next(g for g in optimizer.param_groups if any(q is p for q in g["params"]))


def quantiles(values: Tensor, weights: Tensor) -> list[float]:
    """Quantiles of values that do not count alike.

    Args:
        values: The values.
        weights: How much each counts, above 0.

    Returns:
        One for each of :data:`QUANTILES`.
    """
    order = values.argsort()
    reached = weights[order].cumsum(0) / weights.sum()
    levels = torch.tensor(QUANTILES, dtype=reached.dtype)
    places = torch.searchsorted(reached, levels).clamp_max(len(values) - 1)
    return [float(value) for value in values[order][places]]


class Splitter:
    """Watches a filter and keeps, at some of the steps, how its steps are made up."""

    def __init__(self, optimizer: Any, steps: int, scale: float) -> None:
        """Begin to watch.

        Args:
            optimizer: The filter.
            steps: How many steps it will take.
            scale: From ``p.grad`` to the gradient of the summed loss.
        """
        self._every = max(1, steps // RECORDS)
        self._scale = scale
        self._step = 0
        self._before: list[Tensor] = []
        names = ("step", "low", "middle", "high", "total", "rate", "ratio")
        self.curves: dict[str, list[float]] = {name: [] for name in names}
        optimizer.register_step_pre_hook(self._look)
        optimizer.register_step_post_hook(self._split)

    def result(self) -> dict[str, Any]:
        """What was seen, in the form of a run's result.

        Returns:
            ``curves``, with one entry per step that was split: ``low``, ``middle`` and ``high``
            are quantiles over weights of the momentum's share |momentum| / (|momentum| +
            |gradient|), weights counting by the length of their step, so that those without a
            gradient do not count for much; ``total`` is the share of the sums, ``rate`` the
            median of r B Σ_ww, which is what SGD calls lr, and ``ratio`` the median of
            η Σ_wp / Σ_ww in units of 1 - η_p, which is 1 for SGD with Nesterov momentum.
        """
        return {"metrics": {}, "curves": self.curves, "diverged": False}

    def _look(self, optimizer: FilterOptimizer, *_: object) -> None:
        self._step += 1
        if self._wanted():
            self._before = [p.detach().clone() for p in self._parameters(optimizer)]

    @torch.no_grad()
    def _split(self, optimizer: FilterOptimizer, *_: object) -> None:
        if not self._wanted():
            return
        sizes, rates, ratios = [], [], []
        for p, before in zip(self._parameters(optimizer), self._before, strict=True):
            group = group_of(optimizer, p)
            found = parts(optimizer, p, before, self._scale)
            sizes.append(torch.stack([found.gradient, found.momentum]).abs().flatten(1).double())
            covariance = optimizer.posterior_covariance(p).double()
            gain = group["lr"] / group["base_lr"]
            rates.append((gain * self._scale * covariance[..., 0, 0]).flatten())
            slope = covariance[..., 1, 0] / covariance[..., 0, 0]
            ratios.append((group["base_lr"] * slope / (1 - group["momentum_decay"])).flatten())
        gradient, momentum = torch.cat(sizes, 1)
        moving = gradient + momentum > 0
        if not moving.any():
            return
        length = (momentum + gradient)[moving]
        low, middle, high = quantiles(momentum[moving] / length, length)
        total = (momentum.sum() / (momentum + gradient).sum()).item()
        rate, ratio = torch.cat(rates).median().item(), torch.cat(ratios).median().item()
        for name, value in zip(
            self.curves, (self._step, low, middle, high, total, rate, ratio), strict=True
        ):
            self.curves[name].append(value)

    def _wanted(self) -> bool:
        return (self._step - 1) % self._every == 0

    @staticmethod
    def _parameters(optimizer: FilterOptimizer) -> list[Tensor]:
        return [p for group in optimizer.param_groups for p in group["params"]]
