"""Limits of the dynamics: how one becomes another, and how each comes to rest.

Every function runs a composition and its limit, and returns the relative errors with the law that
its docstring derives. Throughout, h is the squared gradient, V₀ the variance before any evidence
and x the parameter in which the error is a pure power; the first step does not age the variance.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor

from experiments.limits.laws import Curve, Decay, Power
from experiments.limits.runs import numbers, off, sweep, variances, walk
from filteropt import (
    AdaBayes,
    AdaBayesFP,
    ExtendedKalmanFilter,
    FilterOptimizer,
    OnlineNaturalGradient,
    variant,
)
from filteropt.approximations import Diagonal, FixedPoint, SquaredGradient
from filteropt.engine import Filter
from filteropt.models import FixedNoise, ForgetToPrior, ProportionalNoise, Static
from filteropt.presets import adabayes_fp
from filteropt.types import Dynamics


def _filtered(dynamics: Dynamics, initial_variance: float, square: float, steps: int) -> float:
    """The variance after some steps of constant squared gradient."""
    parameter = torch.nn.Parameter(numbers(0.0))
    filter = Filter(dynamics, SquaredGradient(beta1=None), Diagonal(initial_variance))
    optimizer = FilterOptimizer([parameter], lambda: filter)
    for _ in range(steps):
        parameter.grad = numbers(math.sqrt(square))
        optimizer.step()
    return optimizer.posterior_variance(parameter).item()


def proportional_to_static() -> Curve:
    """Proportional noise without forgetting is static.

    1/Σ_t = (1 − λ)^(t−1)/V₀ + h Σ_(k<t) (1 − λ)^k. To first order in λ that is 1/V₀ + th less
    λ(t − 1)(1/V₀ + ht/2): the error is λ (t − 1)(1/V₀ + ht/2)/(1/V₀ + ht), about λt/2.

    Returns:
        The error of the variance after 20 steps.
    """
    steps, start, h = 20, 0.5, 1.0
    x = sweep(-14, -1)
    static = _filtered(Static(), start, h, steps)
    ours = numbers(*(_filtered(ProportionalNoise(rate), start, h, steps) for rate in x.tolist()))
    constant = (steps - 1) * (1 / start + h * steps / 2) / (1 / start + h * steps)
    return Curve(x, off(ours, numbers(static)), Power(1, constant))


def forgetting_to_proportional() -> Curve:
    """Forgetting to a flat prior is proportional noise.

    The prior adds ρ/S₀ to the precision in every step but the first, (1 − (1 − ρ)^(t−1))/S₀ in all.
    At rest, where the precision is h/ρ, the relative error is x = ρ/(hS₀).

    Returns:
        The error of the variance after 40 steps, as S₀ grows.
    """
    steps, start, h, rate = 40, 0.5, 2.0, 0.5
    x = sweep(-13, 1)
    fading = _filtered(ProportionalNoise(rate), start, h, steps)
    ours = [
        _filtered(ForgetToPrior(rate, prior), start, h, steps) for prior in (rate / h / x).tolist()
    ]
    constant = (1 - (1 - rate) ** (steps - 1)) * fading * h / rate
    return Curve(x, off(numbers(*ours), numbers(fading)), Power(1, constant))


def euler_to_exact_walk() -> Curve:
    """Euler's discretization is the Ornstein–Uhlenbeck process itself for small steps.

    With x = η²/σ², Euler's next variance is larger by x² (σ²/2 − Σ/4), and its decay by x²/8: an
    error of order η⁴ per step. At fixed t the rest follows the static filter, whose Σ_t is
    1/(1/σ² + ht) and which carries an error of Σ_i on to Σ_t as (Σ_t/Σ_i)². So Euler's variance
    is off by D_t x² with D_t = Σ_t² Σ_(i<t) (σ²/2 − Σ_i/4)/Σ_i², and its mean by
    −x² Σ_t (μ_(t−1)/8 + D_t g): second order in x, fourth in η, as long as xt ≪ 1.

    Returns:
        The error of the weight after 20 steps of constant gradient.
    """
    steps, prior, g, start = 20, 1.0, 0.5, 1.0
    x = sweep(-7, 0)
    ends = []
    for discretization in ("euler", "exact"):
        for lr in (x * prior).sqrt().tolist():
            path = walk(
                lambda p, lr=lr, d=discretization: AdaBayes(
                    p, lr, prior, 0.0, None, discretization=d
                ),
                repeat(numbers(g), steps),
                numbers(start),
            )
            ends.append(path[-1].item())
    euler, exact = numbers(*ends).chunk(2)
    mean, lost, gathered = start, 0.0, 0.0
    for t in range(1, steps + 1):
        variance = 1 / (1 / prior + g * g * t)
        lost += mean / 8 + variance**2 * gathered * g
        mean -= variance * g
        gathered += (prior / 2 - variance / 4) / variance**2
    return Curve(x, off(euler, exact), Power(2, abs(lost / mean)), until=0.1 / steps)


def euler_to_exact_rest() -> Curve:
    """Without evidence, and after many steps, Euler's error is of lower order.

    Its variance rests at η²/(1 − (1 − x/2)²) = σ²/(1 − x/4) with x = η²/σ², and that of the exact
    discretization at σ²: about 1/x steps' errors of order x² add up to x/4, first order.

    Returns:
        The error of the variance at rest.
    """
    prior = 0.1
    x = sweep(-12, 0)
    found = []
    for discretization in ("euler", "exact"):
        preset = _resting(discretization)
        for lr in (x * prior).sqrt().tolist():
            filter = partial(FilterOptimizer, preset=preset, lr=lr, lr_sgd=prior)
            found.append(variances(filter, [numbers(0.0)]).item())
    euler, exact = numbers(*found).chunk(2)
    return Curve(x, off(euler, exact), Power(1, 0.25))


def _resting(discretization: Literal["euler", "exact"]) -> Callable[..., Filter]:
    """AdaBayes-FP at the exact fixed point of a discretization."""
    return variant(
        adabayes_fp,
        dynamics=lambda lr, lr_sgd: FixedNoise(lr, lr_sgd, discretization=discretization),
        posterior=FixedPoint("exact"),
    )


def dense_to_inverse_root() -> Curve:
    """The dense filter of a random walk rests near η H^(−½).

    In H's eigenbasis each variance is η/√h (1 − η√h/2 + …), so that Σ = η H^(−½) − (η²/2) I + …:
    in the spectral norm the relative error is x/2 with x = η√h of the smallest eigenvalue.

    Returns:
        The error of the covariance at rest, of a linear model under squared error.
    """
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1))).Q
    rotation, h = rotation.double(), numbers(1.0, 1.5, 2.0)
    rotation = torch.linalg.qr(rotation).Q
    inverse_root = (rotation * h**-0.5) @ rotation.mT
    x = numbers(3e-3, 5e-3, 8e-3, 1.3e-2, 1.9e-2, 5e-2, 0.15, 0.5, 1.5)
    errors = []
    for value in x.tolist():
        limit = value * inverse_root
        covariance = _dense_at_rest((rotation * h.sqrt()).mT, value, math.ceil(4 / value) + 5)
        gap = torch.linalg.matrix_norm(covariance - limit, 2)
        errors.append((gap / torch.linalg.matrix_norm(limit, 2)).item())
    return Curve(x, numbers(*errors), Power(1, 0.5))


def _dense_at_rest(inputs: Tensor, drift: float, steps: int) -> Tensor:
    """The covariance after many steps on one batch, begun near the smallest eigenvalue's rest."""
    model = torch.nn.Linear(inputs.shape[1], 1, bias=False, dtype=torch.float64)
    filter = ExtendedKalmanFilter(
        model.parameters(), drift=drift, initial_variance=drift, model=model
    )
    for _ in range(steps):
        filter.zero_grad()
        (model(inputs).square().sum() / 2).backward()
        filter.step()
    return filter.posterior_covariance(model.weight)


