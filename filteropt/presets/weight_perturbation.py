"""Weight perturbation inside of Adam-like optimizers: Vadam and IVON."""

from __future__ import annotations

from typing import Annotated, Literal

from filteropt.approximations import (
    AveragedPull,
    Clipped,
    Price,
    Retracted,
    SampledSquaredGradient,
    Scaled,
    SquareRooted,
    Tempered,
)
from filteropt.engine import Filter
from filteropt.hyperparameters import (
    Count,
    Decay,
    Interval,
    LearningRate,
    Momentum,
    Nonnegative,
    Positive,
    checked,
)
from filteropt.models import ForgetToPrior
from filteropt.optimizer import FilterOptimizer
from filteropt.types import Likelihood, Projection

__all__ = ["IVON", "Vadam", "ivon", "vadam"]

Radius = Annotated[float, Interval("(0, inf]")]


@checked
def vadam(
    lr: LearningRate,
    dataset_size: Positive,
    *,
    prior_precision: Positive = 1.0,
    beta1: Momentum = 0.9,
    beta2: Decay = 0.999,
    sync: bool = False,
) -> Filter:
    """The composition of :class:`~filteropt.Vadam`."""
    rate = 1 - beta2
    squares = SampledSquaredGradient(beta1=None, sync=sync)
    return Filter(
        ForgetToPrior(rate, 1 / prior_precision),
        AveragedPull(Tempered(squares, rate * dataset_size), rate * prior_precision, beta1),
        SquareRooted(dataset_size),
        projections=(Scaled(lr / rate),),
    )


@checked
def ivon(
    lr: LearningRate,
    ess: Positive,
    hess_init: Positive = 1.0,
    beta1: Momentum = 0.9,
    beta2: Decay = 0.99999,
    weight_decay: Nonnegative = 1e-4,
    mc_samples: Count = 1,
    hess_approx: Literal["price", "gradsq"] = "price",
    clip_radius: Radius = float("inf"),
    sync: bool = False,
    debias: bool = True,
    rescale_lr: bool = True,
) -> Filter:
    """The composition of :class:`~filteropt.IVON`; ``mc_samples`` is its step's."""
    rate = 1 - beta2
    prior_variance = 1 / (ess * weight_decay) if weight_decay else float("inf")
    likelihood: Likelihood = Tempered(Price(1.0, beta1 or None, debias, sync), rate * ess)
    if hess_approx == "gradsq":  # a minibatch's mean gradient stands for that of all the data
        likelihood = Tempered(SampledSquaredGradient(ess, beta1 or None, debias, sync), rate)
    gain = lr * (hess_init + weight_decay) if rescale_lr else lr
    projections: tuple[Projection, ...] = (Scaled(gain / rate),)
    if clip_radius < float("inf"):
        projections = (Clipped(rate * clip_radius), *projections)
    initial = 1 / (ess * (hess_init + weight_decay))
    dynamics = ForgetToPrior(rate, prior_variance)
    return Filter(dynamics, likelihood, Retracted(initial), projections=projections)


