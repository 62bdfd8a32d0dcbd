"""The stationary posterior: the variance at which the filter would come to rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from filteropt.hyperparameters import check_fields
from filteropt.linalg import lost_variance, stationary_flow, stationary_variance
from filteropt.types import Belief, Diag, LowRank, Observation, Posterior, Scalar, Transition

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

    stationary: ClassVar[bool] = True

    method: Literal["taylor", "exact"] = "taylor"

    def __post_init__(self) -> None:
        check_fields(self)

    def objection(self, transition: Transition) -> str | None:
        """Dynamics that never come to rest, or have no continuous-time limit for Taylor's form."""
        if not (float(transition.Q[0]) > 0 or float(lost_variance(transition)) < 0):
            return "without drift or forgetting their variance has no stationary point above zero"
        if self.method == "taylor" and transition.flow is None:
            return "they state no continuous-time limit (flow), which method='taylor' needs"
        return None

    def init(self, p: Tensor, var0: Scalar, k: int) -> Belief:
        """Nothing to remember."""
        return Belief((), ())

    def propagate(self, belief: Belief, transition: Transition) -> tuple[Scalar, Belief]:
        """Nothing to predict: conditioning finds the fixed point from the curvature alone."""
        return 0.0, belief

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """The displacement −Σ⁺ĝ at the fixed point; 0 where Σ⁺ is infinite."""
        variance = self.variance(prior, _diagonal(obs.curvature), transition)
        return torch.where(variance.isinf(), 0.0, -variance * obs.grad), prior

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """Σ⁺ at the fixed point of the likelihood's running curvature."""
        assert curvature is not None, "engine.check admits only likelihoods that average"
        precision = curvature.values
        if transition.pull is not None:
            precision = precision + transition.pull
        if self.method == "taylor":
            assert transition.flow is not None, "engine.check admits only dynamics with a flow"
            variance = stationary_flow(precision, *transition.flow)
        else:
            carried = transition.c * transition.F[0][0] ** 2
            variance = stationary_variance(
                precision, carried, transition.Q[0], lost_variance(transition)
            )
        return variance.clamp_min(torch.finfo(variance.dtype).tiny)


def _diagonal(curvature: Diag | LowRank) -> Diag:
    assert isinstance(curvature, Diag), "engine.check admits only diagonal curvature"
    return curvature
