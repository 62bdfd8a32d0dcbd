"""Curvature from the gradient's spread about its own mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from filteropt.approximations._gradient_average import GradientLikelihood
from filteropt.dtypes import squarable
from filteropt.hyperparameters import Momentum
from filteropt.linalg import scalar
from filteropt.types import Belief, Diag, Memory, Observation, Packed, Raw, Turn

__all__ = ["CentredGradient"]


class Centre(NamedTuple):
    """The average that moves the mean, and the running average about which gradients spread."""

    first: Memory
    centre: Tensor


@dataclass(frozen=True)
class CentredGradient(GradientLikelihood):
    r"""The gradient's squared distance from its own running average is its precision.

    With :math:`\bar g_{t-1}` the debiased average of the gradients before this one, decaying by β,

    .. math::
        \Lambda_t = \frac{(1+\beta)(1-\beta^{t-1})}{2(1-\beta^t)}\,(g_t - \bar g_{t-1})^2 .

    The factor makes it an unbiased estimate of the gradient's variance from the second step on; a
    first gradient says nothing of its spread, :math:`\Lambda_1 = 0`. Away from an optimum g² is
    dominated by the squared mean gradient, which is no curvature: centring takes it out. What is
    approximated: the Fisher information by the spread of minibatch gradients, which are taken to be
    drawn around a mean that does not move within about 1/(1−β) steps.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf).
        beta1: decay of the average that moves the mean; [0, 1). ``None`` keeps none and moves the
            mean by the gradient itself.
        bias_correction: whether that average is debiased.
        centre_beta: β, decay of the average about which gradients spread; [0, 1).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import CentredGradient
        >>> like, p = CentredGradient(beta1=None, centre_beta=0.5), torch.zeros(1)
        >>> state = like.init(p)
        >>> for t, g in enumerate([1.0, 3.0], 1):
        ...     obs, state = like.observe(state, Raw(p + g), p, None, like.scalars(t))
        >>> obs.curvature.values    # half of (3 - 1)^2: the sample variance of 1 and 3
        tensor([2.])

    Source: Aitchison (2018) Sec. 2.1; the factor is derived in :eq:`eq-centred`.
    """

    delay: ClassVar[int] = 1
    elementwise: ClassVar[bool] = True

    centre_beta: Momentum = 0.9

    def scalars(self, t: Tensor | float) -> Packed:
        """The scale, the average's numbers, β, the centre's divisor and the unbiasing factor."""
        beta, t = scalar(self.centre_beta), scalar(t).clamp_min(1)
        gathered = 1 - beta ** (t - 1)
        divisor = torch.where(gathered > 0, gathered, 1.0)
        unbias = (1 + beta) * gathered / (2 * (1 - beta**t))
        return self.scale, *self._average.scalars(t), beta, divisor, unbias

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` whose scaled distance from another such has a finite square."""
        return squarable(dtype) / (2 * float(self.scale))

    def init(self, p: Tensor) -> Centre:
        """Two running averages, shaped like ``p``, at zero."""
        return Centre(self._average.init(p), torch.zeros_like(p))

    def observe(
        self, like: Centre, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Centre]:
        """Λ = the unbiased square of g's distance from the average before it."""
        scale, *numbers, beta, divisor, unbias = scalars
        grad = scale * raw.grad
        pull, first = self._pull(like.first, grad, tuple(numbers))
        spread = grad - like.centre / divisor
        centre = beta * like.centre + (1 - beta) * grad
        return Observation(pull, Diag(unbias * (spread * spread))), Centre(first, centre)

    def transport(self, like: Centre, turn: Turn) -> Centre:
        """Both averages, in coordinates that turned."""
        return Centre(self._average.transport(like.first, turn), turn.means(like.centre))
