"""Weight and momentum at rest: the closed form solves the Riccati equation, from h = 0 on."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import filteropt
from filteropt import regression
from filteropt.approximations import FixedPoint
from filteropt.models import MomentumAugmented
from filteropt.presets import momentum_filter
from filteropt.stationary_pair import stationary_pair
from filteropt.trees import tree_map
from filteropt.types import Belief, Diag
from tests.oracles.riccati import WIDE, conditioned, iterate, momentum_model, scipys_prior

RTOL = 1e-11 if np.finfo(WIDE).eps < 1e-18 else 1e-9  # what the oracle itself is good for
PRECISIONS = 10.0 ** np.linspace(-6, 12, 10)
MODELS = [
    {"lr": lr, "lr_w": lr_w, "decay": decay, "sigma2": sigma2}
    for lr, lr_w, decay, sigma2 in itertools.product(
        (1e-4, 1e-3, 1e-2, 0.1, 0.5), (0.0, 1e-3, 0.01, 0.2), (1e-3, 0.01, 0.1, 0.5, 1), (0.5, 50)
    )
]


def rest(h, lr, lr_w, decay, sigma2, dtype=torch.float64):
    """The covariance of the code under test, (*h.shape, 2, 2)."""
    transition = tree_map(float, MomentumAugmented(lr, sigma2, lr_w, decay).transition(1))
    found = stationary_pair(torch.as_tensor(h, dtype=dtype), transition)
    return regression.covariance(found).numpy()


def exact(precisions, models, start=None):
    """The polished solutions after conditioning, (models, precisions, 2, 2)."""
    made = [momentum_model(**model) for model in models]
    factor, noise = (np.stack(x)[:, None] for x in zip(*made, strict=True))
    h = np.asarray(precisions, dtype=WIDE)[None, :]
    factor = np.broadcast_to(factor, (len(models), len(precisions), 2, 2))
    noise = np.broadcast_to(noise, factor.shape[:-1])
    h = np.broadcast_to(h, factor.shape[:-2])
    start = np.zeros(factor.shape) if start is None else start
    return conditioned(iterate(start, factor, noise, h, doublings=45), h)


def close(found, expected, rtol):
    """Entry by entry, relative to the entry itself."""
    np.testing.assert_allclose(found, expected.astype(float), rtol=rtol, atol=0)


def test_closed_form_is_scipys_solution_on_a_grid():
    """2,000 points. Scipy's few digits are polished by iterating the equation from its solution."""
    priors = np.array(
        [[scipys_prior(*momentum_model(**m), h) for h in PRECISIONS] for m in MODELS], dtype=float
    )
    assert priors.shape == (200, 10, 2, 2)
    failed = np.isnan(priors).any((-1, -2))
    assert failed.mean() < 0.01
    start = np.where(failed[..., None, None], 0.0, priors)
    expected = exact(PRECISIONS, MODELS, start)
    found = np.array([rest(PRECISIONS, **m) for m in MODELS])
    close(found, expected, RTOL)
    raw = conditioned(priors, PRECISIONS)  # and unpolished, wherever scipy has six digits itself
    spread = np.sqrt(np.einsum("...ii->...i", expected).astype(float))
    misses = np.abs(raw - found) / (spread[..., :, None] * spread[..., None, :])
    good = misses.max((-1, -2)) < 1e-6
    assert good.mean() > 0.98


def test_residual_of_the_riccati_equation_vanishes():
    """No oracle at all: predict and condition give the same covariance back (random settings)."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        lr, lr_w = 10 ** rng.uniform(-4, 0, 2) * [1, rng.integers(2)]
        decay, h = 10 ** rng.uniform(-3, 0), 10 ** rng.uniform(-3, 6)
        sigma2 = (lr**2 + lr_w**2) * 10 ** rng.uniform(0, 4)
        factor, noise = momentum_model(lr, lr_w, decay, sigma2)
        found = rest(h, lr, lr_w, decay, sigma2).astype(WIDE)
        again = conditioned(factor @ found @ factor.T + np.diag(noise), h)
        close(found.astype(float), again, 1e-11)


def test_silent_weights_rest_at_the_prior():
    """At h = 0 the Lyapunov equation of the dynamics alone."""
    for model in MODELS:
        factor, noise = (x.astype(float) for x in momentum_model(**model))
        expected = scipy.linalg.solve_discrete_lyapunov(factor, np.diag(noise))
        tolerance = 1e-15 / (1 - factor[0, 0]) + 1e-12  # scipy's, as F is rounded
        close(rest(0.0, **model), expected, min(tolerance, 1e-6))


def test_prior_at_rest_is_the_papers_to_first_order_in_the_step():
    """Psi_ww = sigma2, Psi_wp = eta/2 and Psi_pp = eta_p/2, each off by a factor 1 + O(step)."""
    errors = []
    for step in (1e-2, 1e-3, 1e-4):
        psi = rest(0.0, step, step, 2 * step, 1.0)
        simple = np.array([[1.0, step / 2], [step / 2, step]])
        errors.append(np.abs(psi / simple - 1))
    for coarse, fine in itertools.pairwise(errors):
        np.testing.assert_allclose(coarse / fine, 10, rtol=0.1)
    assert errors[-1].max() < 1e-3


@pytest.mark.parametrize("lr_w", [0.0, 0.02])
@pytest.mark.parametrize("decay", [0.05, 0.3, 1.0])
def test_closed_form_is_the_limit_of_the_recursion(lr_w, decay):
    h = torch.cat([torch.zeros(1), torch.logspace(-6, 12, 19)]).double()
    transition = tree_map(float, MomentumAugmented(0.05, 0.05, lr_w, decay).transition(1))
    cov = regression.independent([torch.full_like(h, 0.05), torch.full_like(h, decay / 2)])
    for _ in range(1500):
        cov = regression.predict(cov, transition)
        cov, _ = regression.condition(cov, h)
    for found, expected in zip(stationary_pair(h, transition), cov, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-300)


def test_no_prior():
    """With sigma2 = inf the silent weight's variance is infinite, and every other is exact."""
    models = [{**m, "sigma2": math.inf} for m in MODELS[::2]]
    found = np.array([rest(PRECISIONS, **m) for m in models])
    close(found, exact(PRECISIONS, models), RTOL)
    silent = MomentumAugmented(1e-3, math.inf).transition(1)
    curvature = Diag(torch.zeros(3))
    assert FixedPoint("exact").variance(Belief((), ()), curvature, silent).isinf().all()


