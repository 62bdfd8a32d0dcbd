"""AdaBayes and AdaBayes-FP: fixed process noise and squared gradients."""

from __future__ import annotations

from typing import Literal

from filteropt.approximations import (
    AveragedSquaredGradient,
    Diagonal,
    FixedPoint,
    SquaredGradient,
)
from filteropt.engine import Filter
from filteropt.hyperparameters import (
    LearningRate,
    Momenta,
    Momentum,
    Nonnegative,
    Positive,
    ScheduledRate,
    ScheduledRateOrInf,
    checked,
)
from filteropt.models import FixedNoise
from filteropt.optimizer import FilterOptimizer

__all__ = ["AdaBayes", "AdaBayesFP", "adabayes", "adabayes_fp"]


@checked
def adabayes(
    lr: LearningRate = 1e-3,
    lr_sgd: ScheduledRate = 0.1,
    beta1: Momentum = 0.9,
    weight_decay: Nonnegative | None = 0.05,
    *,
    batch_size: Positive = 1,
    discretization: Literal["euler", "exact"] = "euler",
) -> Filter:
    """The composition of :class:`~filteropt.AdaBayes` (same arguments)."""
    return Filter(
        FixedNoise(lr, lr_sgd / batch_size, weight_decay, discretization),
        SquaredGradient(batch_size, beta1),
        Diagonal(),
    )


@checked
def adabayes_fp(
    lr: LearningRate = 1e-3,
    lr_sgd: ScheduledRateOrInf = 0.1,
    betas: Momenta = (0.9, 0.999),
    weight_decay: Nonnegative | None = 0.05,
    *,
    batch_size: Positive = 1,
    eps: Nonnegative = 0.0,
    fixed_point: Literal["taylor", "exact"] = "taylor",
) -> Filter:
    """The composition of :class:`~filteropt.AdaBayesFP` (same arguments)."""
    return Filter(
        FixedNoise(lr, lr_sgd / batch_size, weight_decay),
        AveragedSquaredGradient(batch_size, betas, eps),
        FixedPoint(fixed_point),
    )


class AdaBayes(FilterOptimizer):
    r"""AdaBayes: the scalar Kalman filter with fixed process noise and squared gradients.

    With :math:`g = B\,` ``p.grad``, :math:`\eta` = ``lr``, :math:`\sigma^2` = ``lr_sgd / B`` and
    :math:`\lambda` = ``lr * weight_decay``,

    .. math::
        \Sigma^- = \Bigl(1-\frac{\eta^2}{2\sigma^2}\Bigr)^2\Sigma^+ + \eta^2, \qquad
        \Sigma^+ = \frac{1}{1/\Sigma^- + g^2}, \qquad
        \mu \leftarrow (1-\lambda)\,\mu - \Sigma^+ \hat g .

    Weights with little data (:math:`\eta/\sqrt{\langle g^2\rangle} \gg \sigma^2`) take SGD's steps
    at rate ``lr_sgd``, weights with much data take AdamW's at rate ``lr``. What is approximated:
    each weight's optimum moves on its own, as an Ornstein–Uhlenbeck process, and one squared
    minibatch gradient stands for the curvature. ``lr_sgd`` multiplies an *averaged* gradient: it
    is the rate of SGD with ``dampening = momentum``, ten times that of plain momentum 0.9.

    Args:
        params: parameters, named parameters or groups of them.
        lr: η, the rate in the data-rich limit (Adam's); [0, inf). 0 freezes the group.
        lr_sgd: the rate in the data-poor limit (SGD's, for the mean loss); (0, inf).
        beta1: decay of the gradient's running average; [0, 1).
        weight_decay: decoupled, per unit of ``lr`` as in AdamW; [0, inf). ``None`` takes the decay
            that the dynamics themselves imply, η²/(2σ²) per step.
        batch_size: B, the examples that the loss averages over: the batch size for a mean loss, 1
            for a summed one; (0, inf).
        discretization: ``"euler"`` as in the paper, which needs lr² < 4 lr_sgd / B, or
            ``"exact"``, the Ornstein–Uhlenbeck transition itself, as released by its author.
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"posterior"``, Algorithm 1, or ``"prediction"``, the strict filter.
        maximize: maximise instead of minimise.
        on_nonfinite: ``"raise"``, ``"skip"`` the step, or ``"ignore"``: look at no gradient.
        fused: ``None``, ``True`` to compile the step, or ``False``.
        capturable: ``True`` for steps that CUDA graphs can capture.
        belief_dtype: ``None``, or ``torch.bfloat16`` for beliefs in half the memory.
        model: the module that owns the parameters, for their names.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind.
        ValueError: a hyperparameter outside its range.

    Example:
        >>> import torch, filteropt
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = filteropt.AdaBayes([w], lr=1e-2, lr_sgd=0.5, batch_size=10)
        >>> w.square().mean().backward()
        >>> opt.step()
        >>> opt.posterior_variance(w)    # smaller where the gradient was larger
        tensor([0.0083, 0.0024])

    Source: Aitchison (2020), Algorithm 1; derived in :eq:`eq-algorithm-1`, with its limits
    :eq:`eq-sgd-limit` and :eq:`eq-adam-limit`.
    """

    preset = staticmethod(adabayes)


