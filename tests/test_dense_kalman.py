"""Dense posterior and Gauss–Newton curvature: Bayesian regression and the Kalman filter itself."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import filteropt
from filteropt import FilterOptimizer, engine
from filteropt.approximations import Dense, GaussNewton
from filteropt.engine import Filter
from filteropt.models import FixedNoise, RandomWalk, Static
from filteropt.trees import tree_map
from filteropt.types import Raw
from tests.oracles.filters import ExtendedKalman, SoftmaxKalman, bayesian_regression

NOISE = 0.3


def close(found, expected, rtol=1e-8):
    """Every entry, to ``rtol`` of itself or of a thousandth of the largest."""
    expected = np.asarray(expected)
    atol = rtol * 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found.detach()), expected, rtol=rtol, atol=atol)


def linear(n, bias=False):
    """A linear model of one output, all of whose weights are one tensor, and that tensor."""
    model = nn.Linear(n, 1, bias=bias).double()
    if not bias:
        return model, model.weight
    flat = filteropt.Flat(model)
    return flat, flat.flat


def half_square(outputs, targets, noise=NOISE):
    return (outputs - targets).square().sum() / (2 * noise)


def static(noise_variance=NOISE, initial_variance=2.0, batch_size=1.0):
    return Filter(
        Static(), GaussNewton(noise_variance=noise_variance, scale=batch_size),
        Dense(initial_variance),
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("bias", [False, True])
def test_one_pass_is_bayesian_regression_whatever_the_batches(bias, reduction):
    """Twenty random orders and batch sizes, the last batch smaller; mean and covariance."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(37, 4)), generator.normal(size=37)
    for _ in range(20):
        model, p = linear(4, bias)
        start = p.detach().numpy().copy().ravel()
        design = np.hstack([x, np.ones((37, 1))]) if bias else x
        mean, cov = bayesian_regression(design, y, NOISE, start, 2.0)
        opt = FilterOptimizer([p], static, model=model)
        order, size = generator.permutation(37), generator.integers(1, 20)
        for batch in np.array_split(order, range(size, 37, size)):
            opt.zero_grad()
            loss = half_square(model(torch.tensor(x[batch]))[:, 0], torch.tensor(y[batch]))
            if reduction == "mean":
                opt.param_groups[0]["batch_size"] = float(len(batch))
                loss = loss / len(batch)
            loss.backward()
            opt.step()
        close(p.ravel(), mean)
        close(opt.posterior_covariance(p), cov)
        close(opt.posterior_variance(p).ravel(), np.diag(cov))


def test_several_outputs_are_several_observations():
    """The outputs of one example share the inputs: (I kron x)' (I kron x) / r, by stacked rows."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2, bias=False).double()
    start = model.weight.detach().numpy().copy().ravel()
    x, y = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    opt = filteropt.ExtendedKalmanFilter(
        model.parameters(), initial_variance=0.5, noise_variance=NOISE, model=model
    )
    half_square(model(x), y).backward()
    opt.step()
    design = np.vstack([np.kron(np.eye(2), row) for row in x.numpy()])
    mean, cov = bayesian_regression(design, y.numpy().ravel(), NOISE, start, 0.5)
    close(model.weight.ravel(), mean)
    close(opt.posterior_covariance(model.weight), cov)


DRIFT = 0.05


def walk(generator, steps, batch):
    """Inputs and targets of a linear model whose three weights walk at random."""
    truth = generator.normal(size=3)
    for _ in range(steps):
        x = generator.normal(size=(batch, 3))
        yield x, x @ truth + np.sqrt(NOISE) * generator.normal(size=batch)
        truth = truth + DRIFT * generator.normal(size=3)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_random_walk_is_tracked_by_the_textbooks_kalman_filter(batch):
    model, p = linear(3)
    opt = filteropt.ExtendedKalmanFilter(
        [p], drift=DRIFT, initial_variance=1.0, noise_variance=NOISE, model=model
    )
    oracle = ExtendedKalman(p.detach().numpy().ravel(), np.eye(3))
    for t, (x, y) in enumerate(walk(np.random.default_rng(2), 100, batch)):
        opt.zero_grad()
        half_square(model(torch.tensor(x))[:, 0], torch.tensor(y)).backward()
        opt.step()
        if t:
            oracle.predict(1.0, DRIFT**2)
        oracle.update(x @ oracle.mean, x, y, NOISE)
        close(p.ravel(), oracle.mean)
        close(opt.posterior_covariance(p), oracle.cov)


def surprise(noise_variance, steps):
    """The mean normalised innovation squared of the engine's own predictions."""
    filter = Filter(RandomWalk(DRIFT), GaussNewton(noise_variance=noise_variance), Dense(1.0))
    p = torch.zeros(3, dtype=torch.float64)
    state, total = engine.init(filter, p), 0.0
    first, later = (tree_map(float, engine.scalars(filter, t)) for t in (1, 2))
    for t, (x, (y,)) in enumerate(walk(np.random.default_rng(2), steps, 1)):
        numbers = later if t else first
        row = torch.tensor(x)
        cov = engine.covariance(filter, numbers, state, p) + (t > 0) * DRIFT**2 * torch.eye(3)
        error = y - (row @ p).item()
        total += error**2 / ((row @ cov @ row.T).item() + noise_variance)
        raw = Raw(-error * row[0] / noise_variance, rows=row / noise_variance**0.5)
        disp, state = engine.step(filter, numbers, state, raw, p)
        p = p + disp
    return total / steps


