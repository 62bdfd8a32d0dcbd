"""Steps by the variance predicted for the next step: the blog's Bayesian RMSprop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from filteropt.approximations.diagonal import Diagonal
from filteropt.linalg import predict_variance
from filteropt.types import Belief, Diag, Observation, Packed, Posterior, Scalar, Transition, Turn

__all__ = ["OneStepAhead"]


@dataclass(frozen=True)
class OneStepAhead(Posterior):
    r"""Another family's belief, whose mean moves by the variance predicted for the next step.

    .. math::
        \mu^+ = \mu^- - \Sigma^-_{t+1}\,\hat g, \qquad \Sigma^-_{t+1} = cF^2\,\Sigma^+ + Q .

    Under a random walk that is :math:`\Sigma^+ + \eta^2`, so that no weight ever steps by less than
    η² times its gradient. Bayes' rule itself steps by :math:`\Sigma^+` (what ``posterior`` alone
    does); the two differ by the drift of one step. What is approximated: the mean's update, which
    is made as if the optimum had drifted once more before the gradient was taken.

    Args:
        posterior: a family of one latent per weight that treats every weight on its own:
            :class:`Diagonal` or :class:`FixedPoint`.

    Raises:
        ValueError: another family.

    Example:
        >>> from filteropt.approximations import OneStepAhead
        >>> prior = OneStepAhead().init(torch.zeros(1), 0.5, 1)
        >>> obs = Observation(torch.tensor([1.0]), Diag(torch.tensor([2.0])))
        >>> walk = Transition(((1.0,),), (0.25,))
        >>> OneStepAhead().condition(0.0, prior, obs, walk)[0]    # -(0.25 + 0.25)
        tensor([-0.5000])

    Source: the "Bayesian derivation of RMSProp" blog post; see :eq:`eq-one-step-ahead`.
    """

    elementwise: ClassVar[bool] = True

    posterior: Posterior = field(default_factory=Diagonal)

    def __post_init__(self) -> None:
        if not getattr(self.posterior, "elementwise", False):
            raise ValueError(
                f"OneStepAhead: posterior={self.posterior!r} must treat every weight on its own; "
                f"use Diagonal() or FixedPoint()"
            )

    @property
    def accepts(self) -> tuple[type, ...]:  # type: ignore[override]  # a ClassVar elsewhere
        """The family's."""
        return self.posterior.accepts

    @property
    def stationary(self) -> bool:  # type: ignore[override]  # a ClassVar elsewhere
        """The family's."""
        return self.posterior.stationary

    @property
    def initial_variance(self) -> Scalar | None:
        """The family's, if it states one."""
        return getattr(self.posterior, "initial_variance", None)

    def objection(self, transition: Transition) -> str | None:
        """The family's."""
        return self.posterior.objection(transition)

    def init(self, p: Tensor, var0: Scalar | Packed, k: int) -> Belief:
        """The family's belief."""
        return self.posterior.init(p, var0, k)

    def propagate(
        self, belief: Belief, transition: Transition, p: Tensor | None = None
    ) -> tuple[Scalar | Tensor, Belief]:
        """The family's prediction."""
        return self.posterior.propagate(belief, transition)

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """The family's posterior, and the displacement by the variance that will age from it."""
        _, belief = self.posterior.condition(disp, prior, obs, transition)
        assert isinstance(obs.curvature, Diag), "engine.check admits only diagonal curvature"
        settled = self.posterior.variance(belief, obs.curvature, transition)
        ahead = predict_variance(settled, transition)
        return torch.where(settled == math.inf, 0.0, -ahead * obs.grad), belief

    def transport(self, belief: Belief, turn: Turn) -> Belief | None:
        """The family's belief, in coordinates that turned."""
        return self.posterior.transport(belief, turn)

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """The family's posterior variance, Σ⁺."""
        return self.posterior.variance(belief, curvature, transition)
