"""The optimizers that everybody knows, as compositions: to compare with, and to vary.

Run them by :class:`filteropt.FilterOptimizer`; ``torch.optim`` has the faster code.
"""

from __future__ import annotations

from filteropt.approximations import (
    Averaged,
    AveragedSquaredGradient,
    FixedPoint,
    NoCurvature,
    SquaredGradient,
)
from filteropt.engine import Filter
from filteropt.hyperparameters import LearningRate, Momenta, Momentum, Nonnegative, checked
from filteropt.models import FixedNoise, RandomWalk

__all__ = ["adam", "adamw", "rmsprop", "sgd"]


@checked
def sgd(
    lr: LearningRate = 1e-3, momentum: Momentum = 0.0, weight_decay: Nonnegative = 0.0
) -> Filter:
    r"""SGD, with or without momentum: the filter that learns no curvature.

    .. math::
        \Sigma^+ = \sigma^2 = \frac{\text{lr}}{1-\beta}, \qquad
        \mu \leftarrow (1-\text{lr}\,\lambda)\mu - \text{lr} \sum_{s \le t} \beta^{t-s} g_s .

    With β = ``momentum``, kept constant, it is ``torch.optim.SGD(lr, momentum)``, dampening 0. The
    dynamics' own rate η does not matter: without evidence the variance rests at σ². Weight decay is
    decoupled, which is torch's without momentum.

    Args:
        lr: SGD's rate, for the loss as it is; [0, inf).
        momentum: decay of the momentum buffer; [0, 1). 0 keeps none.
        weight_decay: per unit of ``lr``; [0, inf).

    Returns:
        The composition.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch, filteropt
        >>> from filteropt.presets import sgd
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> opt = filteropt.FilterOptimizer([w], sgd, lr=0.1)
        >>> w.square().sum().backward()
        >>> opt.step()
        >>> w.data
        tensor([0.8000])

    Source: P (Aitchison 2020) Sec. 3.2; see :eq:`eq-sgd-limit`.
    """
    rate = lr / (1 - momentum) if lr else 1.0  # a frozen group has a filter, too
    return Filter(
        FixedNoise(lr, rate, weight_decay, discretization="exact"),
        NoCurvature(beta1=momentum or None, bias_correction=False),
        FixedPoint(),
    )


@checked
def rmsprop(lr: LearningRate = 1e-2, alpha: Momentum = 0.99) -> Filter:
    r"""RMSprop: the random walk at rest, to first order in the step.

    .. math::
        v_t = \alpha v_{t-1} + (1-\alpha) g_t^2, \qquad
        \mu \leftarrow \mu - \frac{\text{lr}}{\sqrt{v_t}}\, g_t

    It is ``torch.optim.RMSprop(lr, alpha, eps=0)``. See :class:`filteropt.BayesRMSprop` for the
    filter of which this is the limit.

    Args:
        lr: the rate; [0, inf).
        alpha: decay of the average squared gradient; [0, 1).

    Returns:
        The composition.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.presets import rmsprop
        >>> rmsprop(lr=0.1).dynamics
        RandomWalk(lr=0.1, weight_decay=0.0)

    Source: Tieleman and Hinton (2012); see :eq:`eq-rmsprop-limit`.
    """
    squares = SquaredGradient(beta1=None)
    return Filter(
        RandomWalk(lr), Averaged(squares, alpha, bias_correction=False), FixedPoint("taylor")
    )


@checked
def adamw(
    lr: LearningRate = 1e-3, betas: Momenta = (0.9, 0.999), weight_decay: Nonnegative = 1e-2
) -> Filter:
    r"""AdamW: AdaBayes-FP without a prior.

    .. math::
        \mu \leftarrow (1-\text{lr}\,\lambda)\mu
          - \text{lr}\,\frac{\hat m_t}{\sqrt{\hat v_t}}

    It is ``torch.optim.AdamW(lr, betas, eps=0, weight_decay)``; where :math:`\hat v = 0` a weight
    stays.

    Args:
        lr: the rate; [0, inf).
        betas: decays of the averages of the gradient and of its square; [0, 1) each.
        weight_decay: decoupled, per unit of ``lr``; [0, inf).

    Returns:
        The composition.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.presets import adamw
        >>> adamw().dynamics.prior_variance
        inf

    Source: P (Aitchison 2020) Sec. 3.2; derived in :eq:`eq-adamw`.
    """
    return Filter(
        FixedNoise(lr, float("inf"), weight_decay),
        AveragedSquaredGradient(betas=betas),
        FixedPoint(),
    )


@checked
def adam(lr: LearningRate = 1e-3, betas: Momenta = (0.9, 0.999)) -> Filter:
    """Adam, ``torch.optim.Adam(lr, betas, eps=0)``: :func:`adamw` without weight decay.

    Args:
        lr: the rate; [0, inf).
        betas: decays of the averages of the gradient and of its square; [0, 1) each.

    Returns:
        The composition.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.presets import adam
        >>> adam().dynamics.weight_decay
        0.0

    Source: P (Aitchison 2020) Sec. 3.2; derived in :eq:`eq-adamw`.
    """
    return adamw(lr, betas, weight_decay=0.0)
