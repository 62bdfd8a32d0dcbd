"""Fixed process noise: AdaBayes' dynamics, a discretised Ornstein–Uhlenbeck process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from filteropt.hyperparameters import Interval, Nonnegative, check_fields
from filteropt.linalg import scalar
from filteropt.types import Dynamics, Flow, Scalar, Transition

__all__ = ["FixedNoise"]


@dataclass(frozen=True)
class FixedNoise(Dynamics):
    r"""Optimal weights drift by fixed noise and are pulled back to zero.

    The other weights' updates move each weight's optimum; to first order that motion is
    (P Eq. 13, with its continuous-time limit)

    .. math::
        w^*_{t+1} = \Bigl(1 - \frac{\eta^2}{2\sigma^2}\Bigr) w^*_t + \eta\,\epsilon_t,
        \qquad dw^* = -\frac{\eta^2}{2\sigma^2} w^*\,dt + \eta\,dB .

    ``"euler"`` takes the left form, :math:`\Sigma' = (1-\eta^2/2\sigma^2)^2\Sigma + \eta^2`;
    ``"exact"`` integrates the right one, :math:`\Sigma' = e^{-\eta^2/\sigma^2}\Sigma
    + \sigma^2(1 - e^{-\eta^2/\sigma^2})`, whose stationary variance is σ² exactly.
    What is approximated: every weight's optimum moves on its own, at one common rate.

    Args:
        lr: η, standard deviation of the drift per step, in weight units; [0, inf).
        prior_variance: σ², variance of the optimal weights before any evidence, in squared
            weight units; (0, inf]. Infinite means a random walk without a prior.
        weight_decay: decoupled weight decay, so that the mean shrinks by
            :math:`\lambda` = ``lr * weight_decay`` per step (P Eq. 18a), in inverse weight units;
            [0, inf). ``None`` means the model's own η²/(2σ²).
        discretization: ``"euler"`` or ``"exact"``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.models import FixedNoise
        >>> tr = FixedNoise(lr=0.1, prior_variance=0.5, discretization="exact").transition(1)
        >>> round(float(tr.c * tr.F[0][0] ** 2 * 0.5 + tr.Q[0]), 12)    # σ² stays σ²
        0.5

    Source: P (Aitchison 2020) Eq. 12–16, 18a; derived in :eq:`eq-euler`,
    :eq:`eq-exact-discretization` and :eq:`eq-decay`. The exact form is the released code's.
    """

    k: ClassVar[int] = 1

    lr: Nonnegative = 1e-3
    prior_variance: Annotated[float, Interval("(0, inf]")] = 0.1
    weight_decay: Nonnegative | None = None
    discretization: Literal["euler", "exact"] = "euler"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def initial_variance(self) -> Scalar:
        """σ², the variance before any evidence."""
        return self.prior_variance

    def transition(self, t: Tensor | float) -> Transition:
        """F, Q and the decay of the mean; the same at every step ``t``."""
        noise = scalar(self.lr) ** 2
        rate = noise / self.prior_variance
        if self.discretization == "euler":
            pull, spread, lost = rate / 2, noise, rate * (1 - rate / 4)
        else:
            pull, spread = -torch.expm1(-rate / 2), noise * _relative_expm1(rate)
            lost = -torch.expm1(-rate)
        decay = pull if self.weight_decay is None else scalar(self.lr) * self.weight_decay
        flow = Flow(rate, noise)
        return Transition(F=((1 - pull,),), Q=(spread,), decay=decay, lost=lost, flow=flow)


def _relative_expm1(x: Tensor) -> Tensor:
    """``(1 - exp(-x)) / x``, which is 1 at 0 (where the prior variance is infinite)."""
    safe = torch.where(x > 0, x, 1.0)
    return torch.where(x > 0, -torch.expm1(-safe) / safe, 1.0)
