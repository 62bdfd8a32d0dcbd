"""What the members of a sweep have in common, and what becomes of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from filteropt.sweeping.feed import Minibatches

__all__ = ["Plan", "Record"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """What all members have in common.

    Args:
        factory: makes a model.
        loss: from a model and a minibatch to its loss.
        batches: the minibatches.
        steps: how many are taken.
        factors: what a schedule multiplies learning rates by, step by step.
        evaluate: from a model to what is to be known about it, if anything.
        every: steps between two evaluations; the last step is followed by one in any case.
        strict: whether gradients are taken at the prediction.
        maximize: whether the objective is to be maximised.
        randomness: ``"different"`` or ``"same"``.
        compiled: whether steps are compiled; ``None`` where that saves time.
        keep: whether members' parameters are kept.
        device: where everything is.
    """

    factory: Callable[[], nn.Module]
    loss: Callable[..., Any]
    batches: Minibatches
    steps: int
    factors: list[float]
    evaluate: Callable[..., Any] | None
    every: int
    strict: bool
    maximize: bool
    randomness: str
    compiled: bool | None
    keep: bool
    device: torch.device

    def evaluated(self) -> list[int]:
        """Steps after which members are evaluated."""
        return [s for s in range(1, self.steps + 1) if s % self.every == 0 or s == self.steps]


@dataclass
class Record:
    """What became of one member.

    Attributes:
        status: ``"waiting"``, ``"finished"``, ``"diverged"`` or ``"interrupted"``.
        steps: how many it took.
        losses: before every step.
        curves: what was evaluated.
        parameters: its last posterior mean, on the CPU's side if it is there.
        buffers: its buffers.
    """

    status: str = "waiting"
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    curves: dict[str, list[Any]] = field(default_factory=dict)
    parameters: Tensors = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)
