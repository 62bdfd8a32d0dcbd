"""The stationary posterior: the variance at which the filter would come to rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from filteropt import regression
from filteropt.hyperparameters import check_fields
from filteropt.linalg import lost_variance, stationary_flow, stationary_variance
from filteropt.stationary_pair import stationary_column, stationary_pair
from filteropt.types import (
    Belief,
    Diag,
    LowRank,
    Observation,
    Outer,
    Packed,
    Posterior,
    Scalar,
    Transition,
    Turn,
)

__all__ = ["FixedPoint"]


@dataclass(frozen=True)
class FixedPoint(Posterior):
    r"""Independent weights whose variance is always at its fixed point: no variance is stored.

    For a running curvature h, with :math:`a = cF^2` and :math:`q = Q`, predicting and conditioning
    leave unchanged

    .. math::
        \Sigma^+ = \frac{2q}{b + \sqrt{b^2 + 4haq}}, \quad b = 1 - a + hq
        \qquad\text{(exact)}

    and in continuous time, equally to first order in the step (for fixed noise, P Eq. 20),

    .. math::
        1/\Sigma^+ = \frac{1}{2\sigma^2} + \sqrt{\frac{1}{4\sigma^4} + \frac{h}{\eta^2}}
        \qquad\text{(Taylor)} .

    Dynamics that forget have one too: :math:`\lambda/h` for proportional noise, and a pull to the
    prior is added to h. What is approximated: the variance is taken to have settled, which the
    recursion does within about 1/(η√h) steps of data-rich weights and σ²/η² steps of data-poor
    ones. Taylor's relative error grows as η√h/2. Where nothing bounds the variance (σ² = ∞ and
    h = 0) the mean stays.

    Args:
        method: ``"taylor"`` or ``"exact"``.

    Raises:
        ValueError: another method.

    Example:
        >>> from filteropt.approximations import FixedPoint
        >>> from filteropt.models import FixedNoise
        >>> adam = FixedNoise(lr=0.1, prior_variance=float("inf")).transition(1)
        >>> obs = Observation(torch.tensor([2.0]), Diag(torch.tensor([16.0])))
        >>> FixedPoint().condition(0.0, Belief((), ()), obs, adam)[0]    # -lr * 2 / sqrt(16)
        tensor([-0.0500])

    Source: P (Aitchison 2020) Eq. 19–20; derived in :eq:`eq-fixed-point-exact` and
    :eq:`eq-fixed-point-taylor`, its error in :eq:`eq-taylor-error`.
    """

    latents: ClassVar[range] = range(1, 3)
    stationary: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    method: Literal["taylor", "exact"] = "taylor"

    def __post_init__(self) -> None:
        check_fields(self)

    def objection(self, transition: Transition) -> str | None:
        """Dynamics that never come to rest, or have no continuous-time limit for Taylor's form."""
        if (objection := regression.feels_weight(transition)) is not None:
            return objection
        driven = any(float(q) > 0 for q in transition.Q)
        if not (driven or float(lost_variance(transition)) < 0):
            return "without drift or forgetting their variance has no stationary point above zero"
        if self.method == "taylor" and transition.flow is None:
            return "they state no continuous-time limit (flow), which method='taylor' needs"
        return None

    def init(self, p: Tensor, var0: Scalar | Packed, k: int) -> Belief:
        """The other latents' means, at zero; no variance to remember."""
        return Belief(tuple(torch.zeros_like(p) for _ in range(1, k)), ())

    def drift(self, belief: Belief, transition: Transition) -> Scalar | Tensor:
        """What the other latents' means move the weight by."""
        return regression.drift(belief.aux, transition.F[0])

    def propagate(
        self, belief: Belief, transition: Transition, p: Tensor | None = None
    ) -> tuple[Scalar | Tensor, Belief]:
        """The latents' means; conditioning finds the variance from the curvature alone."""
        aux = regression.carry(belief.aux, transition)
        return self.drift(belief, transition), Belief(aux, ())

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """The displacement by Σ⁺ at the fixed point; 0 where Σ⁺ is infinite."""
        column = self._rest(_diagonal(obs.curvature), transition)
        column = tuple(torch.where(column[0] == math.inf, 0.0, x) for x in column)
        return regression.move(disp, prior.aux, obs, column, ())

    def transport(self, belief: Belief, turn: Turn) -> Belief:
        """The other latents' means, in coordinates that turned."""
        return Belief(tuple(map(turn.means, belief.aux)), ())

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """Σ⁺ at the fixed point of the likelihood's running curvature."""
        assert curvature is not None, "engine.check admits only likelihoods that average"
        return self._rest(curvature, transition)[0]

    def covariance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """Every weight's covariance with its other latents, at the fixed point."""
        assert curvature is not None, "engine.check admits only likelihoods that average"
        if len(transition.F) == 1:
            return self.variance(belief, curvature, transition)[..., None, None]
        return regression.covariance(stationary_pair(_pulled(curvature, transition), transition))

    def _rest(self, curvature: Diag, transition: Transition) -> tuple[Tensor, ...]:
        """Σ⁺'s first column at the fixed point."""
        precision = _pulled(curvature, transition)
        if len(transition.F) == 2:
            return stationary_column(precision, transition)
        if self.method == "taylor":
            assert transition.flow is not None, "engine.check admits only dynamics with a flow"
            variance = stationary_flow(precision, *transition.flow)
        else:
            carried = transition.c * transition.F[0][0] ** 2
            variance = stationary_variance(
                precision, carried, transition.Q[0], lost_variance(transition)
            )
        return (variance.clamp_min(torch.finfo(variance.dtype).tiny),)


def _pulled(curvature: Diag, transition: Transition) -> Tensor:
    """The precision observed per step, the prior's pull included."""
    return curvature.values if transition.pull is None else curvature.values + transition.pull


def _diagonal(curvature: Diag | LowRank | Outer) -> Diag:
    assert isinstance(curvature, Diag), "engine.check admits only diagonal curvature"
    return curvature
