"""Drift of whole weight matrices: noise on every weight, and small random changes of basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from filteropt.hyperparameters import Count, Interval, Nonnegative, check_fields
from filteropt.linalg import scalar
from filteropt.models.fixed_noise import FixedNoise
from filteropt.types import Dynamics, Scalar, Transition

__all__ = ["KroneckerDrift"]


@dataclass(frozen=True)
class KroneckerDrift(Dynamics):
    r"""Optimal weight matrices are multiplied by small random matrices, and drift by fixed noise.

    The layers below and above change the basis of a layer's inputs and outputs, so that its optimal
    matrix W, M×N, moves as a whole:

    .. math::
        W^*_{t+1} = \Bigl(1 - \frac{\eta^2}{2\sigma^2}\Bigr) (1 + A_t)\, W^*_t\, (1 + B_t)^\top
            + \eta\,\epsilon_t

    with independent entries of variance a in A (M×M), b in B (N×N) and 1 in ε. The first factor
    and the noise are :class:`FixedNoise`'s, of which all but ``left`` and ``right`` are the
    arguments. What is approximated: A and B are taken as unknown and independent from step to step,
    so that they move no mean.

    What drift costs is to project it, O(N³ + M³). So optima may drift in every k-th step alone, by
    k steps' worth, which is the same belief after k steps without data (but for the step's length
    in ``"euler"``, and :math:`O((ak)^2)`):

    .. math:: Q_t = k\eta^2 \quad\text{where } k \mid t, \text{ else } 0 .

    Args:
        lr: η, standard deviation of every weight's own drift per step, in weight units; [0, inf).
        prior_variance: σ², variance of the optimal weights before any evidence, in squared
            weight units; (0, inf]. Infinite means a random walk without a prior.
        weight_decay: decoupled weight decay, so that the mean shrinks by ``lr * weight_decay`` per
            step, in inverse weight units; [0, inf). ``None`` means the model's own η²/(2σ²).
        discretization: ``"euler"`` (U Eq. 25) or ``"exact"``.
        left: a, variance of A's entries per step; [0, inf).
        right: b, variance of B's entries per step; [0, inf).
        every: k, steps between two drifts, each of which is worth as many; [1, inf).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.models import KroneckerDrift
        >>> KroneckerDrift(lr=0.1, prior_variance=0.5, left=1e-4).transition(1).mixing
        (0.0001, 0.0)

    Source: U (Aitchison 2018) Eq. 25–27, and the structured changes that Sec. 2.1.3 names;
    derived in :eq:`eq-structured-drift`.
    """

    k: ClassVar[int] = 1

    lr: Nonnegative = 1e-3
    prior_variance: Annotated[float, Interval("(0, inf]")] = 0.1
    weight_decay: Nonnegative | None = None
    discretization: Literal["euler", "exact"] = "euler"
    left: Nonnegative = 0.0
    right: Nonnegative = 0.0
    every: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def initial_variance(self) -> Scalar:
        """σ², the variance before any evidence."""
        return self.prior_variance

    def transition(self, t: Tensor | float) -> Transition:
        """F, Q, the decay of the mean and how the matrix mixes, alike in every k-th step ``t``."""
        k, mixes = self.every, float(self.left) > 0 or float(self.right) > 0
        if k == 1:
            alone = FixedNoise(self.lr, self.prior_variance, self.weight_decay, self.discretization)
            return alone.transition(t)._replace(mixing=(self.left, self.right) if mixes else None)
        now = (scalar(t) % k == 0).double()
        rare = FixedNoise(self.lr * k**0.5, self.prior_variance, None, self.discretization)
        ((factor,),), (noise,), *_ = rare.transition(t)
        return Transition(
            F=((torch.where(now > 0, factor, 1.0),),),
            Q=(now * noise,),
            decay=None if self.weight_decay is None else self.lr * self.weight_decay,
            mixing=(now * k * self.left, now * k * self.right) if mixes else None,
        )
