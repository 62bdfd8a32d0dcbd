"""Variances that stay positive whatever the curvature: a step along the precisions' geodesic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from filteropt import regression
from filteropt.approximations.diagonal import Diagonal
from filteropt.hyperparameters import Interval
from filteropt.types import Belief, Diag, Observation, Scalar, Transition

__all__ = ["Retracted"]


@dataclass(frozen=True)
class Retracted(Diagonal):
    r"""Independent weights whose precision follows its geodesic instead of its tangent.

    With P the weight's precision before the step and :math:`V = 1/\Sigma^- + \Lambda - P` the
    change that dynamics and evidence ask for,

    .. math:: P^+ = P + V + \frac{V^2}{2P} = \tfrac12\Bigl(P + \frac{(P+V)^2}{P}\Bigr) > 0,
        \qquad \mu^+ = \mu^- - \hat g / P^+ ,

    the exponential map of positive numbers with the metric of Gaussians, to second order: positive
    for every V, where Bayes' rule, :math:`P + V`, is not if Λ is an estimate that may be negative,
    such as :class:`Price`. What is approximated: Bayes' rule, with a relative error of
    :math:`V^2/2P^2`, always upwards. The form used subtracts nothing.

    Args:
        initial_variance: variance before any evidence, squared weight units; (0, inf). ``None``
            takes the dynamics' ``initial_variance``, else its stationary variance, else 0.01.
        order: 2, the retraction; 1, Bayes' rule as long as it leaves at least half of P, and half
            of P where it does not.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import Retracted
        >>> family, still = Retracted(), Transition(((1.0,),), (0.0,))
        >>> prior = family.init(torch.zeros(2), 1.0, 1)
        >>> _, prior = family.propagate(prior, still)
        >>> obs = Observation(torch.ones(2), Diag(torch.tensor([-3.0, 1.0])))
        >>> _, post = family.condition(0.0, prior, obs, still)
        >>> 1 / post.cov[0]    # (1 + (1 - 3)^2) / 2 and (1 + (1 + 1)^2) / 2
        tensor([2.5000, 2.5000])

    Source: Lin et al. (2020); Shen et al. (2024), IVON; derived in :eq:`eq-retraction`.
    """

    signed: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    initial_variance: Annotated[float, Interval("(0, inf)")] | None = None
    order: Literal[1, 2] = 2

    def propagate(
        self, belief: Belief, transition: Transition, p: Tensor | None = None
    ) -> tuple[Scalar | Tensor, Belief]:
        """Σ⁻, and beside it Σ⁺ of the last step, from which the geodesic starts."""
        drift, prior = super().propagate(belief, transition)
        return drift, Belief(prior.aux, (*prior.cov, belief.cov[0]))

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """Σ⁺ at the end of the geodesic, and the displacement −Σ⁺ĝ."""
        assert isinstance(obs.curvature, Diag), "engine.check admits only diagonal curvature"
        *form, last = prior.cov
        growth = last / form[0] + last * obs.curvature.values  # (P + V)/P
        growth = (1 + growth * growth) / 2 if self.order == 2 else growth.clamp_min(0.5)
        limits = torch.finfo(last.dtype)
        variance = (last / growth).clamp(limits.tiny, limits.max)
        cov, column = regression.observed(form, variance)
        return regression.move(disp, prior.aux, obs, column, cov)
