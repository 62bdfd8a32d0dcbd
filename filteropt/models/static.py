"""Static dynamics: the optimum stands still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from filteropt.types import Dynamics, Transition

__all__ = ["Static"]


@dataclass(frozen=True)
class Static(Dynamics):
    r"""The optimal weights do not move: every gradient speaks of the same ones.

    .. math:: w^*_{t+1} = w^*_t, \qquad \Sigma^-_{t+1} = \Sigma^+_t .

    Evidence only accumulates, :math:`1/\Sigma_t = 1/\Sigma_0 + \sum_{s \le t} \Lambda_s`, so that
    the steps fall like 1/t: natural gradient with an annealed rate, and with Gauss–Newton curvature
    on a linear model Bayesian regression, exactly. What is approximated: that the other weights'
    updates move each weight's optimum is left out.

    Example:
        >>> from filteropt.models import Static
        >>> still = Static().transition(1)
        >>> still.F, still.Q, still.lost
        (((1.0,),), (0.0,), 0.0)

    Source: Aitchison (2018) Eq. 13–14; Ollivier (2018); derived in :eq:`eq-static` and
    :eq:`eq-recursive-least-squares`.
    """

    k: ClassVar[int] = 1

    def transition(self, t: Tensor | float) -> Transition:
        """F = 1 and Q = 0 at every step ``t``."""
        return Transition(F=((1.0,),), Q=(0.0,), lost=0.0)
