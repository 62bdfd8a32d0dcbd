"""Momentum of the whole objective: the prior's pull is averaged, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor

from filteropt.approximations._gradient_average import GradientAverage
from filteropt.approximations._wrapped import WrappedLikelihood
from filteropt.approximations.squared_gradient import SquaredGradient
from filteropt.hyperparameters import Momentum, Nonnegative, check_fields
from filteropt.types import Belief, Diag, Likelihood, Memory, Observation, Packed, Raw

__all__ = ["AveragedPull"]


class Averages(NamedTuple):
    """What the wrapped likelihood remembers, and the objective's average gradient."""

    own: Memory
    objective: Memory


@dataclass(frozen=True)
class AveragedPull(WrappedLikelihood):
    r"""Another likelihood, whose gradient is averaged together with the prior's pull.

    Dynamics that pull add :math:`R\mu_t` to the gradient after the likelihood has averaged it. Here
    the sum is averaged instead, as in optimizers with momentum and coupled weight decay:

    .. math:: m_t = \beta_1 m_{t-1} + (1-\beta_1)(g_t + R\mu_t), \qquad
        \hat g_t = \frac{m_t}{1-\beta_1^t} - R\mu_t ,

    to which the engine adds :math:`R\mu_t` again. What is approximated: as in every momentum, the
    pull by its recent average.

    Args:
        likelihood: any likelihood, with ``beta1=None``.
        pull: R, the dynamics' pull; [0, inf).
        beta1: β₁, decay of the average; [0, 1).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch
        >>> from filteropt.approximations import AveragedPull, SquaredGradient
        >>> like, p = AveragedPull(SquaredGradient(beta1=None), pull=2.0), torch.ones(1)
        >>> obs, _ = like.observe(like.init(p), Raw(p), p, None, like.scalars(1))
        >>> obs.grad    # the first average is the gradient itself
        tensor([1.])

    Source: Khan et al. (2018), Vadam; see :eq:`eq-vadam`.
    """

    elementwise: ClassVar[bool] = True

    likelihood: Likelihood = field(default_factory=lambda: SquaredGradient(beta1=None))
    pull: Nonnegative = 0.0
    beta1: Momentum = 0.9

    def __post_init__(self) -> None:
        check_fields(self)

    def scalars(self, t: Tensor | float) -> Packed:
        """The wrapped likelihood's numbers, then R, β₁ and its debiasing."""
        average = GradientAverage(self.beta1).scalars(t)
        return *self.likelihood.scalars(t), self.pull, *average

    def init(self, p: Tensor) -> Averages:
        """What the wrapped likelihood remembers, and an average at zero."""
        return Averages(self.likelihood.init(p), GradientAverage(self.beta1).init(p))

    def observe(
        self, like: Averages, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Averages]:
        """The wrapped likelihood's precision, and the average of gradient and pull without it."""
        *numbers, pull, beta1, debiasing = scalars
        obs, own = self.likelihood.observe(like.own, raw, p, prior, tuple(numbers))
        average = GradientAverage(self.beta1)
        pulled, objective = average.update(like.objective, obs.grad + pull * p, (beta1, debiasing))
        return obs._replace(grad=pulled - pull * p), Averages(own, objective)

    def curvature(self, like: Averages, p: Tensor, scalars: Packed) -> Diag | None:
        """The wrapped likelihood's running curvature."""
        return self.likelihood.curvature(like.own, p, tuple(scalars[:-3]))