def test_innovations_have_the_variance_that_the_filter_states():
    """Over 2,000 steps of data from the model the normalised innovation squared is chi-squared."""
    low, high = scipy.stats.chi2.ppf([5e-4, 1 - 5e-4], 2000) / 2000
    assert low < surprise(NOISE, 2000) < high
    low, high = scipy.stats.chi2.ppf([5e-4, 1 - 5e-4], 600) / 600
    assert surprise(NOISE * 1.5, 600) < low
    assert surprise(NOISE / 1.5, 600) > high


class Tanh(nn.Module):
    """y = a tanh(b x), the weights being one tensor (a, b)."""

    def __init__(self, a, b):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x):
        return self.w[0] * torch.tanh(self.w[1] * x)


@pytest.mark.parametrize(
    ("dynamics", "factor", "noise", "where"),
    [
        (Static(), 1.0, 0.0, "posterior"),
        (FixedNoise(0.1, 0.8), 1 - 0.01 / 1.6, 0.01, "prediction"),
        (FixedNoise(0.1, 0.8, discretization="exact"), np.exp(-0.01 / 1.6),
         0.8 * (1 - np.exp(-0.01 / 0.8)), "prediction"),
    ],
)  # fmt: skip
def test_a_nonlinear_model_is_fitted_by_the_extended_kalman_filter(dynamics, factor, noise, where):
    """Analytic Jacobian (tanh(b x), a x sech^2(b x)), batches of 3, twenty steps."""
    generator = np.random.default_rng(3)
    model = Tanh(0.5, 0.7)

    def preset():
        return Filter(dynamics, GaussNewton(noise_variance=NOISE), Dense(0.8))

    opt = FilterOptimizer(model.parameters(), preset, linearize_at=where, model=model)
    oracle = ExtendedKalman([0.5, 0.7], 0.8 * np.eye(2))
    for t in range(20):
        x = generator.normal(size=3)
        y = 1.5 * np.tanh(1.2 * x) + np.sqrt(NOISE) * generator.normal(size=3)
        if t:
            oracle.predict(factor, noise)
        opt.train()
        close(model.w, oracle.mean)
        a, b = oracle.mean
        jacobian = np.stack([np.tanh(b * x), a * x / np.cosh(b * x) ** 2], axis=1)
        oracle.update(a * np.tanh(b * x), jacobian, y, NOISE)
        opt.zero_grad()
        half_square(model(torch.tensor(x)), torch.tensor(y)).backward()
        opt.step()
        opt.eval()
        close(model.w, oracle.mean)
        close(opt.posterior_covariance(model.w), oracle.cov)


@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_softmax_regression_is_the_dense_natural_gradient(drift):
    generator = np.random.default_rng(4)
    torch.manual_seed(4)
    model = nn.Linear(4, 3, bias=False).double()
    opt = filteropt.ExtendedKalmanFilter(
        model.parameters(), drift=drift, initial_variance=0.4, loss="cross_entropy", model=model
    )
    oracle = SoftmaxKalman(model.weight.detach().numpy(), 0.4 * np.eye(12))
    for t in range(15):
        x, labels = generator.normal(size=(5, 4)), generator.integers(0, 3, size=5)
        if t:
            oracle.predict(drift**2)
        oracle.update(x, labels)
        opt.zero_grad()
        logits = model(torch.tensor(x))
        nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum").backward()
        opt.step()
        close(model.weight, oracle.mean)
        close(opt.posterior_covariance(model.weight), oracle.cov)


def test_tensors_are_blocks_given_the_others_present_values():
    """On a plain model with two tensors, each is its own filter; through Flat they are one."""
    torch.manual_seed(5)
    model = nn.Linear(2, 1).double()
    x, y = torch.randn(30, 2).double() + 1, torch.randn(30, 1).double()
    opt = FilterOptimizer(model.parameters(), static, model=model)
    half_square(model(x), y).backward()
    opt.step()
    blocks = {"weight": x.numpy(), "bias": np.ones((30, 1))}
    for name, design in blocks.items():
        expected = np.linalg.inv(np.eye(design.shape[1]) / 2.0 + design.T @ design / NOISE)
        close(opt.posterior_covariance(getattr(model, name)), expected)
