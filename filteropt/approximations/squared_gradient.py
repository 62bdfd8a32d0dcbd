"""Curvature from the squared gradient: AdaBayes' likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from filteropt.approximations._gradient_average import GradientLikelihood
from filteropt.dtypes import squarable
from filteropt.types import Belief, Diag, Memory, Observation, Packed, Raw

__all__ = ["SquaredGradient"]


@dataclass(frozen=True)
class SquaredGradient(GradientLikelihood):
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
        beta1: decay of the gradient's running average; [0, 1). ``None`` keeps no average and moves
            the mean by the gradient itself, as 0 does with an average.
        bias_correction: whether the average is debiased; without, :math:`\hat g = m`.

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

    elementwise: ClassVar[bool] = True

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` whose scaled square is finite."""
        return squarable(dtype) / float(self.scale)

    def observe(
        self, like: Any, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Memory]:
        """Λ = g², and the average gradient."""
        scale, *numbers = scalars
        grad = raw.grad if isinstance(scale, float) and scale == 1 else scale * raw.grad
        pull, like = self._pull(like, grad, tuple(numbers))
        return Observation(pull, Diag(grad * grad)), like