def test_without_prior_and_evidence_the_mean_stays():
    """A gradient whose square vanishes tells nothing, and moves nothing."""
    p = torch.nn.Parameter(torch.ones(3))
    walk = filteropt.variant(momentum_filter, dynamics=MomentumAugmented(1e-3, math.inf))
    opt = filteropt.FilterOptimizer([p], walk, stationary=True)
    for gradient in ([0.0, 1e-25, 1.0], [0.0, 2e-25, 1.0]):
        p.grad = torch.tensor(gradient)
        opt.step()
        assert p[0].item() == p[1].item() == 1.0
    assert 0.9 < p[2].item() < 1.0


extreme = st.fixed_dictionaries(
    {
        "lr": st.floats(-8, 0).map(lambda x: 10**x),
        "lr_w": st.just(0.0) | st.floats(-8, 0).map(lambda x: 10**x),
        "decay": st.floats(-8, 0).map(lambda x: 10**x),
        "sigma2": st.floats(0, 8).map(lambda x: 1.1 * 10**x) | st.just(math.inf),
    }
)


@settings(max_examples=200, deadline=None)
@given(model=extreme)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_finite_and_positive_for_any_precision(dtype, model):
    h = torch.cat([torch.zeros(1), torch.logspace(-30, 12, 85)]).to(dtype)
    h = h[1:] if math.isinf(model["sigma2"]) else h
    transition = MomentumAugmented(
        model["lr"], model["sigma2"], model["lr_w"], model["decay"]
    ).transition(1)
    variance, slope, residual = stationary_pair(h, tree_map(float, transition))
    for x in (variance, residual):
        assert (x > 0).all()
        assert x.isfinite().all()
    assert slope.isfinite().all()
    assert (slope >= 0).all()
    assert (variance.double() * residual.double() > 0).all()
    assert (variance.diff() <= 1e-6 * variance[:-1]).all()  # more evidence, less variance


def test_float32_agrees_with_float64():
    h = np.concatenate([[0.0], 10.0 ** np.linspace(-30, 12, 43)])
    worst = 0.0
    for model in MODELS:
        double = rest(h.astype(np.float32), **model)
        single = rest(h.astype(np.float32), **model, dtype=torch.float32).astype(float)
        different = double != single
        worst = max(worst, np.abs(single[different] / double[different] - 1).max())
    assert worst < 1e-5


@pytest.mark.parametrize("linearize_at", ["prediction", "posterior"])
@pytest.mark.parametrize("centred_beta", [None, 0.5])
def test_stationary_filter_uses_the_riccati_solution_of_the_average(centred_beta, linearize_at):
    """Every step from the equations: average, solution, then the means in either order."""
    lr, lr_w, decay, sigma2, beta2 = 0.1, 0.02, 0.2, 0.5, 0.9
    factor, noise = momentum_model(lr, lr_w, decay, sigma2)
    p = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    options = {"linearize_at": linearize_at, "centred_beta": centred_beta, "beta2": beta2}
    opt = filteropt.MomentumFilter([p], lr, sigma2 * 4, lr_w, decay, batch_size=4, stationary=True,
                                   **options)  # fmt: skip
    weight, momentum = p.detach().numpy().copy(), np.zeros(3)
    average = centre = np.zeros(3)
    shrink = float(1 - factor[0, 0])
    gradients = np.random.default_rng(0).standard_normal((25, 3)) * [0.05, 1.0, 20.0]
    for t, g in enumerate(gradients, 1):
        known = t if centred_beta is None else t - 1
        seen = g**2
        if centred_beta is not None:  # the first gradient tells nothing of its spread
            mean = centre / (1 - centred_beta**known) if known else 0.0
            gathered = 1 - centred_beta**known
            unbias = (1 + centred_beta) * gathered / (2 * (1 - centred_beta**t))
            seen = unbias * (g - mean) ** 2
            centre = centred_beta * centre + (1 - centred_beta) * g
        average = beta2 * average + (1 - beta2) * seen
        h = average / (1 - beta2**known) if known else average
        found = conditioned(
            iterate(
                np.zeros((3, 2, 2)),
                np.broadcast_to(factor, (3, 2, 2)),
                np.broadcast_to(noise, (3, 2)),
                h.astype(WIDE),
                45,
            ),
            h.astype(WIDE),
        ).astype(float)
        ahead = lr * momentum * (linearize_at == "posterior")
        momentum = (1 - decay) * momentum if t > 1 else momentum
        pull = g + h * ahead
        momentum = momentum - found[:, 0, 1] * pull
        moved = ahead - found[:, 0, 0] * pull
        if linearize_at == "prediction":
            weight = (1 - shrink) * (weight + moved) + lr * momentum
        else:
            weight = weight + moved - shrink * weight
        p.grad = torch.tensor(g / 4)
        opt.step()
        np.testing.assert_allclose(p.detach().numpy(), weight, rtol=1e-10, atol=1e-12)
        close(opt.posterior_covariance(p).numpy(), found, 1e-9)
