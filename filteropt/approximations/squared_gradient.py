"""Curvature from the squared gradient: AdaBayes' likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from filteropt.hyperparameters import Momentum, Positive, check_fields
from filteropt.linalg import scalar
from filteropt.types import Belief, Diag, Likelihood, Observation, Packed, Raw, squarable

__all__ = ["SquaredGradient"]


class FirstMoment(NamedTuple):
    """Running average of the summed loss' gradient."""

    exp_avg: Tensor


@dataclass(frozen=True)
class SquaredGradient(Likelihood):
    r"""Each minibatch's own squared gradient is its precision.

    The gradient of the summed loss, :math:`g` = ``scale`` · ``p.grad``, is read as a noisy
    observation of the optimum with precision :math:`\Lambda = g^2` (P Eq. 17a), while the mean
    moves by its debiased running average (P Eq. 2, 18b):

    .. math::
        m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad \hat g_t = m_t / (1-\beta_1^t).

    What is approximated: the Hessian's diagonal by one draw of the squared gradient, and the
    gradient by its average over about 1/(1−β₁) steps.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf).
        beta1: decay of the gradient's running average; [0, 1). 0 uses the gradient itself.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import SquaredGradient
        >>> like = SquaredGradient(scale=2.0)
        >>> state, g = like.init(torch.zeros(1)), Raw(torch.tensor([3.0]))
        >>> obs, state = like.observe(state, g, None, None, like.scalars(1))
        >>> obs.grad, obs.curvature.values
        (tensor([6.]), tensor([36.]))

    Source: P (Aitchison 2020) Eq. 17–18; derived in :eq:`eq-squared-gradient` and
    :eq:`eq-momentum`.
    """

    averages: ClassVar[bool] = False

    scale: Positive = 1.0
    beta1: Momentum = 0.9

    def __post_init__(self) -> None:
        check_fields(self)

    def scalars(self, t: Tensor | float) -> Packed:
        """The scale, β₁ and its debiasing 1 − β₁ᵗ."""
        return self.scale, self.beta1, bias_correction(self.beta1, t)

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` whose scaled square is finite."""
        return squarable(dtype) / float(self.scale)

    def init(self, p: Tensor) -> FirstMoment:
        """One running average, shaped like ``p``, at zero."""
        return FirstMoment(torch.zeros_like(p))

    def observe(
        self, like: FirstMoment, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, FirstMoment]:
        """Λ = g², and the debiased average gradient."""
        scale, beta1, correction = scalars
        grad = scale * raw.grad
        exp_avg = beta1 * like.exp_avg + (1 - beta1) * grad
        return Observation(exp_avg / correction, Diag(grad * grad)), FirstMoment(exp_avg)


def bias_correction(beta: float | Tensor, t: Tensor | float) -> Tensor:
    """1 − βᵗ: the weight that t steps of an average have gathered (before the first, as at it)."""
    return 1 - scalar(beta) ** scalar(t).clamp_min(1)
