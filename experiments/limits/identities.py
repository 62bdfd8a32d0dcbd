"""Compositions that are another algorithm, up to rounding.

Every function runs both on the same data and returns the largest relative errors of what they
learn.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR

from experiments.limits.laws import Curve, Identity
from experiments.limits.runs import Maker, walk
from filteropt import AdaBayesFP, ExtendedKalmanFilter, FilterOptimizer, variant
from filteropt.models import Static
from filteropt.presets import extended_kalman_filter, rmsprop, sgd

STEPS, WEIGHTS = 100, 20
TOLERANCE = 1e-12
MATRIX_TOLERANCE = 1e-10  # of inverses, which lose digits to their condition


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest error relative to the largest number."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _curve(tolerance: float, *errors: float) -> Curve:
    found = torch.tensor(errors, dtype=torch.float64)
    return Curve(torch.arange(1.0, len(errors) + 1), found, Identity(tolerance))


def _annealed(make: Callable[..., Optimizer]) -> Maker:
    """An optimizer whose rate falls to 0 along a cosine."""

    def build(parameters: list[Parameter]) -> Optimizer:
        optimizer = make(parameters)
        schedule = CosineAnnealingLR(optimizer, STEPS)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer

    return build


def _same_walk(ours: Callable[..., Optimizer], theirs: Callable[..., Optimizer]) -> Curve:
    gradients, start = _random(STEPS, WEIGHTS, seed=0), _random(WEIGHTS, seed=1)
    paths = [walk(_annealed(make), gradients, start) for make in (ours, theirs)]
    return _curve(TOLERANCE, _largest(*paths))


def adamw() -> Curve:
    """AdaBayes-FP without a prior (σ² = ∞) has Σ⁺ = η/√⟨g²⟩: it is AdamW without ε.

    Returns:
        The error of a walk of 100 steps along a cosine schedule, with weight decay.
    """
    return _same_walk(
        partial(AdaBayesFP, lr=1e-2, lr_sgd=float("inf"), weight_decay=0.05),
        partial(AdamW, lr=1e-2, eps=0.0, weight_decay=0.05),
    )


def torch_rmsprop() -> Curve:
    """A random walk at Taylor's rest, its averages not debiased, is RMSprop without ε.

    Returns:
        The error of a walk of 100 steps along a cosine schedule.
    """
    return _same_walk(
        partial(FilterOptimizer, preset=rmsprop, lr=1e-2, alpha=0.95),
        partial(RMSprop, lr=1e-2, alpha=0.95, eps=0.0),
    )


def torch_sgd() -> Curve:
    """Fixed noise at rest without curvature, at σ² = lr/(1 − β), is SGD with momentum β.

    Returns:
        The error of a walk of 100 steps along a cosine schedule.
    """
    return _same_walk(
        partial(FilterOptimizer, preset=sgd, lr=1e-2, momentum=0.9),
        partial(SGD, lr=1e-2, momentum=0.9),
    )


def _regression(make: Callable[..., FilterOptimizer], noise: float) -> tuple[Tensor, ...]:
    """A linear model filtered batch by batch, and its data."""
    inputs, weights = _random(48, 4, seed=2), _random(4, seed=3)
    targets = inputs @ weights + noise**0.5 * _random(48, seed=4)
    model = Linear(4, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    filter = make(model.parameters(), model=model, noise_variance=noise)
    for x, y in zip(inputs.split([1, 7, 16, 24]), targets.split([1, 7, 16, 24]), strict=True):
        filter.zero_grad()
        ((model(x)[:, 0] - y).square().sum() / (2 * noise)).backward()
        filter.step()
    covariance = filter.posterior_covariance(model.weight)
    return model.weight.detach()[0], covariance, inputs, targets


def bayesian_regression() -> Curve:
    """Dense, static and Gauss–Newton on a linear model: Bayesian linear regression.

    Precisions and precision-weighted means add up, in whatever batches:
    Σ⁻¹ = I/V₀ + XᵀX/r and Σ⁻¹μ = Xᵀy/r.

    Returns:
        The errors of the mean and of the covariance after four batches of unequal sizes.
    """
    noise, prior = 0.3, 2.0
    static = variant(extended_kalman_filter, dynamics=Static())
    make = partial(FilterOptimizer, preset=static, initial_variance=prior)
    mean, covariance, inputs, targets = _regression(make, noise)
    expected = torch.linalg.inv(torch.eye(4).double() / prior + inputs.mT @ inputs / noise)
    solution = expected @ (inputs.mT @ targets) / noise
    errors = _largest(mean, solution), _largest(covariance, expected)
    return _curve(MATRIX_TOLERANCE, *errors)


def kalman_filter() -> Curve:
    """Dense, random walk and Gauss–Newton on a linear model: the textbook's Kalman filter.

    Returns:
        The errors of the mean and of the covariance after four batches of unequal sizes.
    """
    noise, prior, drift = 0.3, 2.0, 0.4
    make = partial(ExtendedKalmanFilter, drift=drift, initial_variance=prior)
    mean, covariance, inputs, targets = _regression(make, noise)
    state, spread = torch.zeros(4).double(), prior * torch.eye(4).double()
    for t, (x, y) in enumerate(
        zip(inputs.split([1, 7, 16, 24]), targets.split([1, 7, 16, 24]), strict=True)
    ):
        spread = spread + (drift**2 if t else 0.0) * torch.eye(4).double()
        innovation = x @ spread @ x.mT + noise * torch.eye(len(x)).double()
        gain = torch.linalg.solve(innovation, x @ spread).mT
        state = state + gain @ (y - x @ state)
        spread = spread - gain @ x @ spread
    return _curve(MATRIX_TOLERANCE, _largest(mean, state), _largest(covariance, spread))
