"""The engine: one step, five slots, clear refusals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import filteropt
from filteropt import engine
from filteropt.approximations import (
    AveragedSquaredGradient,
    Diagonal,
    FixedPoint,
    SquaredGradient,
)
from filteropt.engine import Filter, IncompatibleComposition
from filteropt.models import FixedNoise
from filteropt.trees import leaves, names, restore
from filteropt.types import (
    Basis,
    Belief,
    Diag,
    Dynamics,
    Leaves,
    Likelihood,
    Observation,
    Packed,
    Raw,
    Transition,
)
from tests.oracles.kalman import DenseKalman


@dataclass(frozen=True)
class Drift(Dynamics):
    """Any scalar transition, the same at every step."""

    k: ClassVar[int] = 1
    factor: float
    noise: float
    c: float = 1.0

    def transition(self, t: Tensor) -> Transition:
        return Transition(F=((self.factor,),), Q=(self.noise,), c=self.c)


@dataclass(frozen=True)
class Known(Likelihood):
    """Noisy positions with a known precision: -log p = precision (w - y)^2 / 2."""

    precision: float

    def observe(
        self, like: Leaves, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Leaves]:
        return Observation(raw.grad, Diag(torch.full_like(raw.grad, self.precision))), ()


@settings(max_examples=50, deadline=None)
@given(
    factor=st.floats(0.5, 1.0),
    noise=st.floats(0.0, 1.0),
    c=st.floats(0.8, 1.5),
    precision=st.floats(0.01, 100.0),
    seed=st.integers(0, 1000),
)
def test_step_is_the_dense_kalman_filter(factor, noise, c, precision, seed):
    """Gradients at the prediction, n independent weights, twelve steps, mean and covariance."""
    generator = np.random.default_rng(seed)
    n, start = 3, generator.normal(size=3)
    p = torch.nn.Parameter(torch.tensor(start))
    filter = Filter(Drift(factor, noise, c), Known(precision), Diagonal(initial_variance=0.7))
    opt = filteropt.FilterOptimizer([p], lambda: filter, linearize_at="prediction")
    oracle = DenseKalman(start, 0.7 * np.eye(n))
    for t in range(12):
        if t:
            oracle.predict(np.sqrt(c) * factor * np.eye(n), noise * np.eye(n))
            oracle.mean /= np.sqrt(c)
        np.testing.assert_allclose(p.detach(), oracle.mean, rtol=1e-11, atol=1e-13)
        y = generator.normal(size=n)
        oracle.condition(y, np.eye(n) / precision)
        p.grad = precision * (p.detach() - torch.tensor(y))
        opt.step()
        opt.eval()
        np.testing.assert_allclose(p.detach(), oracle.mean, rtol=1e-11, atol=1e-13)
        variance = opt.posterior_variance(p)
        np.testing.assert_allclose(variance, np.diag(oracle.cov), rtol=1e-11)
        opt.train()


def test_first_step_conditions_on_the_initial_variance():
    """The initial variance is the prior of the first step; only the mean ages in it."""
    filter = Filter(Drift(0.5, 3.0), Known(2.0), Diagonal(initial_variance=0.25))
    p = torch.ones(1, dtype=torch.float64)
    state = engine.init(filter, p)
    for t, prior in ((1, 0.25), (2, 0.25 * (0.25 / 1.5) + 3.0)):
        scalars = engine.scalars(filter, t)
        disp, state = engine.step(filter, scalars, state, Raw(torch.zeros_like(p)), p)
        assert disp.item() == -0.5
        expected = prior / (1 + 2 * prior)
        assert engine.variance(filter, scalars, state, p).item() == pytest.approx(
            expected, rel=1e-14
        )


def test_step_changes_none_of_its_inputs():
    filter = filteropt.presets.adabayes()
    p, grad = torch.randn(4), torch.randn(4)
    state = engine.init(filter, p)
    inputs = [p, grad, *leaves(state)]
    before = [x.clone() for x in inputs]
    engine.step(filter, engine.scalars(filter, 1), state, Raw(grad), p)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@dataclass(frozen=True)
class Rotated(Basis):
    """A fixed rotation of a vector of weights."""

    angle: float

    def init(self, p: Tensor) -> Leaves:
        c, s = np.cos(self.angle), np.sin(self.angle)
        return (torch.tensor([[c, -s], [s, c]], dtype=p.dtype),)

    def forward(self, basis: Any, x: Tensor) -> Tensor:
        return basis[0].T @ x if x.numel() else x

    def backward(self, basis: Any, x: Tensor) -> Tensor:
        return basis[0] @ x if x.numel() else x

    def variance(self, basis: Any, variance: Tensor) -> Tensor:
        return basis[0].square() @ variance


def test_basis_slot_runs_the_same_filter_in_other_coordinates():
    """Training rotated weights in a rotated basis is the rotation of training plain ones."""

    def run(start, basis, rotation):
        p = torch.nn.Parameter(rotation @ start)
        make = lambda **h: replace(filteropt.presets.adabayes(**h), **basis)  # ruff: ignore[lambda-assignment] - a slot
        opt = filteropt.FilterOptimizer([p], make, lr=0.03)
        generator = torch.Generator().manual_seed(0)
        for _ in range(10):
            p.grad = rotation @ torch.randn(2, generator=generator, dtype=torch.float64)
            opt.step()
        return p.detach(), opt.posterior_variance(p)

    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    (rotation,) = Rotated(0.7).init(start)
    plain, variance = run(start, {}, torch.eye(2, dtype=torch.float64))
    rotated, marginal = run(start, {"basis": Rotated(0.7)}, rotation)
    torch.testing.assert_close(rotated, rotation @ plain, rtol=1e-13, atol=0)
    dense = rotation @ variance.diag() @ rotation.T
    torch.testing.assert_close(marginal, dense.diag(), rtol=1e-12, atol=0)


def test_projections_apply_in_order_after_conditioning():
    def cap(disp, belief):
        return disp.clamp(-0.01, 0.01), Belief((), type(belief.cov)(belief.cov[0].clamp_min(0.05)))

    def halve(disp, belief):
        return disp / 2, belief

    def make(**h):
        return replace(filteropt.presets.adabayes(**h), projections=(cap, halve))

    p = torch.nn.Parameter(torch.zeros(3))
    opt = filteropt.FilterOptimizer([p], make, lr=1e-3, weight_decay=0.0)
    p.grad = torch.full((3,), 100.0)
    opt.step()
    torch.testing.assert_close(p.data, torch.full((3,), -0.005))
    torch.testing.assert_close(opt.posterior_variance(p), torch.full((3,), 0.05))


@dataclass(frozen=True)
class ThreeLatents(Dynamics):
    k: ClassVar[int] = 3

    def transition(self, t: Tensor) -> Transition:
        rows = (1.0, 0.1, 0.0), (0.0, 0.9, 0.1), (0.0, 0.0, 0.9)
        return Transition(F=rows, Q=(0.0, 0.0, 0.0, 0.0, 0.0, 0.1))


class Blocks:
    """A curvature that no shipped family takes."""


@dataclass(frozen=True)
class BlockCurvature(SquaredGradient):
    gives: ClassVar[type] = Blocks


GOOD = Filter(FixedNoise(1e-3, 0.1), AveragedSquaredGradient(), FixedPoint())


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"likelihood": SquaredGradient()},
         ["SquaredGradient", "FixedPoint", "averaged", "AveragedSquaredGradient"]),
        ({"dynamics": ThreeLatents()}, ["ThreeLatents", "FixedPoint", "3 latents", "Diagonal"]),
        ({"dynamics": Drift(0.9, 0.1)}, ["Drift", "FixedPoint", "flow", "Diagonal"]),
        ({"dynamics": Drift(1.0, 0.0), "posterior": FixedPoint("exact")},
         ["Drift", "FixedPoint", "stationary", "Diagonal"]),
        ({"likelihood": BlockCurvature(), "posterior": Diagonal()},
         ["BlockCurvature", "Diagonal", "Blocks"]),
        ({"dynamics": FixedNoise(1.0, 0.1), "posterior": Diagonal()},
         ["FixedNoise", "Diagonal", "F = -4", "FixedPoint"]),
        ({"dynamics": FixedNoise(1e-3, float("inf")), "posterior": Diagonal()},
         ["FixedNoise", "Diagonal", "initial variance inf", "initial_variance"]),
    ],
)  # fmt: skip
def test_check_names_both_slots_and_what_would_fit(slots, words):
    engine.check(GOOD)
    bad = replace(GOOD, **slots)
    with pytest.raises(IncompatibleComposition) as raised:
        engine.check(bad)
    assert all(word in str(raised.value) for word in [*words, "Would fit"])
    with pytest.raises(IncompatibleComposition):
        filteropt.FilterOptimizer([torch.nn.Parameter(torch.ones(1))], lambda: bad)


def test_initial_variance_comes_from_the_posterior_then_the_dynamics_then_rest():
    variance = engine.initial_variance
    like = SquaredGradient()
    assert variance(Filter(FixedNoise(1e-3, 0.2), like, Diagonal(0.3))) == 0.3
    assert variance(Filter(FixedNoise(1e-3, 0.2), like, Diagonal())) == 0.2
    assert variance(Filter(Drift(0.8, 0.18), like, Diagonal())) == pytest.approx(0.5)
    assert variance(Filter(Drift(1.0, 0.18), like, Diagonal())) == 0.01


def test_state_flattens_to_names_and_back():
    for filter in (GOOD, filteropt.presets.adabayes()):
        state = engine.init(filter, torch.ones(3))
        assert restore(engine.template(filter, torch.Size([3])), leaves(state)) == state
        assert len(names(state)) == len(leaves(state))
    assert names(engine.init(GOOD, torch.ones(3))) == ["exp_avg", "exp_avg_sq"]
