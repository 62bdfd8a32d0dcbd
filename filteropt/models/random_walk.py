"""A random walk: the optimum drifts, and nothing pulls it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from filteropt.hyperparameters import Nonnegative, check_fields
from filteropt.linalg import scalar
from filteropt.types import Dynamics, Flow, Scalar, Transition

__all__ = ["RandomWalk"]


@dataclass(frozen=True)
class RandomWalk(Dynamics):
    r"""Optimal weights drift by fixed noise, without a prior.

    .. math:: w^*_{t+1} = w^*_t + \eta\,\epsilon_t, \qquad \Sigma^- = \Sigma^+ + \eta^2 .

    It is :class:`FixedNoise` with an infinite prior variance: a weight without evidence grows ever
    more uncertain. What is approximated: every weight's optimum moves on its own, at one rate.

    Args:
        lr: η, standard deviation of the drift per step, in weight units; [0, inf).
        weight_decay: decoupled weight decay, so that the mean shrinks by ``lr * weight_decay`` per
            step, in inverse weight units; [0, inf).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.models import RandomWalk
        >>> [round(float(q), 12) for q in RandomWalk(lr=0.1).transition(1).Q]
        [0.01]

    Source: the "Bayesian derivation of RMSProp" blog post; derived in :eq:`eq-random-walk`.
    """

    k: ClassVar[int] = 1

    lr: Nonnegative = 1e-3
    weight_decay: Nonnegative = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def initial_variance(self) -> Scalar:
        """η², one step of drift."""
        return scalar(self.lr) ** 2

    def transition(self, t: Tensor | float) -> Transition:
        """F = 1, Q = η² and the decay of the mean; the same at every step ``t``."""
        lr = scalar(self.lr)
        flow = Flow(0.0, lr**2)
        return Transition(((1.0,),), (lr**2,), decay=lr * self.weight_decay, lost=0.0, flow=flow)
