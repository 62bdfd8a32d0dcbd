"""Vadam's family: a belief by Bayes' rule, a mean that moves by the evidence's square root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from filteropt.hyperparameters import Positive, check_fields
from filteropt.types import Belief, Diag, Observation, Packed, Posterior, Scalar, Transition, Turn

__all__ = ["SquareRooted"]


class Evidence(NamedTuple):
    """Precision beyond the prior's, and the weight that its running average has gathered."""

    evidence: Tensor
    gathered: Tensor


@dataclass(frozen=True)
class SquareRooted(Posterior):
    r"""Independent weights with Bayes' covariance, whose mean moves as Adam's does.

    Under dynamics that forget to a prior of precision λ at the rate ρ, the belief's precision is
    :math:`1/\Sigma = E + \lambda`, with :math:`E^+ = (1-\rho)E + \Lambda`. The mean moves by the
    debiased square root of :math:`s = E/N` instead of by Σ:

    .. math:: \mu^+ = \mu^- - \frac{\hat g/N}{\sqrt{s/(1-(1-\rho)^t)} + \lambda/N} .

    What is approximated: Bayes' rule for the mean, by a heuristic that moves weights of little
    evidence less far, as RMSprop and Adam do.

    Args:
        dataset_size: N, the examples whose evidence is counted; (0, inf).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import SquareRooted
        >>> from filteropt.models import ForgetToPrior
        >>> family, fade = SquareRooted(), ForgetToPrior(0.5, 1.0).transition(1)
        >>> _, prior = family.propagate(family.init(torch.zeros(1), 1.0, 1), fade)
        >>> obs = Observation(torch.tensor([1.0]), Diag(torch.tensor([0.5])))
        >>> disp, post = family.condition(0.0, prior, obs, fade)
        >>> disp, family.variance(post, None, fade)    # -1 / (sqrt(1) + 1), 1 / (0.5 + 1)
        (tensor([-0.5000]), tensor([0.6667]))

    Source: Khan et al. (2018), Vadam; see :eq:`eq-vadam`.
    """

    elementwise: ClassVar[bool] = True

    dataset_size: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def objection(self, transition: Transition) -> str | None:
        """Dynamics that do not forget to a prior."""
        if transition.pull is None or not float(transition.c) > 1:
            return "evidence beyond the prior's can be told apart where dynamics forget to one"
        return None

    def init(self, p: Tensor, var0: Scalar | Packed, k: int) -> Belief:
        """No evidence: the belief is the prior."""
        return Belief((), Evidence(torch.zeros_like(p), torch.zeros_like(p.sum())))

    def propagate(
        self, belief: Belief, transition: Transition, p: Tensor | None = None
    ) -> tuple[Scalar | Tensor, Belief]:
        """Evidence fades."""
        faded = (x / transition.c for x in belief.cov)
        return 0.0, Belief((), Evidence(*faded))

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """The evidence gained, and the displacement by its square root."""
        assert isinstance(obs.curvature, Diag), "engine.check admits only diagonal curvature"
        rate = 1 - 1 / transition.c
        faded, weight = prior.cov
        evidence = Evidence(faded + obs.curvature.values, weight + rate)
        average = self.dataset_size * (evidence.evidence / evidence.gathered)
        step = obs.grad / (average.sqrt() + _precision(transition))
        return disp - step, Belief((), evidence)

    def transport(self, belief: Belief, turn: Turn) -> Belief:
        """The evidence, in coordinates that turned."""
        evidence, gathered = belief.cov
        return Belief((), Evidence(turn.variances(evidence), gathered))

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """1/(evidence + λ)."""
        return 1 / (belief.cov[0] + _precision(transition))


def _precision(transition: Transition) -> Scalar:
    """The prior's precision, λ."""
    assert transition.pull is not None, "engine.check admits only dynamics that forget to a prior"
    return transition.pull / (1 - 1 / transition.c)
