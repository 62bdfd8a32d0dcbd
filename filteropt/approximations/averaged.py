"""Curvature averaged over steps: what a stationary variance needs, for any diagonal likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from filteropt.approximations._gradient_average import bias_correction
from filteropt.approximations._wrapped import WrappedLikelihood
from filteropt.approximations.squared_gradient import SquaredGradient
from filteropt.hyperparameters import Momentum, Nonnegative, check_fields
from filteropt.types import Belief, Diag, Likelihood, Memory, Observation, Packed, Raw, Turn

__all__ = ["Averaged"]


class Moments(NamedTuple):
    """What the averaged likelihood itself remembers, and the running average of its curvature."""

    own: Memory
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class Averaged(WrappedLikelihood):
    r"""A running average of another likelihood's curvature is the precision of every minibatch.

    With :math:`\Lambda_t` the curvature that ``likelihood`` reports,

    .. math::
        v_t = \beta_2 v_{t-1} + (1-\beta_2) \Lambda_t, \qquad
        \bar\Lambda_t = \frac{v_t}{1-\beta_2^{\,t-k}} + \varepsilon ,

    where the first k steps tell no curvature yet (none for most; 1 for :class:`CentredGradient`).

    What is approximated: the expected curvature, by an average over about 1/(1−β₂) steps. Filtered
    recursively, an average counts each minibatch about as often as not averaging does; a family
    at its fixed point, such as :class:`FixedPoint`, needs one.

    Args:
        likelihood: any likelihood that gives a diagonal curvature.
        beta2: decay of the average; [0, 1).
        eps: added to the average, in inverse squared weight units; [0, inf).
        bias_correction: whether the average is debiased; without, it is :math:`v + \varepsilon`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range, or a likelihood whose curvature is no diagonal.

    Example:
        >>> from filteropt.approximations import Averaged, CentredGradient
        >>> Averaged(CentredGradient(), beta2=0.99).averages
        True

    Source: P (Aitchison 2020) Eq. 4 for the squared gradient; see :eq:`eq-second-moment`.
    """

    gives: ClassVar[type] = Diag
    averages: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    likelihood: Likelihood = field(default_factory=SquaredGradient)
    beta2: Momentum = 0.999
    eps: Nonnegative = 0.0
    bias_correction: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if getattr(self.likelihood, "gives", None) is not Diag:
            raise ValueError(
                f"Averaged: likelihood={self.likelihood!r} must give a diagonal curvature, which "
                f"alone can be averaged; use SquaredGradient() or another such likelihood"
            )

    def scalars(self, t: Tensor | float) -> Packed:
        """The averaged likelihood's numbers, then β₂, the factor that debiases and ε."""
        gathered = t - self.likelihood.delay
        debiasing = 1 / bias_correction(self.beta2, gathered) if self.bias_correction else 1.0
        return *self.likelihood.scalars(t), self.beta2, debiasing, self.eps

    def init(self, p: Tensor) -> Moments:
        """What the averaged likelihood remembers, and an average at zero."""
        return Moments(self.likelihood.init(p), torch.zeros_like(p))

    def observe(
        self, like: Moments, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Moments]:
        """The debiased average of Λ, and the averaged likelihood's gradient."""
        *numbers, beta2, _, _ = scalars
        obs, own = self.likelihood.observe(like.own, raw, p, prior, tuple(numbers))
        assert isinstance(obs.curvature, Diag), "construction admits only diagonal curvature"
        new = (1 - beta2) * obs.curvature.values
        moments = Moments(own, (beta2 * like.exp_avg_sq).add_(new))
        return obs._replace(curvature=self.curvature(moments, p, scalars)), moments

    def curvature(self, like: Moments, p: Tensor, scalars: Packed) -> Diag:
        """The debiased average of Λ, plus ε."""
        *_, debiasing, eps = scalars
        return Diag((like.exp_avg_sq * debiasing).add_(eps))

    def transport(self, like: Moments, turn: Turn) -> Moments | None:
        """Both, in coordinates that turned."""
        own = self.likelihood.transport(like.own, turn)
        return None if own is None else Moments(own, turn.variances(like.exp_avg_sq))
