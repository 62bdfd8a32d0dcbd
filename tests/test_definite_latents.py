"""Covariances of k latents stay positive by form in float32, where the packed ones do not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import filteropt
from filteropt import regression
from filteropt.models import MomentumAugmented
from filteropt.types import Transition

WEIGHTS = 200


def adversarial(seed, steps, low=-15.0, high=15.0, zeros=0.1):
    """Gradients of any size and sign, with exact zeros and runs of one size, (steps, WEIGHTS)."""
    rng = np.random.default_rng(seed)
    logs = rng.uniform(low, high, (steps, WEIGHTS))
    runs = rng.uniform(low, high, (1 + steps // 20, WEIGHTS)).repeat(20, 0)[:steps]
    logs = np.where(np.arange(WEIGHTS) % 2, logs, runs)
    found = 10.0**logs * rng.choice([-1.0, 1.0], logs.shape)
    return torch.tensor(found * (rng.random(logs.shape) >= zeros), dtype=torch.float32)


def variances(cov):
    """D, one row for each latent."""
    return torch.stack([x for name, x in cov._asdict().items() if "slope" not in name])


def numbers(transition):
    """A transition of Python floats, as the engine hands it to tensors."""
    factor = tuple(tuple(map(float, row)) for row in transition.F)
    return transition._replace(F=factor, Q=tuple(map(float, transition.Q)))


def assert_positive(cov):
    pivots = variances(cov)
    assert (pivots > 0).all()
    assert all(x.isfinite().all() for x in cov)
    assert (pivots.double().prod(0) > 0).all()  # the determinant, as det L = 1


class Packed:
    """The textbook's covariance, one symmetric matrix per weight (k = 2)."""

    def __init__(self, variance, residual):
        self.p = [torch.full((WEIGHTS,), x) for x in (variance, 0.0, residual)]

    def predict(self, factor, noise):
        (f00, f01), (_, f11) = factor
        s, b, c = self.p
        self.p = [
            f00 * f00 * s + 2 * f00 * f01 * b + f01 * f01 * c + noise[0],
            f11 * (f00 * b + f01 * c),
            f11 * f11 * c + noise[2],
        ]

    def condition(self, h):
        s, b, c = self.p
        gain = h / (1 + h * s)
        self.p = [s - s * s * gain, b - s * b * gain, c - b * b * gain]

    def definite(self):
        s, b, c = (x.double() for x in self.p)
        return (s > 0) & (c > 0) & (s * c - b * b > 0)


models = st.builds(
    MomentumAugmented,
    lr=st.floats(1e-6, 0.5),
    prior_variance=st.floats(0.2, 100.0) | st.just(float("inf")),
    lr_w=st.sampled_from([0.0, 1e-6, 0.1]),
    momentum_decay=st.floats(1e-6, 1.0),
)


@settings(max_examples=20, deadline=None)
@given(model=models, seed=st.integers(0, 10**9))
def test_two_latents_stay_positive(model, seed):
    """20 runs of 30,000 steps (200 weights, 150 steps each)."""
    transition = numbers(model.transition(1))
    cov = regression.independent([torch.full((WEIGHTS,), x) for x in (1.0, 0.05)])
    for g in adversarial(seed, 150):
        cov, _ = regression.condition(cov, g * g)
        assert_positive(cov)
        cov = regression.predict(cov, transition)
        assert_positive(cov)


def test_packed_covariance_does_not():
    """So that these gradients can tell: 100,000 steps of the demo's own setting, side by side."""
    transition = numbers(MomentumAugmented(1e-3, 0.1).transition(1))
    cov = regression.independent([torch.full((WEIGHTS,), x) for x in (0.1, 0.05)])
    packed, broken, steps = Packed(0.1, 0.05), 0, 500
    for g in adversarial(0, steps):
        h = g * g
        packed.condition(h)
        broken += int((~packed.definite()).sum())
        packed.predict(transition.F, transition.Q)
        cov = regression.predict(regression.condition(cov, h)[0], transition)
        assert_positive(cov)
    assert broken > 0.01 * steps * WEIGHTS


@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_other_numbers_of_latents_stay_positive(k, rank):
    """30,000 steps each, with singular noise too."""
    rng = np.random.default_rng(10 * k + rank)
    root = rng.standard_normal((k, min(rank, k))) * 1e-3
    noise = root @ root.T
    factor = np.eye(k) * 0.99 + 0.1 * np.triu(rng.standard_normal((k, k)), 1)
    transition = Transition(
        tuple(map(tuple, factor.tolist())), tuple(noise[np.triu_indices(k)].tolist())
    )
    cov = regression.independent([torch.full((WEIGHTS,), 0.1)] * k)
    for g in adversarial(rank, 150):
        cov, _ = regression.condition(cov, g * g)
        assert_positive(cov)
        cov = regression.predict(cov, transition)
        assert_positive(cov)


def exact(gradients, model):
    """The same recursion in rational arithmetic: the textbook's matrices, without rounding."""
    transition = model.transition(1)
    ((a, e), (_, f)), (q, _, r) = transition.F, transition.Q
    a, e, f, q, r = (Fraction(float(x)) for x in (a, e, f, q, r))
    s, b, c = (Fraction(float(np.float32(x))) for x in (0.1, 0.0, 0.05))
    for i, g in enumerate(gradients):
        if i:
            s, b, c = (
                a * a * s + 2 * a * e * b + e * e * c + q,
                f * (a * b + e * c),
                f * f * c + r,
            )
        h = Fraction(float(g)) ** 2
        gain = h / (1 + h * s)
        s, b, c = s - s * s * gain, b - s * b * gain, c - b * b * gain
    return [float(x) for x in (s, b / s, c - b * b / s)]


def test_positive_numbers_are_the_right_ones():
    """Every entry of the regression to five digits, after gradients of up to 1e15."""
    model = MomentumAugmented(1e-3, 0.1, 1e-4)
    gradients = adversarial(3, 12)
    cov = regression.independent([torch.full((WEIGHTS,), x) for x in (0.1, 0.05)])
    for i, g in enumerate(gradients):
        if i:
            cov = regression.predict(cov, numbers(model.transition(1)))
        cov, _ = regression.condition(cov, g * g)
    found = torch.stack(tuple(cov)).double().numpy()
    for weight in range(40):
        expected = exact(gradients[:, weight].numpy(), model)
        np.testing.assert_allclose(found[:, weight], expected, rtol=1e-5)


STATIONARY = {"stationary": True}


@pytest.mark.parametrize("options", [{}, {"centred_beta": 0.9}, STATIONARY])
@pytest.mark.parametrize("linearize_at", ["prediction", "posterior"])
def test_optimizer_stays_positive_and_finite(linearize_at, options):
    """150 steps of 200 weights in float32: scales from 1e-15 to 1e15, zeros, flipping signs."""
    p = torch.nn.Parameter(torch.zeros(WEIGHTS))
    opt = filteropt.MomentumFilter([p], linearize_at=linearize_at, **options)
    for t, g in enumerate(adversarial(1, 150)):
        p.grad = g * (-1) ** t if t > 75 else g
        opt.step()
        covariance = opt.posterior_covariance(p).double()
        assert p.isfinite().all()
        assert covariance.isfinite().all()
        assert (opt.posterior_variance(p) > 0).all()
        if not options.get("stationary"):
            kept = opt.state[p]
            assert (kept["variance"] > 0).all()
            assert (kept["residual_1"] > 0).all()
            assert kept["mean_1"].isfinite().all()
    opt.eval()
    assert p.isfinite().all()
