"""Exact fixed points: where the recursion ends, Riccati's equation, and published closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filteropt import FilterOptimizer, engine
from filteropt.approximations import Averaged, FixedPoint, SquaredGradient
from filteropt.engine import Filter, IncompatibleComposition
from filteropt.linalg import stationary_covariance, stationary_variance
from filteropt.models import FixedNoise, ForgetToPrior, ProportionalNoise, RandomWalk, Static
from filteropt.types import Belief, Diag

PRECISIONS = np.logspace(-8, 8, 33)


def rest(dynamics, h, method="exact"):
    return FixedPoint(method).variance(Belief((), ()), Diag(h), dynamics.transition(1))


def euler(lr, sigma2):
    """The published prediction of fixed noise, in its two discretisations below."""
    return lambda v: (1 - lr**2 / (2 * sigma2)) ** 2 * v + lr**2


def exact(lr, sigma2):
    return lambda v: np.exp(-(lr**2) / sigma2) * v - sigma2 * np.expm1(-(lr**2) / sigma2)


def forgotten(rho, prior):
    return lambda v: 1 / ((1 - rho) / v + rho / prior)


RECURSIONS = {
    "FixedNoise-euler": (FixedNoise(0.02, 0.05), euler(0.02, 0.05)),
    "FixedNoise-exact": (FixedNoise(0.02, 0.05, discretization="exact"), exact(0.02, 0.05)),
    "FixedNoise-short": (FixedNoise(0.3, 0.05), euler(0.3, 0.05)),
    "FixedNoise-exact-short": (FixedNoise(0.3, 0.05, discretization="exact"), exact(0.3, 0.05)),
    "RandomWalk": (RandomWalk(3.0), lambda v: v + 9.0),
    "ProportionalNoise": (ProportionalNoise(0.001), lambda v: v / 0.999),
    "ProportionalNoise-fast": (ProportionalNoise(0.5), lambda v: v / 0.5),
    "ForgetToPrior": (ForgetToPrior(0.001, 0.3), forgotten(0.001, 0.3)),
    "ForgetToPrior-fast": (ForgetToPrior(0.7, 40.0), forgotten(0.7, 40.0)),
}


@pytest.mark.parametrize("name", RECURSIONS)
def test_exact_is_where_two_hundred_thousand_steps_of_the_recursion_end(name):
    """From h = 1e-8 to 1e8; the recursion in NumPy."""
    dynamics, predict = RECURSIONS[name]
    variance = np.full_like(PRECISIONS, 0.1)
    for _ in range(200_000):
        prior = predict(variance)
        variance = prior / (1 + PRECISIONS * prior)
    found = rest(dynamics, torch.tensor(PRECISIONS))
    np.testing.assert_allclose(found, variance, rtol=1e-11)


@pytest.mark.parametrize("dynamics", [
    FixedNoise(1e-5, 0.01), FixedNoise(1e-3, 0.1), FixedNoise(0.1, 10.0), FixedNoise(1.0, 0.3),
    FixedNoise(1e-3, 0.1, discretization="exact"), RandomWalk(1e-5), RandomWalk(1.0),
    ProportionalNoise(1e-6), ProportionalNoise(0.01), ProportionalNoise(0.99),
    ForgetToPrior(1e-6, 0.1), ForgetToPrior(0.01, 1e-3), ForgetToPrior(0.99, 1e3),
])  # fmt: skip
@pytest.mark.parametrize("method", ["taylor", "exact"])
def test_single_precision_keeps_its_digits(dynamics, method):
    """Precisions from 1e-30 to 1e30, wherever the double-precision variance is a normal single."""
    h = torch.logspace(-30, 30, 181)
    expected, found = rest(dynamics, h.double(), method), rest(dynamics, h, method)
    limits = torch.finfo(torch.float32)
    normal = (expected > 2 * limits.tiny) & (expected < limits.max / 2)
    assert normal.sum() > 100
    torch.testing.assert_close(found[normal].double(), expected[normal], rtol=1e-5, atol=0)
    assert (found > 0).all()
    assert not found.isnan().any()


@settings(max_examples=200, deadline=None)
@given(
    log_grown=st.floats(-6, 0), log_q=st.one_of(st.none(), st.floats(-8, 2)),
    log_h=st.floats(-8, 8), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_growing_dynamics_rest_where_the_riccati_equation_holds(log_grown, log_q, log_h, dtype):
    """For a > 1, with drift or without: the positive root of a h S^2 + (1 - a + h q) S = q."""
    grown, q = 10**log_grown, 0.0 if log_q is None else 10**log_q
    h = torch.tensor(10**log_h, dtype=dtype)
    a, exactly = 1 + grown, np.longdouble(h.item())
    b = exactly * q - np.longdouble(grown)
    root = np.sqrt(b * b + 4 * exactly * np.longdouble(a) * q)
    expected = 2 * q / (b + root) if b > 0 else (root - b) / (2 * a * exactly)
    found = stationary_variance(h, a, q, lost=-grown).item()
    assert found == pytest.approx(float(expected), rel=1e-5 if dtype == torch.float32 else 1e-12)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 6),
    seed=st.integers(0, 999),
    a=st.floats(0.3, 1.3),
    log_q=st.floats(-5, 1),
    log_h=st.floats(-3, 3),
)
def test_matrix_fixed_point_solves_the_discrete_riccati_equation(n, seed, a, log_q, log_h):
    q = 10**log_q
    root = np.random.default_rng(seed).normal(size=(n, n)) + np.eye(n)
    precision = 10**log_h * (root @ root.T + 0.1 * np.eye(n))
    eye = np.eye(n)
    prior = scipy.linalg.solve_discrete_are(
        np.sqrt(a) * eye, eye, q * eye, np.linalg.inv(precision)
    )
    expected = np.linalg.inv(np.linalg.inv(prior) + precision)
    found = stationary_covariance(torch.tensor(precision), a, q).numpy()
    gap = np.linalg.norm(found - expected, 2) / np.linalg.norm(expected, 2)
    assert gap < 1e-9 * max(1.0, np.linalg.cond(prior) ** 0.5)


def test_matrix_fixed_point_bounds_unseen_directions_by_the_prior():
    """A singular precision: q/(1 - a) across, the scalar fixed point along."""
    direction = torch.tensor([3.0, 4.0], dtype=torch.float64) / 5
    across = torch.tensor([-4.0, 3.0], dtype=torch.float64) / 5
    found = stationary_covariance(7.0 * torch.outer(direction, direction), 0.9, 0.02)
    along = stationary_variance(torch.tensor(7.0, dtype=torch.float64), 0.9, 0.02)
    torch.testing.assert_close(found @ direction, along * direction, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found @ across, 0.2 * across, rtol=1e-12, atol=1e-15)


def test_matrix_fixed_points_come_in_batches():
    stack = torch.stack([torch.eye(2).double() * x for x in (1.0, 4.0)])
    each = torch.stack([stationary_covariance(x, 0.99, 0.1) for x in stack])
    torch.testing.assert_close(stationary_covariance(stack, 0.99, 0.1), each, rtol=0, atol=0)


def test_scalar_fixed_point_of_the_random_walk_is_the_blogs():
    """Predicted variance eta^2/2 + (eta/sqrt(s)) sqrt(eta^2 s/4 + 1)."""
    eta = 0.05
    blog = eta**2 / 2 + eta / np.sqrt(PRECISIONS) * np.sqrt(eta**2 * PRECISIONS / 4 + 1)
    found = rest(RandomWalk(eta), torch.tensor(PRECISIONS))
    np.testing.assert_allclose(found + eta**2, blog, rtol=1e-13)


@pytest.mark.parametrize("eta", [1e-3, 0.1, 3.0])
def test_matrix_fixed_point_of_the_random_walk_is_the_blogs(eta):
    """Predicted covariance eta^2/2 I + (eta^2 G^-1 + eta^4/4 I)^(1/2)."""
    root = np.random.default_rng(0).normal(size=(5, 5))
    g = root @ root.T + 0.5 * np.eye(5)
    inside = eta**2 * np.linalg.inv(g) + eta**4 / 4 * np.eye(5)
    blog = eta**2 / 2 * np.eye(5) + scipy.linalg.sqrtm(inside)
    found = stationary_covariance(torch.tensor(g), 1.0, eta**2).numpy() + eta**2 * np.eye(5)
    np.testing.assert_allclose(found, blog, rtol=1e-11, atol=1e-12 * np.abs(blog).max())


@pytest.mark.parametrize("method", ["taylor", "exact"])
@pytest.mark.parametrize("forgetting", [1e-4, 0.01, 0.9])
def test_forgetting_rests_at_its_closed_form_under_both_methods(method, forgetting):
    """lambda/h for fading memory, rho/(h + rho/S0) for forgetting to the prior: no step error."""
    h, prior = torch.tensor(PRECISIONS), 0.2
    fading = rest(ProportionalNoise(forgetting), h, method)
    np.testing.assert_allclose(fading, forgetting / PRECISIONS, rtol=1e-13)
    pulled = rest(ForgetToPrior(forgetting, prior), h, method)
    expected = forgetting / (PRECISIONS + forgetting / prior)
    np.testing.assert_allclose(pulled, expected, rtol=1e-13)


@pytest.mark.parametrize("method", ["taylor", "exact"])
@pytest.mark.parametrize(
    "dynamics", [Static(), ProportionalNoise(0.0), ForgetToPrior(0.0), RandomWalk(0.0)]
)
def test_dynamics_that_never_rest_are_refused_by_name(dynamics, method):
    filter = Filter(dynamics, Averaged(), FixedPoint(method))
    with pytest.raises(IncompatibleComposition) as raised:
        engine.check(filter)
    for word in (type(dynamics).__name__, "FixedPoint", "stationary", "Would fit", "ForgetToPrior"):
        assert word in str(raised.value)


@pytest.mark.parametrize("method", ["taylor", "exact"])
@pytest.mark.parametrize("dynamics", [
    FixedNoise(0.1, 0.5), FixedNoise(0.1, 0.5, discretization="exact"), RandomWalk(0.1),
    ProportionalNoise(0.1), ForgetToPrior(0.1, 0.5),
])  # fmt: skip
def test_the_optimizers_variance_is_at_rest_for_its_running_curvature(dynamics, method):
    """And it steps by it: the displacement from 0 is the variance times the gradient."""
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    squares = Averaged(SquaredGradient(beta1=None), beta2=0.8)
    opt = FilterOptimizer([p], lambda: Filter(dynamics, squares, FixedPoint(method)))
    generator, average = np.random.default_rng(0), 0.0
    for t in range(1, 8):
        gradient = generator.normal(size=4) * np.array([1e-3, 1.0, 10.0, 100.0])
        average = 0.8 * average + 0.2 * gradient**2
        expected = rest(dynamics, torch.tensor(average / (1 - 0.8**t)), method)
        p.data.zero_()
        p.grad = torch.tensor(gradient)
        opt.step()
        torch.testing.assert_close(opt.posterior_variance(p), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(p.data, -expected * torch.tensor(gradient), rtol=1e-12, atol=0)
