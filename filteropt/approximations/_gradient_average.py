"""The running average of gradients that moves the mean, shared by every likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filteropt.hyperparameters import Momentum, Positive, check_fields
from filteropt.linalg import scalar
from filteropt.types import Likelihood, Memory, Packed, Turn

__all__ = ["GradientAverage", "GradientLikelihood", "PulledLikelihood", "bias_correction"]


class FirstMoment(NamedTuple):
    """Running average of the summed loss' gradient."""

    exp_avg: Tensor


class GradientAverage(NamedTuple):
    r"""The mean's pull: a debiased running average of gradients, or the gradient itself.

    .. math:: m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad \hat g_t = m_t / (1-\beta_1^t) .

    Attributes:
        beta: β₁; ``None`` keeps nothing, and the pull is the gradient itself.
        debias: whether the average is divided by the weight that it has gathered.
    """

    beta: float | None
    debias: bool = True

    def scalars(self, t: Tensor | float) -> Packed:
        """β₁ and the factor that debiases."""
        if self.beta is None:
            return ()
        return self.beta, 1 / bias_correction(self.beta, t) if self.debias else 1.0

    def init(self, p: Tensor) -> Memory:
        """One average shaped like ``p``, at zero, or nothing."""
        return () if self.beta is None else FirstMoment(torch.zeros_like(p))

    def transport(self, like: Any, turn: Turn) -> Memory:
        """The average, in coordinates that turned."""
        return () if self.beta is None else FirstMoment(turn.means(like.exp_avg))

    def update(self, like: Any, grad: Tensor, scalars: Packed) -> tuple[Tensor, Memory]:
        """The pull, and the new average."""
        if not scalars:
            return grad, like
        beta, debiasing = scalars
        exp_avg = (beta * like.exp_avg).add_((1 - beta) * grad)
        return exp_avg * debiasing, FirstMoment(exp_avg)


class PulledLikelihood(Likelihood):
    """What likelihoods share whose mean is moved by the scaled gradient's average."""

    scale: float
    beta1: float | None
    bias_correction: bool

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def _average(self) -> GradientAverage:
        return GradientAverage(self.beta1, self.bias_correction)

    def scalars(self, t: Tensor | float) -> Packed:
        """The scale, and the average's numbers."""
        return self.scale, *self._average.scalars(t)

    def init(self, p: Tensor) -> Memory:
        """The gradient's average, at zero, if there is one."""
        return self._average.init(p)

    def transport(self, like: Any, turn: Turn) -> Memory:
        """The gradient's average, in coordinates that turned."""
        return self._average.transport(like, turn)

    def _pull(self, like: Any, grad: Tensor, numbers: Packed) -> tuple[Tensor, Memory]:
        """The gradient that moves the mean, and the new average."""
        return self._average.update(like, grad, numbers)


@dataclass(frozen=True)
class GradientLikelihood(PulledLikelihood):
    """A likelihood of the gradient alone."""

    scale: Positive = 1.0
    beta1: Momentum | None = 0.9
    bias_correction: bool = True


def bias_correction(beta: float | Tensor, t: Tensor | float) -> Tensor:
    """1 − βᵗ: the weight that t steps of an average have gathered (before the first, as at it)."""
    return 1 - scalar(beta) ** scalar(t).clamp_min(1)
