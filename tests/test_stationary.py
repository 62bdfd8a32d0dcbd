"""Fixed points: exact, Taylor, and the recursion that tends to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filteropt.approximations import Diagonal, FixedPoint
from filteropt.linalg import stationary_flow, stationary_variance
from filteropt.models import FixedNoise
from filteropt.types import Belief, Diag, Observation

ETA, SIGMA2 = 1e-3, 0.1 / 128


def rest(model, h, method):
    return FixedPoint(method).variance(Belief((), ()), Diag(h), model.transition(1))


@pytest.mark.parametrize("discretization", ["euler", "exact"])
def test_exact_fixed_point_is_the_limit_of_the_recursion(discretization):
    model = FixedNoise(0.02, 0.05, discretization=discretization)
    h = torch.logspace(-4, 8, 25, dtype=torch.float64)
    family, transition = Diagonal(), model.transition(1)
    belief = family.init(torch.zeros_like(h), 0.05, 1)
    for _ in range(3000):
        _, prior = family.propagate(belief, transition)
        _, belief = family.condition(0.0, prior, Observation(h, Diag(h)), transition)
    expected = rest(model, h, "exact")
    torch.testing.assert_close(belief.cov[0], expected, rtol=1e-11, atol=0)


@settings(max_examples=200, deadline=None)
@given(a=st.floats(0.05, 0.999), log_q=st.floats(-8, 2), log_h=st.floats(-4, 6))
def test_stationary_variance_solves_the_riccati_equation(a, log_q, log_h):
    q, h = 10**log_q, 10**log_h
    prior = scipy.linalg.solve_discrete_are([[math.sqrt(a)]], [[1.0]], [[q]], [[1 / h]]).item()
    found = stationary_variance(torch.tensor(h, dtype=torch.float64), a, q).item()
    assert found == pytest.approx(1 / (1 / prior + h), rel=1e-7)


@settings(max_examples=200, deadline=None)
@given(rho=st.floats(1e-3, 1.0), log_q=st.floats(-6, 1), log_h=st.floats(-3, 5))
def test_stationary_flow_solves_the_kalman_bucy_equation(rho, log_q, log_h):
    q, h = 10**log_q, 10**log_h
    expected = scipy.linalg.solve_continuous_are([[-rho / 2]], [[1.0]], [[q]], [[1 / h]]).item()
    found = stationary_flow(torch.tensor(h, dtype=torch.float64), rho, q).item()
    assert found == pytest.approx(expected, rel=1e-7)


def test_taylor_is_the_papers_equation_20():
    h = torch.logspace(-8, 8, 33, dtype=torch.float64)
    expected = 1 / (1 / (2 * SIGMA2) + (1 / (4 * SIGMA2**2) + h / ETA**2).sqrt())
    torch.testing.assert_close(
        rest(FixedNoise(ETA, SIGMA2), h, "taylor"), expected, rtol=1e-13, atol=0
    )


def test_taylor_error_grows_as_half_eta_root_h():
    h = torch.tensor([1e2, 1e4], dtype=torch.float64)
    model = FixedNoise(ETA, SIGMA2)
    error = rest(model, h, "taylor") / rest(model, h, "exact") - 1
    expected = ETA * h.sqrt() / 2
    assert error[1].item() == pytest.approx(expected[1].item(), rel=0.03)
    assert error[0].item() == pytest.approx(0.004, rel=0.1)


@pytest.mark.parametrize("method", ["taylor", "exact"])
def test_float32_loses_no_digits_to_cancellation(method):
    h = torch.cat([torch.zeros(1), torch.logspace(-30, 30, 121)])
    for model in (FixedNoise(1e-5, 0.01), FixedNoise(ETA, SIGMA2), FixedNoise(0.1, 10.0)):
        double = rest(model, h.double(), method)
        single = rest(model, h, method).double()
        torch.testing.assert_close(single, double, rtol=1e-6, atol=1e-38)


@settings(max_examples=100, deadline=None)
@given(log_lr=st.floats(-6, -1), log_sigma2=st.floats(-2, 2), t=st.integers(1, 1000))
def test_exact_discretization_is_the_integrated_process(log_lr, log_sigma2, t):
    """exp(A) and the integral of exp(As) Q exp(As)' by Van Loan's block exponential."""
    lr, sigma2 = 10**log_lr, 10**log_sigma2
    transition = FixedNoise(lr, sigma2, discretization="exact").transition(t)
    rate = -(lr**2) / (2 * sigma2)
    block = scipy.linalg.expm(np.array([[-rate, lr**2], [0.0, rate]]))
    factor = block[1, 1]
    assert float(transition.F[0][0]) == pytest.approx(factor, rel=1e-12)
    assert float(transition.Q[0]) == pytest.approx(factor * block[0, 1], rel=1e-9)


def test_exact_discretization_keeps_the_prior_variance_and_has_a_random_walk_limit():
    transition = FixedNoise(0.3, 0.2, discretization="exact").transition(1)
    kept = transition.F[0][0] ** 2 * 0.2 + transition.Q[0]
    assert float(kept) == pytest.approx(0.2, rel=1e-14)
    walk = FixedNoise(0.3, float("inf"), discretization="exact").transition(1)
    assert float(walk.F[0][0]) == 1.0
    assert float(walk.Q[0]) == pytest.approx(0.09, rel=1e-14)


def test_euler_is_exact_to_first_order_in_the_step():
    gaps = []
    for lr in (0.02, 0.002):
        euler, exact = (
            FixedNoise(lr, 0.1, discretization=d).transition(1) for d in ("euler", "exact")
        )
        gap = euler.F[0][0] - exact.F[0][0], euler.Q[0] - exact.Q[0]
        gaps.append([abs(float(x)) for x in gap])
    for coarse, fine in zip(*gaps, strict=True):
        assert coarse / fine == pytest.approx(1e4, rel=0.02)  # second order in lr^2


def test_implied_decay_is_the_models_own():
    assert float(FixedNoise(0.1, 0.5).transition(1).decay) == pytest.approx(0.01, rel=1e-14)
    exact = FixedNoise(0.1, 0.5, discretization="exact").transition(1)
    assert float(exact.decay) == pytest.approx(1 - math.exp(-0.01), rel=1e-14)
    assert float(FixedNoise(0.1, 0.5, weight_decay=0.3).transition(1).decay) == pytest.approx(0.03)
