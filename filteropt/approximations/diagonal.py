"""The diagonal posterior: one variance per weight, filtered step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from filteropt import regression
from filteropt.hyperparameters import Interval, check_fields
from filteropt.linalg import overshoots
from filteropt.regression import condition, independent, predict
from filteropt.types import Belief, Diag, Observation, Packed, Posterior, Scalar, Transition, Turn

__all__ = ["Diagonal"]


@dataclass(frozen=True)
class Diagonal(Posterior):
    r"""Independent weights: the scalar Kalman filter, one per weight, or one per weight's latents.

    .. math::
        \Sigma^-_t &= c F^2\, \Sigma^+_{t-1} + Q \\
        \Sigma^+_t &= \frac{\Sigma^-_t}{1 + \Sigma^-_t \Lambda_t}
          = \frac{1}{1/\Sigma^-_t + \Lambda_t}, \qquad
        \mu^+_t = \mu^-_t - \Sigma^+_t\, \hat g_t .

    What is approximated: correlations between weights are dropped, so that each variance is that
    of one optimal weight *given the other weights' present values*. With k latents per weight
    (:class:`~filteropt.models.MomentumAugmented`) each weight has its own k×k filter, whose
    covariance is kept as a regression on the weight and stays positive by form. The form used for
    :math:`\Sigma^+` divides by nothing that can vanish; a variance too small for its dtype is held
    at the smallest normal number.

    Args:
        initial_variance: variance before any evidence, squared weight units; (0, inf). ``None``
            takes the dynamics' ``initial_variance``, else its stationary variance, else 0.01.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import Diagonal
        >>> prior = Diagonal().init(torch.zeros(1), 0.5, 1)
        >>> obs = Observation(torch.tensor([1.0]), Diag(torch.tensor([2.0])))
        >>> disp, post = Diagonal().condition(0.0, prior, obs, Transition(((1.0,),), (0.0,)))
        >>> disp, post.cov.variance
        (tensor([-0.2500]), tensor([0.2500]))

    Source: P (Aitchison 2020) Eq. 15–17; derived in :eq:`eq-predict` and :eq:`eq-condition`.
    """

    latents: ClassVar[range] = range(1, 17)
    elementwise: ClassVar[bool] = True

    initial_variance: Annotated[float, Interval("(0, inf)")] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def objection(self, transition: Transition) -> str | None:
        """Overshooting dynamics, or other latents that feel the weight, whose mean is elsewhere."""
        return regression.feels_weight(transition) or overshoots(transition)

    def init(self, p: Tensor, var0: Scalar | Packed, k: int) -> Belief:
        """Variances ``var0`` for every weight's latents, independent, and means of zero."""
        spread = var0 if isinstance(var0, tuple) else (var0,) * k
        variances = [torch.full_like(p, float(v)) for v in spread]
        means = tuple(torch.zeros_like(p) for _ in range(1, k))
        return Belief(means, independent(variances))

    def drift(self, belief: Belief, transition: Transition) -> Scalar | Tensor:
        """What the other latents' means move the weight by."""
        return regression.drift(belief.aux, transition.F[0])

    def propagate(
        self, belief: Belief, transition: Transition, p: Tensor | None = None
    ) -> tuple[Scalar | Tensor, Belief]:
        """Σ⁻ = c F Σ⁺ Fᵀ + Q, pulled, and the latents' means F μ⁺."""
        aux = regression.carry(belief.aux, transition)
        return self.drift(belief, transition), Belief(aux, predict(belief.cov, transition))

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """Σ⁺ = ((Σ⁻)⁻¹ + Λ)⁻¹, and the displacement −Σ⁺(ĝ + Λδ) after having moved by δ."""
        assert isinstance(obs.curvature, Diag), "engine.check admits only diagonal curvature"
        cov, column = condition(prior.cov, obs.curvature.values)
        return regression.move(disp, prior.aux, obs, column, cov)

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """The weight's filtered variance."""
        return belief.cov[0].clone()

    def transport(self, belief: Belief, turn: Turn) -> Belief:
        """Means, and the covariances of each coordinate's latents, in coordinates that turned."""
        aux = tuple(map(turn.means, belief.aux))
        return Belief(aux, regression.transport(belief.cov, turn.variances))

    def covariance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """Every weight's covariance with its other latents."""
        return regression.covariance(belief.cov)
