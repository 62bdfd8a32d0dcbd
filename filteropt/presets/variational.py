"""The variational Newton family: filters that forget to their prior and look where they draw."""

from __future__ import annotations

from typing import Literal

from filteropt.approximations import (
    Diagonal,
    PerExample,
    Price,
    Retracted,
    Scaled,
    Tempered,
)
from filteropt.engine import Filter
from filteropt.hyperparameters import (
    Decay,
    LearningRate,
    Momentum,
    Nonnegative,
    Positive,
    checked,
)
from filteropt.models import ForgetToPrior
from filteropt.optimizer import FilterOptimizer
from filteropt.types import Posterior

__all__ = ["VOGN", "VON", "vogn", "von"]


@checked
def von(
    lr: LearningRate,
    dataset_size: Positive,
    *,
    prior_precision: Positive = 1.0,
    initial_curvature: Nonnegative = 1.0,
    beta1: Momentum = 0.9,
    beta2: Decay = 0.999,
    retracted: bool = True,
    sync: bool = False,
) -> Filter:
    """The composition of :class:`~filteropt.VON`."""
    start = 1 / (dataset_size * initial_curvature + prior_precision)
    likelihood, family = (
        Price(beta1=beta1 or None, sync=sync),
        Retracted(start, 2 if retracted else 1),
    )
    return _newton(lr, dataset_size, prior_precision, beta2, likelihood, family)


@checked
def vogn(
    lr: LearningRate,
    dataset_size: Positive,
    *,
    batch_size: Positive,
    prior_precision: Positive = 1.0,
    initial_curvature: Nonnegative = 1.0,
    beta1: Momentum = 0.9,
    beta2: Decay = 0.999,
    uncovered: Literal["error", "batch"] = "error",
) -> Filter:
    """The composition of :class:`~filteropt.VOGN`."""
    start = 1 / (dataset_size * initial_curvature + prior_precision)
    likelihood = PerExample(batch_size, beta1=beta1 or None, uncovered=uncovered)
    return _newton(lr, dataset_size, prior_precision, beta2, likelihood, Diagonal(start))


def _newton(
    lr: float,
    dataset_size: float,
    prior_precision: float,
    beta2: float,
    likelihood: Price | PerExample,
    family: Posterior,
) -> Filter:
    """What VON and VOGN share: a minibatch stands for the evidence that fades in its step."""
    rate = 1 - beta2
    return Filter(
        ForgetToPrior(rate, 1 / prior_precision),
        Tempered(likelihood, rate * dataset_size / likelihood.scale),
        family,
        projections=(Scaled(lr / rate),),
    )


class VON(FilterOptimizer):
    r"""Variational online Newton: the filter that forgets to its prior and looks where it draws.

    With N = ``dataset_size``, λ = ``prior_precision``, ρ = 1 − β₂, and :math:`\bar g` the gradient
    of a mean loss at a draw :math:`w = \mu + \sigma\epsilon`,

    .. math::
        s &\leftarrow (1-\rho)\,s + \rho\,\frac{\epsilon}{\sigma}\,\bar g(w), \qquad
        \frac{1}{\sigma^2} = N s + \lambda \\
        \mu &\leftarrow \mu - \text{lr}\,\frac{\hat m + \lambda\mu/N}{s + \lambda/N} .

    It minimises the variational free energy by natural gradient; with lr = ρ and no momentum it is
    the filter itself. Train with ``with opt.sampled_params(train=True):`` around loss and backward.
    What is approximated: correlations between weights are dropped, and the Hessian is estimated
    from a draw. One estimate may be negative, so that precisions follow their geodesic
    (:class:`~filteropt.approximations.Retracted`) unless told otherwise.

    Args:
        params: parameters, named parameters or groups of them.
        lr: the mean's rate; [0, inf). 0 freezes the group.
        dataset_size: N, the examples of the whole training set; (0, inf).
        prior_precision: λ, of the prior N(0, 1/λ) of every weight, in inverse squared weight units;
            (0, inf).
        initial_curvature: s before any evidence, of the mean loss; [0, inf). 0 starts at the prior,
            which is too wide a draw for most networks.
        beta1: decay of the average gradient that moves the mean; [0, 1). 0 keeps none.
        beta2: 1 − ρ, decay of s; (0, 1).
        retracted: whether precisions follow their geodesic, else the plain update as long as it
            leaves half of the precision.
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
        >>> opt = filteropt.VON([w], lr=0.01, dataset_size=100)
        >>> for _ in range(3):
        ...     with opt.sampled_params(train=True):
        ...         opt.zero_grad()
        ...         w.square().sum().backward()
        ...     opt.step()
        >>> bool((opt.posterior_variance(w) > 0).all())
        True

    Source: Khan et al. (2018) Eq. 7–8; derived in :eq:`eq-von`.
    """

    preset = staticmethod(von)


class VOGN(FilterOptimizer):
    r"""Variational online Gauss–Newton: VON with the examples' squared gradients as curvature.

    With N = ``dataset_size``, B = ``batch_size``, λ = ``prior_precision`` and ρ = 1 − β₂,

    .. math::
        s &\leftarrow (1-\rho)\,s + \frac{\rho}{B} \sum_{i=1}^B g_i(w)^2, \qquad
        \frac{1}{\sigma^2} = N s + \lambda \\
        \mu &\leftarrow \mu - \text{lr}\,\frac{\hat m + \lambda\mu/N}{s + \lambda/N}

    at draws :math:`w \sim N(\mu, \sigma^2)`: put ``with opt.sampled_params(train=True):`` around
    loss and backward. Without, gradients are taken at the mean. What is approximated: correlations
    between weights are dropped, and the Hessian is replaced by the empirical Fisher information,
    which is never negative.

    Args:
        params: parameters, named parameters or groups of them.
        lr: the mean's rate; [0, inf). 0 freezes the group.
        dataset_size: N, the examples of the whole training set; (0, inf).
        batch_size: B, the examples that the mean loss averages over; (0, inf).
        prior_precision: λ, of the prior N(0, 1/λ) of every weight, in inverse squared weight units;
            (0, inf).
        initial_curvature: s before any evidence, of the mean loss; [0, inf). 0 starts at the prior,
            which is too wide a draw for most networks.
        beta1: decay of the average gradient that moves the mean; [0, 1). 0 keeps none.
        beta2: 1 − ρ, decay of s; (0, 1).
        uncovered: what becomes of a parameter whose per-example gradients cannot be had: an
            ``"error"``, or its squared minibatch gradient (``"batch"``).
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"posterior"``; forgetting to a prior has no prediction to look at.
        maximize: maximise instead of minimise.
        on_nonfinite: ``"raise"``, ``"skip"`` the step, or ``"ignore"``: look at no gradient.
        fused: ``None``, ``True`` to compile the step, or ``False``.
        capturable: ``False``; what is gathered at draws is not captured.
        belief_dtype: ``None``, or ``torch.bfloat16`` for beliefs in half the memory.
        model: the module that owns the parameters and makes the loss' input; needed.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind.
        ValueError: a hyperparameter outside its range, or a missing ``model``.

    Example:
        >>> import torch, filteropt
        >>> model, x = torch.nn.Linear(3, 1), torch.randn(8, 3)
        >>> opt = filteropt.VOGN(
        ...     model.parameters(), lr=0.01, dataset_size=100, batch_size=8, model=model)
        >>> with opt.sampled_params(train=True):
        ...     model(x).square().mean().backward()
        >>> opt.step()

    Source: Khan et al. (2018) Eq. 9; derived in :eq:`eq-vogn`.
    """

    preset = staticmethod(vogn)
