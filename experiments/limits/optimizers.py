"""Limits to known optimizers: what each composition becomes, and with which error.

Every function runs a composition and its limit, and returns the relative errors with the law that
its docstring derives. Throughout, η is the filter's rate, σ² the prior variance, h or s the squared
gradient, and x the parameter in which the error is a pure power.
"""

import math

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, RMSprop

from experiments.limits.laws import Curve, Power
from experiments.limits.runs import debiased_sgd, displacements, numbers, off, sweep
from filteropt import AdaBayes, AdaBayesFP, BayesRMSprop, FilterOptimizer
from filteropt.presets import online_natural_gradient


def adabayes_to_sgd() -> Curve:
    """AdaBayes with little data is SGD with momentum at rate σ².

    The exact discretization rests at σ², and so does the prior. Let δ = σ² − Σ⁺ and a = e^(−η²/σ²).
    To first order in h, δ_t = a δ_(t−1) + σ⁴ h_t with h_t = h u_t², and the same averaged gradient
    moves both means. So after T steps the error is Σ_t δ_t ĝ_t / (σ² Σ_t ĝ_t): first order in h.
    At rest under a constant gradient it is x = h σ⁴/η², the constant then being 1 for small η²/σ².
    Euler's discretization, AdaBayes' default, would not do: its variance rests at
    σ²/(1 − η²/4σ²), so that the limit h → 0 is SGD at *that* rate.

    Returns:
        The error of the sum of 100 steps.
    """
    variance, rate, momentum, steps = 0.1, 0.05, 0.9, 100  # σ², η²/σ², β₁
    lr = math.sqrt(rate * variance)
    stream = [1 + math.sin(t) for t in range(steps)]
    x = sweep(-12, 1)
    root = (x * rate / variance).sqrt()
    gradients = [root * u for u in stream]
    ours = displacements(
        lambda p: AdaBayes(p, lr, variance, momentum, 0.0, discretization="exact"), gradients
    )
    error = off(ours.sum(0), displacements(debiased_sgd(variance, momentum), gradients).sum(0))
    lost = average = above = below = 0.0
    for t, u in enumerate(stream, 1):
        lost = math.exp(-rate) * lost + u * u * rate  # δ/σ² at x = 1
        average = momentum * average + (1 - momentum) * u
        above += lost * average / (1 - momentum**t)
        below += average / (1 - momentum**t)
    return Curve(x, error, Power(1, above / below))


def adabayes_fp_to_sgd() -> Curve:
    """AdaBayes-FP with little data is SGD with momentum at rate σ².

    σ²/Σ⁺ = ½ + √(¼ + x) = 1 + x − x² + …, with x = h σ⁴/η²: the error is x.

    Returns:
        The error of 100 steps under a constant gradient.
    """
    lr, variance, momentum = 0.03, 0.1, 0.9
    x = sweep(-12, 1)
    gradients = [(x * (lr / variance) ** 2).sqrt()] * 100
    ours = displacements(lambda p: AdaBayesFP(p, lr, variance, (momentum, 0.999), 0.0), gradients)
    sgd = displacements(debiased_sgd(variance, momentum), gradients)
    return Curve(x, off(ours.sum(0), sgd.sum(0)), Power(1, 1))


def adabayes_to_adamw() -> Curve:
    """AdaBayes with much data is AdamW, where g² is constant.

    Without a prior (here σ² = 10¹² η²) the variance at rest solves 1/Σ = 1/(Σ + η²) + h. With
    x = η√h, hΣ = x(√(1 + x²/4) − x/2), that is Adam's x times 1 − x/2 + x²/8: the error is x/2. It
    needs x small *and* hσ⁴ ≫ η²; and rest, which takes several times 1/x steps.

    Returns:
        The error of the last of 4000 steps, gradients having random signs.
    """
    lr, steps = 1e-3, 4000
    x = torch.cat([sweep(-2.6, -1.6, 5), sweep(-1, 1, 2)])
    signs = torch.randn(steps, generator=torch.Generator().manual_seed(0)).sign().double()
    gradients = [x / lr * sign for sign in signs]
    ours = displacements(lambda p: AdaBayes(p, lr, 1e12 * lr**2, weight_decay=0.0), gradients)
    theirs = displacements(
        lambda p: AdamW(p, lr, betas=(0.9, 0.999), eps=0.0, weight_decay=0.0), gradients
    )
    return Curve(x, off(ours[-1], theirs[-1]), Power(1, 0.5))


def taylor_to_exact() -> Curve:
    """Taylor's fixed point is the exact one where a step's information is small.

    Without a prior Taylor's is η/√h and the exact one that of :func:`adabayes_to_adamw`, so that
    their ratio is x/2 + √(1 + x²/4) = 1 + x/2 + x²/8 + … with x = η√h: the error is x/2. (A prior
    adds hΣ/2's like for the exact discretization; Euler's adds a floor of order η²/σ².)

    Returns:
        The error of one step.
    """
    lr = 1e-3
    x = sweep(-12, 2)
    taylor, exact = (
        displacements(
            lambda p, m=method: AdaBayesFP(p, lr, math.inf, weight_decay=0.0, fixed_point=m),
            [x / lr],
        )
        for method in ("taylor", "exact")
    )
    return Curve(x, off(taylor[0], exact[0]), Power(1, 0.5))


