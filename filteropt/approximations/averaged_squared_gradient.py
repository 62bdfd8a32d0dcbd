"""Curvature from a running average of squared gradients: Adam's statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from filteropt.approximations.squared_gradient import bias_correction
from filteropt.hyperparameters import Momenta, Nonnegative, Positive, check_fields
from filteropt.types import Belief, Diag, Likelihood, Observation, Packed, Raw, squarable

__all__ = ["AveragedSquaredGradient"]


class Moments(NamedTuple):
    """Running averages of the summed loss' gradient and of its square."""

    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class AveragedSquaredGradient(Likelihood):
    r"""A debiased running average of squared gradients is the precision of every minibatch.

    With :math:`g` = ``scale`` · ``p.grad``, the gradient of the summed loss (P Eq. 2 and 4),

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, & \hat g_t &= m_t / (1-\beta_1^t), \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) g_t^2, &
        \Lambda_t &= v_t / (1-\beta_2^t) + \varepsilon .

    What is approximated: the Hessian's diagonal by the squared gradient averaged over about
    1/(1−β₂) steps.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf).
        betas: decays of the two averages; [0, 1) each.
        eps: added to the averaged square, in squared gradient units; [0, inf).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import AveragedSquaredGradient
        >>> like = AveragedSquaredGradient(scale=2.0)
        >>> state, g = like.init(torch.zeros(1)), Raw(torch.tensor([3.0]))
        >>> obs, state = like.observe(state, g, None, None, like.scalars(1))
        >>> obs.grad, obs.curvature.values
        (tensor([6.]), tensor([36.]))

    Source: P (Aitchison 2020) Eq. 2 and 4; see :eq:`eq-second-moment`.
    """

    averages: ClassVar[bool] = True

    scale: Positive = 1.0
    betas: Momenta = (0.9, 0.999)
    eps: Nonnegative = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def scalars(self, t: Tensor | float) -> Packed:
        """The scale, β₁, β₂, their debiasing 1 − βᵗ, and ε."""
        beta1, beta2 = self.betas
        corrections = bias_correction(beta1, t), bias_correction(beta2, t)
        return self.scale, beta1, beta2, *corrections, self.eps

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` whose scaled square is finite."""
        return squarable(dtype) / float(self.scale)

    def init(self, p: Tensor) -> Moments:
        """Two running averages, shaped like ``p``, at zero."""
        return Moments(torch.zeros_like(p), torch.zeros_like(p))

    def observe(
        self, like: Moments, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Moments]:
        """Λ = the debiased average of g², and the debiased average gradient."""
        scale, beta1, beta2, correction1, _, _ = scalars
        grad = scale * raw.grad
        moments = Moments(
            beta1 * like.exp_avg + (1 - beta1) * grad,
            beta2 * like.exp_avg_sq + (1 - beta2) * (grad * grad),
        )
        precision = self.curvature(moments, scalars)
        return Observation(moments.exp_avg / correction1, precision), moments

    def curvature(self, like: Moments, scalars: Packed) -> Diag:
        """The debiased average of g², plus ε."""
        *_, correction2, eps = scalars
        return Diag(like.exp_avg_sq / correction2 + eps)
