"""Curvature from a running average of squared gradients: Adam's statistics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from filteropt.approximations.averaged import Averaged, Moments
from filteropt.approximations.squared_gradient import SquaredGradient
from filteropt.hyperparameters import Momenta, Nonnegative, Positive, check_fields
from filteropt.types import Belief, Diag, Likelihood, Observation, Packed, Raw, Turn

__all__ = ["AveragedSquaredGradient"]


@dataclass(frozen=True)
class AveragedSquaredGradient(Likelihood):
    r"""A debiased running average of squared gradients is the precision of every minibatch.

    With :math:`g` = ``scale`` · ``p.grad``, the gradient of the summed loss (P Eq. 2 and 4),

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, & \hat g_t &= m_t / (1-\beta_1^t), \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) g_t^2, &
        \Lambda_t &= v_t / (1-\beta_2^t) + \varepsilon .

    It is :class:`Averaged` of :class:`SquaredGradient`, with Adam's arguments. What is
    approximated: the Hessian's diagonal by the squared gradient averaged over about 1/(1−β₂) steps.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf).
        betas: decays of the two averages; [0, 1) each.
        eps: added to the averaged square, in squared gradient units; [0, inf).
        bias_correction: whether both averages are debiased.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import AveragedSquaredGradient
        >>> like = AveragedSquaredGradient(scale=2.0)
        >>> state, g = like.init(torch.zeros(1)), Raw(torch.tensor([3.0]))
        >>> obs, state = like.observe(state, g, None, None, like.scalars(1))
        >>> obs.grad, obs.curvature.values
        (tensor([6.]), tensor([36.0000]))

    Source: P (Aitchison 2020) Eq. 2 and 4; see :eq:`eq-second-moment`.
    """

    averages: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    scale: Positive = 1.0
    betas: Momenta = (0.9, 0.999)
    eps: Nonnegative = 0.0
    bias_correction: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @cached_property
    def composed(self) -> Averaged:
        """The same likelihood, put together from its two parts."""
        squared = SquaredGradient(self.scale, self.betas[0], self.bias_correction)
        return Averaged(squared, self.betas[1], self.eps, self.bias_correction)

    def scalars(self, t: Tensor | float) -> Packed:
        """The scale, β₁ and its debiasing, β₂ and its debiasing, and ε."""
        return self.composed.scalars(t)

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` whose scaled square is finite."""
        return self.composed.gradient_limit(dtype)

    def init(self, p: Tensor) -> Moments:
        """Two running averages, shaped like ``p``, at zero."""
        return self.composed.init(p)

    def observe(
        self, like: Any, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Moments]:
        """Λ = the debiased average of g², and the debiased average gradient."""
        return self.composed.observe(like, raw, p, prior, scalars)

    def curvature(self, like: Any, p: Tensor, scalars: Packed) -> Diag:
        """The debiased average of g², plus ε."""
        return self.composed.curvature(like, p, scalars)

    def transport(self, like: Any, turn: Turn) -> Moments | None:
        """Both averages, in coordinates that turned."""
        return self.composed.transport(like, turn)