def _against_adam(x: Tensor, epsilon: float) -> Tensor:
    """AdaBayes-FP's first step against AdamW's, ``epsilon`` in units of η/2σ²."""
    lr, root = 1e-3, 2.0
    errors = []
    for prior in (lr / (2 * x * root)).tolist():  # σ² = η / (2x√h)
        eps = epsilon * lr / (2 * prior)
        ours, theirs = (
            displacements(make, [numbers(root)])
            for make in (
                lambda p, s=prior: AdaBayesFP(p, lr, s, weight_decay=0.0),
                lambda p, e=eps: AdamW(p, lr, eps=e, weight_decay=0.0),
            )
        )
        errors.append(off(ours, theirs).item())
    return numbers(*errors)


def prior_as_epsilon() -> Curve:
    """A weak prior acts as Adam's ε = η/2σ².

    η/Σ⁺ = √h (x + √(1 + x²)) with x = η/(2σ²√h), and Adam's is √h (1 + x): the error is x²/2,
    second order in 1/σ². (ε = η/σ², twice as large, leaves an error of x, as no ε at all does.)

    Returns:
        The error of one step, as σ² grows.
    """
    x = sweep(-6, 1)
    return Curve(x, _against_adam(x, 1.0), Power(2, 0.5))


def prior_without_epsilon() -> Curve:
    """A weak prior, left out: AdamW without ε.

    η/Σ⁺ = √h (1 + x + x²/2 …), with x as in :func:`prior_as_epsilon`: the error is x, first order.

    Returns:
        The error of one step, as σ² grows.
    """
    x = sweep(-12, 1)
    return Curve(x, _against_adam(x, 0.0), Power(1, 1))


def bayes_rmsprop_to_rmsprop() -> Curve:
    """Bayesian RMSprop is RMSprop where gradients are small.

    At rest Σ⁻ = η²/2 + (η/√s) √(1 + η²s/4), which with x = η√s is η/√s times 1 + x/2 + x²/8: the
    error is x/2.

    Returns:
        The error of the last of 400 steps under a constant gradient, when s = g².
    """
    lr = 1e-2
    x = sweep(-12, 2)
    gradients = [x / lr] * 400
    ours = displacements(lambda p: BayesRMSprop(p, lr, 0.9, fixed_point=True), gradients)
    theirs = displacements(lambda p: RMSprop(p, lr, alpha=0.9, eps=0.0), gradients)
    return Curve(x, off(ours[-1], theirs[-1]), Power(1, 0.5))


def bayes_rmsprop_to_sgd() -> Curve:
    """Bayesian RMSprop is SGD at rate η² where gradients are large.

    With x = 1/(η²s), Σ⁻ = η² (½ + ½√(1 + 4x)) = η² (1 + x − x² …): the error is x.

    Returns:
        The error of the last of 400 steps under a constant gradient, when s = g².
    """
    lr = 1e-2
    x = sweep(-12, 2)
    gradients = [x**-0.5 / lr] * 400
    ours = displacements(lambda p: BayesRMSprop(p, lr, 0.9, fixed_point=True), gradients)
    theirs = displacements(lambda p: SGD(p, lr**2), gradients)
    return Curve(x, off(ours[-1], theirs[-1]), Power(1, 1))


def bayes_rmsprop_to_natural_gradient() -> Curve:
    """Bayesian RMSprop without drift is natural gradient, whose rate falls like 1/t.

    V_t = f(V_(t−1)) + η² with f(V) = 1/(s + 1/V), whose slope is (f(V)/V)². At η = 0,
    1/V_t = 1/V_0 + ts, and the slopes of steps j+1 … t multiply to (V_t/V_j)². So to first order in
    η² the relative error is η² V_t Σ_(j≤t) V_j⁻², first order in x = η²s; from a flat prior it is
    x (t + 1)(2t + 1)/6, about x t²/3. The limit therefore needs η√s t ≪ 1: sooner or later every
    drift counts.

    Returns:
        The error of step 50.
    """
    steps, start, s = 50, 1.0, 1.0
    x = sweep(-14, 0)
    gradients = [numbers(math.sqrt(s))] * steps
    theirs = displacements(
        lambda p: FilterOptimizer(p, online_natural_gradient, initial_variance=start), gradients
    )
    errors = []
    for lr in (x / s).sqrt().tolist():
        ours = displacements(
            lambda p, lr=lr: BayesRMSprop(p, lr, 0.0, initial_variance=start), gradients
        )
        errors.append(off(ours[-1], theirs[-1]).item())
    precisions = [1 / start + j * s for j in range(1, steps + 1)]
    constant = sum(p * p for p in precisions) / precisions[-1] / s
    return Curve(x, numbers(*errors), Power(1, constant))
