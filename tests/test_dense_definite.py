"""The square-root form of the dense posterior: definite, exact and the scalar filter's equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filteropt import FilterOptimizer
from filteropt.approximations import Dense, Diagonal, SquaredGradient
from filteropt.engine import Filter
from filteropt.linalg import condition_root, predict_root
from filteropt.models import FixedNoise, ForgetToPrior, ProportionalNoise, RandomWalk, Static
from filteropt.trees import tree_map
from filteropt.types import Transition


def random(seed, *shape):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


sizes = {"n": st.integers(1, 8), "seed": st.integers(0, 10_000)}


@settings(max_examples=200, deadline=None)
@given(**sizes, r=st.integers(0, 20), log_prior=st.floats(-4, 4), log_row=st.floats(-4, 4))
def test_conditioning_is_the_inverse_of_summed_precisions(n, seed, r, log_prior, log_row):
    """Fewer rows than weights, as many, and more; to the accuracy of the explicit inverse."""
    root = 10**log_prior * (random(seed, n, n) + 2 * torch.eye(n))
    rows = 10**log_row * random(seed + 1, r, n)
    precision = torch.linalg.inv(root @ root.T) + rows.T @ rows
    expected = torch.linalg.inv(precision)
    found = condition_root(root, rows)
    rounding = 1e-13 * (torch.linalg.cond(precision) + torch.linalg.cond(root) ** 2).item()
    if rounding < 1e-3:  # else the explicit inverses have lost their digits
        gap = torch.linalg.matrix_norm(found @ found.T - expected, 2)
        assert gap <= rounding * torch.linalg.matrix_norm(expected, 2)


@settings(max_examples=200, deadline=None)
@given(
    **sizes,
    factor=st.floats(-0.9, 1.0),
    c=st.floats(0.5, 2.0),
    log_noise=st.one_of(st.none(), st.floats(-6, 2)),
    log_pull=st.one_of(st.none(), st.floats(-4, 2)),
)
def test_predicting_is_the_covariances_own_recursion(n, seed, factor, c, log_noise, log_pull):
    root = random(seed, n, n) + 2 * torch.eye(n)
    noise = 0.0 if log_noise is None else 10**log_noise
    pull = None if log_pull is None else 10**log_pull
    eye = torch.eye(n, dtype=torch.float64)
    if abs(factor) < 1e-3 and not noise:
        return
    expected = c * factor**2 * root @ root.T + noise * eye
    if pull is not None:
        expected = torch.linalg.inv(torch.linalg.inv(expected) + pull * eye)
    found = predict_root(root, Transition(((factor,),), (noise,), c=c, pull=pull))
    gap = torch.linalg.matrix_norm(found @ found.T - expected, 2)
    rounding = 1e-13 * (1 + torch.linalg.cond(root) ** 2)
    assert gap <= rounding * torch.linalg.matrix_norm(expected, 2)


def evidence(steps, n, low, high, seed=0):
    """Rows of random directions whose lengths span decades; drift or fading once in a while."""
    generator = np.random.default_rng(seed)
    lengths = 10 ** generator.uniform(low, high, size=(steps, 1, 1))
    rows = generator.normal(size=(steps, 1, n)) * lengths
    ages = [None] * steps
    for t in np.flatnonzero(generator.random(steps) < 0.1):
        drift = 10 ** generator.uniform(-12, -2) if generator.random() < 0.5 else 0.0
        ages[t] = Transition(((1.0,),), (drift,), c=1.0 if drift else 1.25)
    return torch.tensor(rows), ages


@torch.inference_mode()
def filtered(rows, ages, dtype, n):
    """The root after every step."""
    root, kept = torch.eye(n, dtype=dtype), []
    for row, age in zip(rows.to(dtype), ages, strict=True):
        if age is not None:
            root = predict_root(root, age)
        root = condition_root(root, row)
        kept.append(root)
    return torch.stack(kept).double()


def test_a_hundred_thousand_steps_in_single_precision_stay_positive_definite():
    """Rows over twelve decades, drift over ten; eigenvalues in double precision."""
    roots = filtered(*evidence(100_000, 6, -6, 6), torch.float32, 6)
    assert roots.isfinite().all()
    covariances = roots @ roots.mT
    assert torch.equal(covariances, covariances.mT)
    eigenvalues = torch.linalg.eigvalsh(covariances)
    assert (eigenvalues[:, 0] > 1e-14 * eigenvalues[:, -1]).all()  # far above their rounding


def test_single_precision_agrees_with_double_where_the_data_are_well_scaled():
    """2,000 steps of rows of length 0.1 to 10: to 1e-5 of the covariance."""
    rows, ages = evidence(2000, 6, -1, 1)
    single, double = (filtered(rows, ages, d, 6) for d in (torch.float32, torch.float64))
    found, expected = single @ single.mT, double @ double.mT
    gap = torch.linalg.matrix_norm(found - expected, 2)
    assert (gap / torch.linalg.matrix_norm(expected, 2)).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_one_precise_row_leaves_the_variance_that_is_due(n, dtype):
    """Variance 1/(1 + s^2) along the row and 1 across, for s up to 1e15: nothing cancels."""
    rtol = 1e-5 if dtype == torch.float32 else 1e-13
    for s in 10.0 ** np.arange(-15, 16, 3):
        for axis in range(n):
            row = torch.zeros(1, n, dtype=dtype)
            row[0, axis] = s
            root = condition_root(torch.eye(n, dtype=dtype), row)
            expected = torch.ones(n, dtype=torch.float64)
            expected[axis] = 1 / (1 + s**2)
            variances = root.double().square().sum(-1)
            torch.testing.assert_close(variances, expected, rtol=rtol, atol=0)


@settings(max_examples=50, deadline=None)
@given(**sizes, r=st.integers(1, 10))
def test_turned_coordinates_give_the_turned_covariance(n, seed, r):
    """Conditioning and isotropic ageing know no preferred coordinates."""
    root, rows = random(seed, n, n), random(seed + 1, r, n)
    turn = torch.linalg.qr(random(seed + 2, n, n)).Q
    age = Transition(((0.9,),), (0.1,), c=1.1, pull=0.2)
    plain = condition_root(predict_root(root, age), rows)
    turned = condition_root(predict_root(turn @ root, age), rows @ turn.T)
    expected = turn @ plain @ plain.T @ turn.T
    torch.testing.assert_close(turned @ turned.T, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_without_evidence_leaves_the_others_forgetting_alone(dtype):
    """Its variance grows to where it is stopped; the seen weight's stays at lambda/h."""
    forgetting, h = 0.5, 4.0
    fading = tree_map(float, ProportionalNoise(forgetting).transition(1))
    root = torch.eye(2, dtype=dtype)
    row = torch.tensor([[h**0.5, 0.0]], dtype=dtype)
    for _ in range(1500):
        root = condition_root(predict_root(root, fading), row)
    seen, unseen = root.double().square().sum(-1).tolist()
    assert seen == pytest.approx(forgetting / h, rel=1e-5)
    assert 1e6 * seen < unseen < float("inf")


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e12), (torch.float64, 1e18)])
def test_weights_of_very_different_precision_each_rest_at_lambda_over_h(dtype, largest):
    """One weight's certainty does not bound another's variance; each is seen at every step."""
    forgetting, h = 0.1, torch.tensor([largest, 1.0, 0.3], dtype=dtype).square()
    fading = tree_map(float, ProportionalNoise(forgetting).transition(1))
    root = 0.1 * torch.eye(3, dtype=dtype)
    for _ in range(500):
        for row in h.sqrt().diag()[:, None]:
            root = condition_root(root, row)
        root = predict_root(root, fading)
    variances = root.double().square().sum(-1) * (1 - forgetting)  # before the last prediction
    torch.testing.assert_close(variances, forgetting / h.double(), rtol=1e-4, atol=0)


