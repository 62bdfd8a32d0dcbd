"""Bayesian RMSprop: a random walk, seen through averaged squared gradients."""

from __future__ import annotations

from typing import Annotated

from filteropt.approximations import Averaged, Diagonal, FixedPoint, OneStepAhead, SquaredGradient
from filteropt.engine import Filter
from filteropt.hyperparameters import (
    Interval,
    LearningRate,
    Momentum,
    Nonnegative,
    Positive,
    checked,
)
from filteropt.models import RandomWalk
from filteropt.optimizer import FilterOptimizer

__all__ = ["BayesRMSprop", "bayes_rmsprop"]


@checked
def bayes_rmsprop(
    lr: LearningRate = 1e-2,
    beta2: Momentum = 0.999,
    *,
    batch_size: Positive = 1,
    initial_variance: Annotated[float, Interval("(0, inf)")] | None = None,
    bias_correction: bool = False,
    fixed_point: bool = False,
    weight_decay: Nonnegative = 0.0,
) -> Filter:
    """The composition of :class:`~filteropt.BayesRMSprop` (same arguments)."""
    return Filter(
        RandomWalk(lr, weight_decay),
        Averaged(SquaredGradient(batch_size, beta1=None), beta2, bias_correction=bias_correction),
        OneStepAhead(FixedPoint("exact") if fixed_point else Diagonal(initial_variance)),
    )


class BayesRMSprop(FilterOptimizer):
    r"""Bayesian RMSprop: RMSprop as a filter of weights that walk at random.

    With :math:`g = B\,` ``p.grad``, :math:`\eta` = ``lr`` and :math:`\Sigma^-_1` =
    ``initial_variance``,

    .. math::
        s_t = \beta_2 s_{t-1} + (1-\beta_2) g_t^2, \qquad
        \Sigma^-_{t+1} = \frac{1}{s_t + 1/\Sigma^-_t} + \eta^2, \qquad
        \mu \leftarrow \mu - \Sigma^-_{t+1}\, g_t .

    At rest :math:`\Sigma^- = \eta^2/2 + (\eta/\sqrt s)\sqrt{1 + \eta^2 s/4}`: RMSprop's
    :math:`\eta/\sqrt s` where :math:`\eta^2 s \ll 1`, SGD at rate η² where it is large. What is
    approximated: each weight's optimum moves on its own, the curvature is the averaged squared
    gradient, and each step is made by the variance predicted for the next one.

    Args:
        params: parameters, named parameters or groups of them.
        lr: η, the rate where gradients are small, and standard deviation of the drift per step;
            [0, inf). 0 freezes the group.
        beta2: decay of the average squared gradient; [0, 1).
        batch_size: B, the examples that the loss averages over: the batch size for a mean loss, 1
            for a summed one; (0, inf).
        initial_variance: :math:`\Sigma^-_1`, variance before any evidence, in squared weight units;
            (0, inf). ``None`` takes η², one step of drift. Unused at the fixed point.
        bias_correction: whether the average is debiased.
        fixed_point: whether the variance is always at rest, which stores none.
        weight_decay: decoupled, per unit of ``lr`` as in AdamW; [0, inf).
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"posterior"`` or ``"prediction"``, the strict filter.
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
        >>> opt = filteropt.BayesRMSprop([w], lr=1e-2, beta2=0.0, fixed_point=True)
        >>> w.square().sum().backward()
        >>> opt.step()
        >>> w.data    # RMSprop's step, lr times the sign of the gradient, to within lr |g| / 2
        tensor([ 0.9899, -1.9898])

    Source: the "Bayesian derivation of RMSProp" blog post; derived in :eq:`eq-random-walk`, with
    its fixed point :eq:`eq-blog-fixed-point` and its limits :eq:`eq-rmsprop-limit` and
    :eq:`eq-blog-sgd-limit`.
    """

    preset = staticmethod(bayes_rmsprop)