def proportional_to_rest() -> Curve:
    """Proportional noise comes to rest at λ/h, exponentially.

    The precision is linear: 1/Σ_t − h/λ = (1 − λ)(1/Σ_(t−1) − h/λ), from 1/V₀ + h at t = 1. So its
    relative error is |1 − λ/((1 − λ)hV₀)| (1 − λ)^t, exactly.

    Returns:
        The error of the precision after every step.
    """
    rate, h, start = 0.05, 3.0, 0.5
    squares = list(repeat(numbers(h), 560))
    found = variances(
        lambda p: OnlineNaturalGradient(p, forgetting=rate, initial_variance=start), squares
    )
    error = off(rate / h / found[:, 0], torch.ones(1))
    t = torch.arange(1, len(squares) + 1, dtype=torch.float64)
    return Curve(t, error, Decay(1 - rate, abs(1 - rate / ((1 - rate) * h * start))))


def _recursion_to_rest(lr: float, prior: float, h: float, steps: int) -> Curve:
    """AdaBayes' recursion against its own fixed point, under constant squared gradients.

    Σ → 1/(1/(aΣ + q) + h) is a Möbius map, with fixed points Σ* > 0 and Σ₂ = −q/(haΣ*) < 0. So
    (Σ_t − Σ*)/(Σ_t − Σ₂) falls exactly by its slope at Σ*, a(Σ⁺/Σ⁻)², in every step, and the
    relative error by the same, once small.

    Args:
        lr: η.
        prior: σ².
        h: The squared gradient.
        steps: How many steps.

    Returns:
        The error of the variance after every step.
    """
    recursion = variances(
        lambda p: AdaBayes(p, lr, prior, weight_decay=0.0), list(repeat(numbers(h), steps))
    )
    rest = variances(lambda p: AdaBayesFP(p, lr, prior, fixed_point="exact"), [numbers(h)]).item()
    carried, noise = (1 - lr**2 / (2 * prior)) ** 2, lr**2
    other = -noise / (h * carried * rest)
    factor = carried * (rest / (carried * rest + noise)) ** 2
    first = 1 / (1 / prior + h)
    constant = abs((first - rest) / (first - other)) * (rest - other) / rest / factor
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    return Curve(t, off(recursion[:, 0], numbers(rest)), Decay(factor, constant))


def recursion_to_rest_rich() -> Curve:
    """With much data the recursion forgets its start by about 1 − 2η√h per step.

    Returns:
        The error of the variance after every step, at η√h = 0.1.
    """
    return _recursion_to_rest(lr=1e-2, prior=10.0, h=100.0, steps=150)


def recursion_to_rest_poor() -> Curve:
    """With little data the recursion forgets its start by about 1 − η²/σ² per step.

    Returns:
        The error of the variance after every step, at η²/σ² = 0.05 and hσ⁴/η² = 0.1.
    """
    return _recursion_to_rest(lr=0.05, prior=0.05, h=0.1, steps=500)
