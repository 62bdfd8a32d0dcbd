"""The diagonal posterior: one variance per weight, filtered step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from filteropt.hyperparameters import Interval, check_fields
from filteropt.linalg import overshoots, predict_variance
from filteropt.types import Belief, Diag, Observation, Posterior, Scalar, Transition

__all__ = ["Diagonal"]


class Variance(NamedTuple):
    """The posterior variance of every weight."""

    variance: Tensor


@dataclass(frozen=True)
class Diagonal(Posterior):
    r"""Independent weights: the scalar Kalman filter, one per weight.

    .. math::
        \Sigma^-_t &= c F^2\, \Sigma^+_{t-1} + Q \\
        \Sigma^+_t &= \frac{\Sigma^-_t}{1 + \Sigma^-_t \Lambda_t}
          = \frac{1}{1/\Sigma^-_t + \Lambda_t}, \qquad
        \mu^+_t = \mu^-_t - \Sigma^+_t\, \hat g_t .

    What is approximated: correlations between weights are dropped, so that each variance is that
    of one optimal weight *given the other weights' present values*. The form used for
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
        >>> prior = Belief(aux=(), cov=Variance(torch.tensor([0.5])))
        >>> obs = Observation(torch.tensor([1.0]), Diag(torch.tensor([2.0])))
        >>> disp, post = Diagonal().condition(0.0, prior, obs, Transition(((1.0,),), (0.0,)))
        >>> disp, post.cov.variance
        (tensor([-0.2500]), tensor([0.2500]))

    Source: P (Aitchison 2020) Eq. 15–17; derived in :eq:`eq-predict` and :eq:`eq-condition`.
    """

    initial_variance: Annotated[float, Interval("(0, inf)")] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def objection(self, transition: Transition) -> str | None:
        """Overshooting dynamics: their variance would grow without bound."""
        return overshoots(transition)

    def init(self, p: Tensor, var0: Scalar, k: int) -> Belief:
        """Variance ``var0`` for every weight."""
        return Belief((), Variance(torch.full_like(p, float(var0))))

    def propagate(self, belief: Belief, transition: Transition) -> tuple[Scalar, Belief]:
        """Σ⁻ = c F² Σ⁺ + Q, pulled; the other latents, of which there are none, move nothing."""
        return 0.0, Belief((), Variance(predict_variance(belief.cov[0], transition)))

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """Σ⁺ = Σ⁻/(1 + Σ⁻Λ), and the displacement −Σ⁺ĝ."""
        assert isinstance(obs.curvature, Diag), "engine.check admits only diagonal curvature"
        (variance,) = prior.cov
        posterior = variance / (1 + variance * obs.curvature.values)
        posterior = posterior.clamp_min(torch.finfo(posterior.dtype).tiny)
        return -posterior * obs.grad, Belief((), Variance(posterior))

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """The filtered variance."""
        return belief.cov[0].clone()