DYNAMICS = {
    "Static": Static(),
    "RandomWalk": RandomWalk(0.1, weight_decay=0.2),
    "FixedNoise": FixedNoise(0.2, 0.5),
    "exact": FixedNoise(0.2, 0.5, discretization="exact"),
    "ProportionalNoise": ProportionalNoise(0.1),
    "ForgetToPrior": ForgetToPrior(0.1, 0.5),
}


@pytest.mark.parametrize("dynamics", DYNAMICS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), log_scale=st.floats(-2, 2), initial=st.floats(0.01, 10))
def test_dense_is_diagonal_where_the_curvature_is(dynamics, seed, log_scale, initial):
    """Whole trajectories of a 2x3 tensor, means and covariances."""
    gradients = 10**log_scale * random(seed, 10, 2, 3)
    found = []
    for family in (Dense, Diagonal):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3))

        def preset(family=family):
            return Filter(DYNAMICS[dynamics], SquaredGradient(), family(initial))

        opt, trajectory = FilterOptimizer([p], preset), []
        for gradient in gradients:
            p.grad = gradient + 0.1 * p.detach()
            opt.step()
            trajectory.append(torch.stack([p.detach(), opt.posterior_variance(p)]))
        found.append(torch.stack(trajectory))
        if family is Dense:
            covariance = opt.posterior_covariance(p)
            assert covariance.shape == (6, 6)
            across = covariance - covariance.diag().diag()
            assert across.abs().max() <= 1e-14 * covariance.max()
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)