class AdaBayesFP(FilterOptimizer):
    r"""AdaBayes-FP: AdaBayes with its variance always at the fixed point.

    With Adam's debiased averages :math:`\langle g\rangle` and :math:`\langle g^2\rangle` of
    :math:`g = B\,` ``p.grad``,

    .. math::
        \frac{1}{\Sigma^+} = \frac{1}{2\sigma^2}
          + \sqrt{\frac{1}{4\sigma^4} + \frac{\langle g^2\rangle + \varepsilon}{\eta^2}}, \qquad
        \mu \leftarrow (1-\lambda)\,\mu - \Sigma^+ \langle g\rangle .

    ``lr_sgd = inf`` is AdamW without its ε, whose place :math:`\eta/(2\sigma^2)` takes to first
    order in :math:`1/\sigma^2`.
    What is approximated: as :class:`AdaBayes`, and the variance is taken to have settled.

    Args:
        params: parameters, named parameters or groups of them.
        lr: η, the rate in the data-rich limit (Adam's); [0, inf). 0 freezes the group.
        lr_sgd: the rate in the data-poor limit (SGD's, for the mean loss); (0, inf].
        betas: decays of the averages of the gradient and of its square; [0, 1) each.
        weight_decay: decoupled, per unit of ``lr`` as in AdamW; [0, inf). ``None`` takes the decay
            that the dynamics themselves imply, η²/(2σ²) per step.
        batch_size: B, the examples that the loss averages over: the batch size for a mean loss, 1
            for a summed one; (0, inf).
        eps: added to the average square of the summed loss' gradient; [0, inf).
        fixed_point: ``"taylor"`` as in the paper, or ``"exact"`` for the recursion's own.
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"posterior"``, Algorithm 2, or ``"prediction"``, the strict filter.
        maximize: maximise instead of minimise.
        on_nonfinite: ``"raise"``, ``"skip"`` the step, or ``"ignore"``: look at no gradient.
        fused: ``None``, ``True`` to compile the step, or ``False``.
        capturable: ``True`` for steps that CUDA graphs can capture.
        belief_dtype: ``None``, or ``torch.bfloat16`` for beliefs in half the memory.
        model: the module that owns the parameters, for their names.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind.
        ValueError: a hyperparameter outside its range.

    Example:
        >>> import torch, filteropt
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> adamw = filteropt.AdaBayesFP([w], lr=1e-2, lr_sgd=float("inf"), weight_decay=0.0)
        >>> w.square().mean().backward()
        >>> adamw.step()
        >>> w.data    # Adam's first step is lr times the gradient's sign
        tensor([ 0.9900, -1.9900])

    Source: Aitchison (2020), Algorithm 2; derived in :eq:`eq-algorithm-2`, with its identity
    :eq:`eq-adamw` and the prior's ε in :eq:`eq-adam-epsilon`.
    """

    preset = staticmethod(adabayes_fp)
