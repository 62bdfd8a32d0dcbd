"""Natural gradient and the extended Kalman filter: the same filter, diagonal and dense."""

from __future__ import annotations

from typing import Annotated, Literal

from filteropt.approximations import Dense, Diagonal, GaussNewton, SquaredGradient
from filteropt.engine import Filter
from filteropt.hyperparameters import Interval, Momentum, Nonnegative, Positive, checked
from filteropt.models import ProportionalNoise, RandomWalk
from filteropt.optimizer import FilterOptimizer

__all__ = [
    "ExtendedKalmanFilter",
    "OnlineNaturalGradient",
    "extended_kalman_filter",
    "online_natural_gradient",
]

Variance = Annotated[float, Interval("(0, inf)")]


@checked
def online_natural_gradient(
    *,
    forgetting: Momentum = 0.0,
    initial_variance: Variance = 1e-2,
    batch_size: Positive = 1,
) -> Filter:
    """The composition of :class:`~filteropt.OnlineNaturalGradient`, which adds a gain."""
    return Filter(
        ProportionalNoise(forgetting),
        SquaredGradient(batch_size, beta1=None),
        Diagonal(initial_variance),
    )


@checked
def extended_kalman_filter(
    *,
    drift: Nonnegative = 0.0,
    initial_variance: Variance = 1e-2,
    loss: Literal["squared_error", "cross_entropy"] = "squared_error",
    noise_variance: Positive = 1.0,
    batch_size: Positive = 1,
    memory: Positive = 2**28,
) -> Filter:
    """The composition of :class:`~filteropt.ExtendedKalmanFilter`, which adds a gain."""
    return Filter(
        RandomWalk(drift),
        GaussNewton(loss, noise_variance, batch_size, memory=memory),
        Dense(initial_variance),
    )


class OnlineNaturalGradient(FilterOptimizer):
    r"""Online natural gradient: the diagonal filter of optima that stand still or fade.

    With :math:`g = B\,` ``p.grad`` and λ = ``forgetting``,

    .. math::
        \frac{1}{\Sigma_t} = \frac{1-\lambda}{\Sigma_{t-1}} + g_t^2, \qquad
        \mu \leftarrow \mu - \Sigma_t\, g_t .

    Without forgetting the steps fall like 1/t, and converge where Adam's do not; with it they rest
    at :math:`\lambda/\langle g^2\rangle`, a mean-square normaliser. What is approximated: the
    Fisher information, by the squared gradient of each minibatch, without correlations.

    Args:
        params: parameters, named parameters or groups of them.
        lr: a plain gain on the step; [0, inf). 1 is the filter; 0 freezes the group.
        forgetting: λ, the fraction of evidence that fades per step; [0, 1). A weight that has no
            gradient for many times 1/λ steps grows so uncertain that its next one may throw it
            far; where that can happen take
            ``variant(online_natural_gradient, dynamics=ForgetToPrior(0.01))``.
        initial_variance: :math:`\Sigma_0`, variance before any evidence, in squared weight units;
            (0, inf). It is the rate of the first steps, for the summed loss.
        batch_size: B, the examples that the loss averages over: the batch size for a mean loss, 1
            for a summed one; (0, inf).
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
        >>> opt = filteropt.OnlineNaturalGradient([w], initial_variance=0.5)
        >>> w.square().sum().backward()
        >>> opt.step()
        >>> opt.posterior_variance(w)    # 1 / (1/0.5 + g^2)
        tensor([0.1667, 0.0556])

    Source: Ollivier (2018); Aitchison (2018) Eq. 13–14; P (Aitchison 2020) App. C; derived in
    :eq:`eq-proportional` and :eq:`eq-proportional-fixed-point`.
    """

    preset = staticmethod(online_natural_gradient)


class ExtendedKalmanFilter(FilterOptimizer):
    r"""The extended Kalman filter: dense covariance, Gauss–Newton curvature.

    With :math:`J_i` the Jacobian of the model's outputs for example i and :math:`R_i^{-1}` the
    Hessian of its loss with respect to them,

    .. math::
        \Sigma^- = \Sigma^+ + \eta^2 I, \qquad
        \Sigma^+ = \Bigl((\Sigma^-)^{-1} + \sum_i J_i^\top R_i^{-1} J_i\Bigr)^{-1}, \qquad
        \mu \leftarrow \mu - \Sigma^+ g ,

    which is the textbook's :math:`\mu + K(y - f(x))`. On a linear model with squared error it is
    the Kalman filter; without drift, Bayesian linear regression, whatever the batches. What is
    approximated: the model, by its tangent; and between tensors correlations are dropped, each
    tensor being filtered given the others' present values. ``filteropt.Flat(model)`` puts all the
    weights into one tensor, for the filter of the whole model: make it first, then take its
    parameters. A summed loss with ``batch_size=1`` counts every batch right, whatever its size.
    Between steps call ``opt.zero_grad()``; if other optimizers train the same model, step this one
    first, since its Jacobians are taken when it steps.

    Args:
        params: parameters, named parameters or groups of them, all of them ``model``'s.
        lr: a plain gain on the step; [0, inf). 1 is the filter; 0 freezes the group.
        drift: η, standard deviation of the optimum's drift per step, in weight units; [0, inf).
            To forget instead: ``variant(extended_kalman_filter, dynamics=ForgetToPrior(0.01))``
            (proportional noise lets directions that no data speak of grow without bound).
        initial_variance: variance of every weight before any evidence, in squared weight units;
            (0, inf).
        loss: ``"squared_error"``, :math:`\lVert f - y\rVert^2/(2r)` per example, or
            ``"cross_entropy"``, of softmax outputs.
        noise_variance: r, for squared error, in squared output units; (0, inf). A loss without its
            factor ½, such as ``F.mse_loss`` of one output per example, has r = ½.
        batch_size: B, the examples that the loss averages over: the batch size for a mean loss, 1
            for a summed one, which also counts a smaller last batch right; (0, inf).
        memory: bytes that the per-example Jacobians worked on at a time may take; (0, inf).
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"posterior"`` or ``"prediction"``, the strict filter.
        maximize: maximise instead of minimise.
        on_nonfinite: ``"raise"``, ``"skip"`` the step, or ``"ignore"``: look at no gradient.
        fused: ``None`` or ``False``; steps of matrices are not compiled.
        capturable: ``False``; steps of matrices are not captured.
        belief_dtype: ``None``; matrices need all their bits.
        model: the module whose output the loss is computed from; needed.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind.
        ValueError: a hyperparameter outside its range. Also a missing ``model``, and a tensor of
            more than 8192 weights.

    Example:
        >>> import torch, filteropt
        >>> _ = torch.manual_seed(0)
        >>> model, x = torch.nn.Linear(2, 1, bias=False), torch.randn(20, 2)
        >>> y = x @ torch.tensor([[1.0], [-1.0]])
        >>> opt = filteropt.ExtendedKalmanFilter(
        ...     model.parameters(), initial_variance=1e4, model=model)
        >>> (0.5 * (model(x) - y).square().sum()).backward()
        >>> opt.step()    # least squares in one step
        >>> bool(torch.allclose(model.weight, torch.tensor([[1.0, -1.0]]), atol=1e-3))
        True
        >>> opt.posterior_covariance(model.weight).shape
        torch.Size([2, 2])

    Source: Ollivier (2018); U (Aitchison 2018) Sec. 2.1; derived in :eq:`eq-gauss-newton` and
    :eq:`eq-ekf`.
    """

    preset = staticmethod(extended_kalman_filter)
