"""What the filters become at the edges of their hyperparameters, each with its order of error."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import filteropt
from filteropt import FilterOptimizer
from filteropt.approximations import (
    Averaged,
    Dense,
    Diagonal,
    FixedPoint,
    GaussNewton,
    GaussNewtonDiagonal,
    SquaredGradient,
)
from filteropt.engine import Filter
from filteropt.linalg import condition_root, predict_root
from filteropt.models import ForgetToPrior, RandomWalk


def weight(value=0.0):
    return nn.Parameter(torch.tensor([value], dtype=torch.float64))


def feed(opt, p, gradients):
    for g in gradients:
        p.grad = torch.full_like(p, float(g))
        opt.step()


def step_at_rest(eta, root_s, steps):
    """The step that Bayesian RMSprop takes under a constant gradient, per unit of gradient."""
    p = weight()
    opt = filteropt.BayesRMSprop([p], eta, beta2=0.0)
    feed(opt, p, [root_s] * steps)
    p.data.zero_()
    feed(opt, p, [root_s])
    return -p.item() / root_s


@pytest.mark.parametrize("eta", [1e-3, 1.0])
def test_small_gradients_are_rmsprops_with_error_half_eta_root_s(eta):
    coarse, fine = (
        step_at_rest(eta, x / eta, steps=int(20 / x)) / (eta / (x / eta)) - 1 for x in (0.1, 0.01)
    )
    assert coarse == pytest.approx(0.05, rel=0.03)
    assert fine == pytest.approx(0.005, rel=0.003)


@pytest.mark.parametrize("eta", [1e-3, 1.0])
def test_large_gradients_are_sgds_at_rate_eta_squared_with_error_one_over_eta_squared_s(eta):
    for x in (10.0, 100.0):
        error = step_at_rest(eta, x / eta, steps=50) / eta**2 - 1
        assert error == pytest.approx(1 / x**2, rel=1.1 / x**2)


def test_no_drift_is_natural_gradient_with_error_of_order_drift_squared():
    """1/Sigma = 1/Sigma_0 + the sum of the squared gradients: annealed like 1/t."""
    gradients = np.random.default_rng(0).normal(size=50) + 1.0
    expected = -np.sum(gradients / (1 / 0.5 + np.cumsum(gradients**2)))
    errors = []
    for eta in (1e-3, 1e-4):
        p = weight()
        opt = filteropt.BayesRMSprop([p], eta, beta2=0.0, initial_variance=0.5)
        feed(opt, p, gradients)
        errors.append(abs(p.item() - expected))
    assert errors[1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.02)


@settings(max_examples=10, deadline=None)
@given(forgetting=st.floats(0.01, 0.5), g=st.floats(0.1, 10), initial=st.floats(0.01, 10))
def test_fading_memory_rests_at_lambda_over_g_squared_at_rate_one_minus_lambda(
    forgetting, g, initial
):
    p = weight()
    opt = filteropt.OnlineNaturalGradient([p], forgetting=forgetting, initial_variance=initial)
    first = 1 / initial + g**2 - g**2 / forgetting
    for t in range(30):
        feed(opt, p, [g])
        gap = 1 / opt.posterior_variance(p).item() - g**2 / forgetting
        assert gap == pytest.approx(
            (1 - forgetting) ** t * first, abs=1e-12 * (1 / initial + g**2 / forgetting)
        )


def test_a_dense_slow_random_walk_whitens_with_error_of_order_eta():
    """Sigma = eta H^(-1/2), off by eta^2/2 in every direction."""
    root = np.random.default_rng(0).normal(size=(4, 4))
    h = root @ root.T + 0.5 * np.eye(4)
    rows = torch.tensor(np.linalg.cholesky(h).T)
    gaps = []
    for eta in (0.05, 0.005):
        transition = RandomWalk(eta).transition(1)
        found = torch.eye(4, dtype=torch.float64)
        for _ in range(int(25 / eta)):
            found = condition_root(predict_root(found, transition), rows)
        expected = eta * np.linalg.inv(scipy.linalg.sqrtm(h))
        gaps.append((found @ found.T).numpy() / eta - expected / eta)
    np.testing.assert_allclose(gaps[0], -0.025 * np.eye(4), atol=1e-3)
    np.testing.assert_allclose(gaps[1], -0.0025 * np.eye(4), atol=1e-5)


class Rows(nn.Module):
    """A linear model of one output, or one output per weight."""

    def __init__(self, start, *, separate):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))
        self.separate = separate

    def forward(self, x):
        return x * self.w if self.separate else x @ self.w[:, None]


@pytest.mark.parametrize("separate", [False, True])
@settings(max_examples=8, deadline=None)
@given(
    rho=st.floats(0.001, 0.9),
    prior=st.floats(0.05, 20.0),
    initial=st.one_of(st.none(), st.floats(0.05, 20.0)),
    seed=st.integers(0, 999),
)
def test_forgetting_is_the_geometric_mean_with_the_prior_exactly(
    separate, rho, prior, initial, seed
):
    """On quadratic losses, means and covariances, by natural parameters: an exact Gaussian algebra.

    q^(1-rho) p0^rho has (1-rho) times q's natural parameters plus rho times the prior's.
    """
    generator = np.random.default_rng(seed)
    model = Rows(generator.normal(size=3), separate=separate)
    precision = np.eye(3) / (initial or prior)
    shift = precision @ model.w.detach().numpy()
    family, likelihood = (Diagonal, GaussNewtonDiagonal) if separate else (Dense, GaussNewton)

    def preset():
        return Filter(ForgetToPrior(rho, prior), likelihood(noise_variance=0.4), family(initial))

    opt = FilterOptimizer([model.w], preset, model=model)
    for _ in range(8):
        x = generator.normal(size=(2, 3))
        y = generator.normal(size=(2, 3 if separate else 1))
        opt.zero_grad()
        ((model(torch.tensor(x)) - torch.tensor(y)).square().sum() / 0.8).backward()
        opt.step()
        precision, shift = (1 - rho) * precision + rho * np.eye(3) / prior, (1 - rho) * shift
        design = np.vstack([np.diag(row) for row in x]) if separate else x
        precision, shift = precision + design.T @ design / 0.4, shift + design.T @ y.ravel() / 0.4
        cov = np.linalg.inv(precision)
        np.testing.assert_allclose(model.w.detach(), cov @ shift, rtol=1e-8, atol=1e-9)
        found = opt.posterior_covariance(model.w).squeeze(-1, -2).numpy()
        expected = np.diag(cov) if separate else cov
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", [Dense, Diagonal])
def test_without_evidence_the_belief_tends_to_the_prior(family):
    """After one gradient, t steps without: precision and its product with the mean decay alone."""
    rho, prior, g = 0.05, 0.3, 4.0
    p = weight(2.0)
    squares = SquaredGradient(beta1=None)
    opt = FilterOptimizer([p], lambda: Filter(ForgetToPrior(rho, prior), squares, family()))
    feed(opt, p, [g])
    precision, mean = 1 / prior + g**2, p.item()
    for t in range(1, 400):
        feed(opt, p, [0.0])
        kept = (1 - rho) ** t
        now = kept * precision + (1 - kept) / prior
        assert opt.posterior_variance(p).item() == pytest.approx(1 / now, rel=1e-11)
        assert p.item() == pytest.approx(kept * precision * mean / now, rel=1e-10)
    assert opt.posterior_variance(p).item() == pytest.approx(prior, rel=1e-6)
    assert abs(p.item()) < 1e-6


@pytest.mark.parametrize("rest", [True, False])
def test_forgetting_settles_where_the_likelihood_counts_one_over_rho_times(rest):
    """The minimum of h (w - c)^2/(2 rho) + w^2/(2 Sigma_0), for the recursion and at its rest."""
    rho, prior, c = 0.1, 0.5, 3.0
    p = weight()
    squares = Averaged(SquaredGradient(beta1=None), beta2=0.0, eps=2.0)
    family = FixedPoint("exact") if rest else Diagonal()
    opt = FilterOptimizer([p], lambda: Filter(ForgetToPrior(rho, prior), squares, family))
    for _ in range(800):  # curvature 2, and a little more while the gradient is large
        feed(opt, p, [2.0 * (p.item() - c)])
    h = 2.0
    assert p.item() == pytest.approx(c * (h / rho) / (h / rho + 1 / prior), rel=1e-9)


def counterexample(make, schedule, steps=3000):
    """Reddi et al. (2018): 3x at every third step, else -x, on [-1, 1]; best in the mean at -1."""
    p, total = weight(0.0), []
    opt = make([p])
    for t in range(1, steps + 1):
        opt.param_groups[0]["lr"] = schedule(t)
        p.grad = torch.full_like(p, 3.0 if t % 3 == 1 else -1.0)
        opt.step()
        p.data.clamp_(-1, 1)
        total.append(p.item())
    return np.array(total[-30:])


def test_adam_goes_to_the_worst_point_of_reddis_counterexample():
    def make(params):
        return torch.optim.Adam(params, betas=(0.0, 1 / (1 + 3.0**2)))

    assert (counterexample(make, lambda t: 0.5 / t**0.5) > 0.95).all()


@pytest.mark.parametrize(("forgetting", "gain"), [(0.0, 10.0), (0.01, 1.0)])
def test_natural_gradient_goes_to_the_best_point_of_reddis_counterexample(forgetting, gain):
    """Its rate falls like 1/t, or is the same for every gradient: the mean gradient decides."""

    def make(params):
        return filteropt.OnlineNaturalGradient(params, forgetting=forgetting, initial_variance=1.0)

    assert (counterexample(make, lambda _: gain) < -0.95).all()