class Vadam(FilterOptimizer):
    r"""Vadam: Adam with its weights perturbed by a belief that forgets to its prior.

    With N = ``dataset_size``, λ = ``prior_precision``, and :math:`\bar g` the gradient of a mean
    loss at a draw :math:`w \sim N(\mu, 1/(Ns + \lambda))`,

    .. math::
        m &\leftarrow \beta_1 m + (1-\beta_1)(\bar g + \lambda\mu/N), \qquad
        s \leftarrow \beta_2 s + (1-\beta_2)\,\bar g^2 \\
        \mu &\leftarrow \mu - \text{lr}\,\frac{m/(1-\beta_1^t)}
          {\sqrt{s/(1-\beta_2^t)} + \lambda/N} .

    Put ``with opt.sampled_params(train=True):`` around loss and backward. The belief is that of a
    filter; the mean moves by a square root instead of Bayes' rule. What is approximated: that, the
    Hessian by the squared minibatch gradient, which is far too small for large batches, and
    correlations are dropped.

    Args:
        params: parameters, named parameters or groups of them.
        lr: the mean's rate, Adam's; [0, inf). 0 freezes the group.
        dataset_size: N, the examples of the whole training set; (0, inf).
        prior_precision: λ, of the prior N(0, 1/λ) of every weight, in inverse squared weight units;
            (0, inf). First draws are as wide as the prior.
        beta1: decay of the objective's average gradient; [0, 1).
        beta2: decay of the average squared gradient; (0, 1).
        sync: whether processes that train together average gradients and curvature.
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"posterior"``; forgetting to a prior has no prediction to look at.
        maximize: maximise instead of minimise.
        on_nonfinite: ``"raise"``, ``"skip"`` the step, or ``"ignore"``: look at no gradient.
        fused: ``None``, ``True`` to compile the step, or ``False``.
        capturable: ``False``; what is gathered at draws is not captured.
        belief_dtype: ``None``, or ``torch.bfloat16`` for beliefs in half the memory.
        model: the module that owns the parameters, for their names.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind.
        ValueError: a hyperparameter outside its range.

    Example:
        >>> import torch, filteropt
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = filteropt.Vadam([w], lr=0.01, dataset_size=100)
        >>> with opt.sampled_params(train=True):
        ...     w.square().sum().backward()
        >>> opt.step()

    Source: Khan et al. (2018), Fig. 1; derived in :eq:`eq-vadam`.
    """

    preset = staticmethod(vadam)


class IVON(FilterOptimizer):
    r"""Improved variational online Newton, with ivon-opt's own arguments.

    With N = ``ess``, δ = ``weight_decay``, and :math:`\bar g` the gradient of a mean loss at a draw
    :math:`w = \mu + \sigma\epsilon`, :math:`1/\sigma^2 = N(h + \delta)`,

    .. math::
        \hat h &= \frac{\epsilon}{\sigma}\,\bar g(w), \qquad
        h \leftarrow \beta_2 h + (1-\beta_2)\hat h
          + \frac{(1-\beta_2)^2 (h - \hat h)^2}{2(h + \delta)} \\
        \mu &\leftarrow \mu - \text{lr}\,(h_0 + \delta)\,\frac{\hat m + \delta\mu}{h + \delta} .

    Put ``with opt.sampled_params(train=True):`` around loss and backward. It is the filter that
    forgets to the prior N(0, 1/Nδ), on the precisions' geodesic. What is approximated: correlations
    are dropped, and the Hessian is estimated from draws.

    Args:
        params: parameters, named parameters or groups of them.
        lr: the mean's rate; [0, inf). 0 freezes the group.
        ess: N, the effective sample size: the examples of the whole training set; (0, inf).
        hess_init: :math:`h_0`, the Hessian before any evidence; (0, inf).
        beta1: decay of the average gradient that moves the mean; [0, 1). 0 keeps none.
        beta2: decay of h; (0, 1).
        weight_decay: δ, the prior's precision over N; [0, inf). 0 has no prior.
        mc_samples: how often a closure given to ``step`` is called. Without closures, every
            ``opt.zero_grad()`` inside of ``sampled_params(train=True)`` starts another sample.
        hess_approx: ``"price"``, :math:`\bar g\epsilon/\sigma`, or ``"gradsq"``,
            :math:`N\bar g^2`.
        clip_radius: bound on the preconditioned gradient; (0, inf].
        sync: whether processes that train together average gradients and curvature.
        debias: whether the average gradient is debiased.
        rescale_lr: whether lr is multiplied by :math:`h_0 + \delta`.
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"posterior"``; forgetting to a prior has no prediction to look at.
        maximize: maximise instead of minimise.
        on_nonfinite: ``"raise"``, ``"skip"`` the step, or ``"ignore"``: look at no gradient.
        fused: ``None``, ``True`` to compile the step, or ``False``.
        capturable: ``False``; what is gathered at draws is not captured.
        belief_dtype: ``None``, or ``torch.bfloat16`` for beliefs in half the memory.
        model: the module that owns the parameters, for their names.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind.
        ValueError: a hyperparameter outside its range.

    Example:
        >>> import torch, filteropt
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = filteropt.IVON([w], lr=0.1, ess=100)
        >>> with opt.sampled_params(train=True):
        ...     w.square().sum().backward()
        >>> opt.step()

    Source: Shen et al. (2024), Alg. 1; derived in :eq:`eq-ivon`.
    """

    preset = staticmethod(ivon)
