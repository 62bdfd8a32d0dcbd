"""Drift of whole weight matrices: noise on every weight, and small random changes of basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from filteropt.hyperparameters import Interval, Nonnegative, check_fields
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

    Args:
        lr: η, standard deviation of every weight's own drift per step, in weight units; [0, inf).
        prior_variance: σ², variance of the optimal weights before any evidence, in squared
            weight units; (0, inf]. Infinite means a random walk without a prior.
        weight_decay: decoupled weight decay, so that the mean shrinks by ``lr * weight_decay`` per
            step, in inverse weight units; [0, inf). ``None`` means the model's own η²/(2σ²).
        discretization: ``"euler"`` (U Eq. 25) or ``"exact"``.
        left: a, variance of A's entries per step; [0, inf).
        right: b, variance of B's entries per step; [0, inf).

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

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def initial_variance(self) -> Scalar:
        """σ², the variance before any evidence."""
        return self.prior_variance

    def transition(self, t: Tensor | float) -> Transition:
        """F, Q, the decay of the mean and how the matrix mixes; the same at every ``t``."""
        alone = FixedNoise(self.lr, self.prior_variance, self.weight_decay, self.discretization)
        mixes = float(self.left) > 0 or float(self.right) > 0
        return alone.transition(t)._replace(mixing=(self.left, self.right) if mixes else None)
