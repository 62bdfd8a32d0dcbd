"""Forgetting to the prior: old evidence fades, and the prior's takes its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from filteropt.hyperparameters import Interval, Momentum, Nonnegative, check_fields
from filteropt.linalg import scalar
from filteropt.types import Dynamics, Flow, Scalar, Transition

__all__ = ["ForgetToPrior"]


@dataclass(frozen=True)
class ForgetToPrior(Dynamics):
    r"""A belief forgets towards the prior :math:`N(0, \Sigma_0)`, by their geometric mean.

    .. math::
        q^- \propto (q^+)^{1-\rho}\, p_0^{\,\rho}: \qquad
        \frac{1}{\Sigma^-} = \frac{1-\rho}{\Sigma^+} + \frac{\rho}{\Sigma_0}, \qquad
        \mu^- = \mu^+ - \frac{\rho\,\Sigma^-}{\Sigma_0}\,\mu^+ .

    It is :class:`ProportionalNoise`, followed by one observation of every weight at 0 with
    precision :math:`\rho/\Sigma_0`: without evidence the belief tends to the prior instead of
    growing without bound, and the pull on a weight falls as evidence for it grows. At rest
    :math:`1/\Sigma^+ = 1/\Sigma_0 + h/\rho`. It acts in the first step, too, which
    leaves the prior as it is. What is approximated: drift is a loss of evidence, at one rate for
    every weight.

    Args:
        forgetting: ρ, the fraction of evidence that fades per step; [0, 1). 0 is :class:`Static`.
        prior_variance: :math:`\Sigma_0`, in squared weight units; (0, inf]. It is also the variance
            before any evidence, unless the posterior states another (as it must for inf, which
            forgets towards no prior at all).
        after: steps before forgetting starts; [0, inf). With M steps in the first epoch,
            ``ForgetToPrior(1 / M, after=M)`` counts every example once, however often it is seen:
            from the second epoch on, one minibatch's evidence fades for each that comes in.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.models import ForgetToPrior
        >>> tr = ForgetToPrior(forgetting=0.5, prior_variance=2.0).transition(1)
        >>> float(1 / (1 / (tr.c * 2.0) + tr.pull))    # the prior itself stays
        2.0

    Source: Khan et al. (2018), the variational online Newton method's dynamics; derived in
    :eq:`eq-forget-to-prior`, :eq:`eq-pull` and, for ``after``, :eq:`eq-once`.
    """

    k: ClassVar[int] = 1

    forgetting: Momentum = 0.01
    prior_variance: Annotated[float, Interval("(0, inf]")] = 0.1
    after: Nonnegative = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def initial_variance(self) -> Scalar:
        """Σ₀, the variance before any evidence."""
        return self.prior_variance

    def transition(self, t: Tensor | float) -> Transition:
        """F = 1, Q = 0, c = 1/(1 − ρ) and the prior's pull, once forgetting has started."""
        rate = torch.where(scalar(t).clamp_min(1) > self.after, scalar(self.forgetting), 0.0)
        return Transition(
            F=((1.0,),),
            Q=(0.0,),
            c=1 / (1 - rate),
            lost=-rate / (1 - rate),
            flow=Flow(-rate, None),
            pull=rate / self.prior_variance,
        )
