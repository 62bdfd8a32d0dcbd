"""Likelihoods raised to a power: data that count for more, or for less, than they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from filteropt.approximations._wrapped import WrappedLikelihood
from filteropt.approximations.squared_gradient import SquaredGradient
from filteropt.hyperparameters import Positive, check_fields
from filteropt.linalg import scalar
from filteropt.types import (
    Belief,
    Diag,
    Likelihood,
    LowRank,
    Memory,
    Observation,
    Outer,
    Packed,
    Raw,
    Scalar,
    Turn,
)

__all__ = ["Repeated", "Tempered"]


class PoweredLikelihood(WrappedLikelihood):
    """A likelihood raised to a power that may depend on the step."""

    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def _power(self, t: Tensor | float) -> Scalar:
        """The power at step ``t``."""
        raise NotImplementedError

    def scalars(self, t: Tensor | float) -> Packed:
        """The wrapped likelihood's numbers, then the power."""
        return *self.likelihood.scalars(t), self._power(t)

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The wrapped likelihood's, where the power does not make it overflow."""
        largest = max(1.0, float(self._power(1)))
        linear = "products" in self.needs
        return self.likelihood.gradient_limit(dtype) / (largest if linear else math.sqrt(largest))

    def init(self, p: Tensor) -> Memory:
        """What the wrapped likelihood remembers."""
        return self.likelihood.init(p)

    def observe(
        self, like: Memory, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Memory]:
        """The wrapped likelihood's gradient and precision, times the power."""
        *numbers, power = scalars
        obs, like = self.likelihood.observe(like, raw, p, prior, tuple(numbers))
        if isinstance(obs.curvature, LowRank):
            return Observation(power * obs.grad, LowRank(power**0.5 * obs.curvature.rows)), like
        if isinstance(obs.curvature, Outer):
            inputs, deltas = obs.curvature
            return Observation(power * obs.grad, Outer(inputs, power**0.5 * deltas)), like
        return Observation(power * obs.grad, Diag(power * obs.curvature.values)), like

    def curvature(self, like: Memory, p: Tensor, scalars: Packed) -> Diag | None:
        """The wrapped likelihood's running curvature, times the power."""
        *numbers, power = scalars
        kept = self.likelihood.curvature(like, p, tuple(numbers))
        return None if kept is None else Diag(power * kept.values)

    def transport(self, like: Memory, turn: Turn) -> Memory | None:
        """What the wrapped likelihood remembers, in coordinates that turned."""
        return self.likelihood.transport(like, turn)


@dataclass(frozen=True)
class Tempered(PoweredLikelihood):
    r"""Another likelihood, raised to a power τ.

    .. math:: p(d \mid w)^\tau: \qquad g \to \tau g, \qquad \Lambda \to \tau\Lambda

    It says how much a minibatch counts: :math:`\rho N/B` lets a minibatch of B out of N examples
    stand for all of them where a fraction ρ of the evidence fades per step (VON, IVON); less than 1
    is a cold likelihood, more a hot one. Nothing is approximated.

    Args:
        likelihood: any likelihood.
        power: τ; (0, inf).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import SquaredGradient, Tempered
        >>> like, p = Tempered(SquaredGradient(beta1=None), 0.5), torch.zeros(1)
        >>> obs, _ = like.observe((), Raw(p + 2), p, None, like.scalars(1))
        >>> obs.grad, obs.curvature.values
        (tensor([1.]), tensor([2.]))

    Source: Khan et al. (2018); see :eq:`eq-von`.
    """

    likelihood: Likelihood = field(default_factory=SquaredGradient)
    power: Positive = 1.0

    def _power(self, t: Tensor | float) -> Scalar:
        return self.power


@dataclass(frozen=True)
class Repeated(PoweredLikelihood):
    r"""Another likelihood, whose data count for less in every further epoch.

    .. math:: \tau_t = \frac{1}{\lceil t / M \rceil},

    with M steps per epoch: the e-th look at an example counts 1/e. Of E epochs, the evidence is
    that of :math:`1 + \tfrac12 + \dots + \tfrac1E \approx \ln E + 0.58` instead of E. What is
    approximated: an example's later looks are no news at all, but neither are they known to be
    repetitions here; where dynamics may forget,
    :class:`~filteropt.models.ForgetToPrior` with ``after=M`` counts every example once.

    Args:
        likelihood: any likelihood.
        steps_per_epoch: M, steps in which every example is seen once; (0, inf).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import Repeated, SquaredGradient
        >>> [float(Repeated(SquaredGradient(), 10).scalars(t)[-1]) for t in (1, 10, 11, 30, 31)]
        [1.0, 1.0, 0.5, 0.3333333333333333, 0.25]

    Source: U (Aitchison 2018) Sec. 2.2.9 poses the problem; see :eq:`eq-repeated`.
    """

    likelihood: Likelihood = field(default_factory=SquaredGradient)
    steps_per_epoch: Positive = 100.0

    def _power(self, t: Tensor | float) -> Scalar:
        return 1 / (scalar(t) / self.steps_per_epoch).ceil().clamp_min(1)
