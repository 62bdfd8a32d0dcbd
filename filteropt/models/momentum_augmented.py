"""Momentum: the optimum drifts with a velocity that is inferred, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from filteropt.hyperparameters import Interval, Nonnegative, PositiveFraction, check_fields
from filteropt.linalg import scalar
from filteropt.types import Dynamics, Packed, Transition

__all__ = ["MomentumAugmented"]


@dataclass(frozen=True)
class MomentumAugmented(Dynamics):
    r"""Optimal weights drift with a momentum of their own, inferred jointly with the weights.

    .. math::
        \begin{pmatrix} w \\ p \end{pmatrix}_{t+1} =
        \begin{pmatrix} 1-d & \eta \\ 0 & 1-\eta_p \end{pmatrix}
        \begin{pmatrix} w \\ p \end{pmatrix}_t
        + \begin{pmatrix} \eta_w\,\xi_w \\ \eta_p\,\xi_p \end{pmatrix},
        \qquad d = \frac{\eta^2+\eta_w^2}{2\sigma^2} .

    Gradients that keep their sign are explained by a momentum, which goes on moving the weight:
    momentum is a prediction here, and no device of the optimizer. What is approximated: every
    weight's optimum moves on its own, at common rates.

    Args:
        lr: η, how far a momentum of 1 moves the weight per step, in weight units; [0, inf).
        prior_variance: σ², variance of the optimal weights before any evidence, in squared weight
            units; (0, inf].
        lr_w: :math:`\eta_w`, standard deviation of the weight's own drift per step, in weight
            units; [0, inf).
        momentum_decay: :math:`\eta_p`, the fraction of momentum lost per step, and its noise's
            standard deviation; (0, 1].
        weight_decay: decoupled weight decay, so that the mean shrinks by ``lr * weight_decay`` per
            step, in inverse weight units; [0, inf). ``None`` means the model's own d.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.models import MomentumAugmented
        >>> tr = MomentumAugmented(lr=0.1, momentum_decay=0.5).transition(1)
        >>> [[round(float(f), 3) for f in row] for row in tr.F]
        [[0.95, 0.1], [0.0, 0.5]]

    Source: Aitchison (2018) Eq. 15–17; derived in :eq:`eq-momentum-augmented`.
    """

    k: ClassVar[int] = 2

    lr: Nonnegative = 1e-3
    prior_variance: Annotated[float, Interval("(0, inf]")] = 0.1
    lr_w: Nonnegative = 0.0
    momentum_decay: PositiveFraction = 0.1
    weight_decay: Nonnegative | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def initial_variance(self) -> Packed:
        """σ² for the weight and η_p/2 for the momentum, to first order its stationary variance."""
        return self.prior_variance, self.momentum_decay / 2

    def transition(self, t: Tensor | float) -> Transition:
        """F and Q; the same at every step ``t``."""
        lr, lr_w, decay = scalar(self.lr), scalar(self.lr_w), scalar(self.momentum_decay)
        pull = (lr**2 + lr_w**2) / (2 * self.prior_variance)
        return Transition(
            F=((1 - pull, lr), (0.0, 1 - decay)),
            Q=(lr_w**2, 0.0, decay**2),
            decay=pull if self.weight_decay is None else lr * self.weight_decay,
            lost=pull * (2 - pull),
        )
