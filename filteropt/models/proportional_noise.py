"""Process noise in proportion to the belief's own covariance: fading memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from filteropt.hyperparameters import Momentum, check_fields
from filteropt.linalg import scalar
from filteropt.types import Dynamics, Flow, Transition

__all__ = ["ProportionalNoise"]


@dataclass(frozen=True)
class ProportionalNoise(Dynamics):
    r"""Optimal weights drift in proportion to what is not known of them: old evidence fades.

    .. math:: \Sigma^- = \Sigma^+ + \frac{\lambda}{1-\lambda}\,\Sigma^+
        = \frac{\Sigma^+}{1-\lambda}

    Evidence that is s steps old counts :math:`(1-\lambda)^s` times. At rest
    :math:`\Sigma^+ = \lambda/\langle e^2\rangle`: a mean-square normaliser without a square root,
    the natural gradient at rate λ. What is approximated: the drift has no scale of its own, so that
    the variance of a weight without evidence grows without bound (filters stop it before it
    overflows); :class:`ForgetToPrior` bounds it.

    Args:
        forgetting: λ, the fraction of evidence that fades per step; [0, 1). 0 is :class:`Static`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.models import ProportionalNoise
        >>> float(ProportionalNoise(0.5).transition(1).c)
        2.0

    Source: Ollivier (2018); P (Aitchison 2020) App. C, with the signs corrected; derived in
    :eq:`eq-proportional` and :eq:`eq-proportional-fixed-point`.
    """

    k: ClassVar[int] = 1

    forgetting: Momentum = 0.01

    def __post_init__(self) -> None:
        check_fields(self)

    def transition(self, t: Tensor | float) -> Transition:
        """F = 1, Q = 0 and c = 1/(1 − λ); the same at every step ``t``."""
        rate = scalar(self.forgetting)
        flow = Flow(-rate, None)
        return Transition(((1.0,),), (0.0,), c=1 / (1 - rate), lost=-rate / (1 - rate), flow=flow)
