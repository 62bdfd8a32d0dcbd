"""The shipped law checkers: every part passes, and each broken part is caught."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from filteropt.approximations import (
    AveragedSquaredGradient,
    Dense,
    Diagonal,
    FixedPoint,
    OneStepAhead,
    SquaredGradient,
)
from filteropt.models import FixedNoise, ForgetToPrior, ProportionalNoise, RandomWalk
from filteropt.testing import (
    LawViolation,
    check_dynamics,
    check_likelihood,
    check_posterior,
    parts,
)
from filteropt.types import Belief, Diag, Flow, LowRank, Observation

DYNAMICS = [
    *(cls() for cls in parts("dynamics").values()),
    ProportionalNoise(0.0),
    ProportionalNoise(0.5),
    ForgetToPrior(0.9, 3.0),
    RandomWalk(0.3, weight_decay=0.1),
    FixedNoise(1e-3, 0.1),
    FixedNoise(0.3, 0.1),
    FixedNoise(1.0, 0.25, discretization="exact"),
    FixedNoise(1e-3, 0.1, discretization="exact"),
    FixedNoise(0.3, float("inf"), 0.1, discretization="exact"),
]
LIKELIHOODS = [
    *(cls() for cls in parts("likelihood").values()),
    SquaredGradient(),
    SquaredGradient(scale=128, beta1=0.0),
    AveragedSquaredGradient(),
    AveragedSquaredGradient(3.0, (0.5, 0.9), eps=1e-3),
]
POSTERIORS = [
    *(cls() for cls in parts("posterior").values()),
    FixedPoint("exact"),
    OneStepAhead(FixedPoint("exact")),
]


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_dynamics_obey_their_laws(dynamics):
    check_dynamics(dynamics)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods_obey_their_laws(likelihood):
    check_likelihood(likelihood)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_posteriors_obey_their_laws(posterior):
    check_posterior(posterior)


@dataclass(frozen=True)
class Wrong(FixedNoise):
    """Fixed noise with one field of its transition replaced."""

    changed: tuple = ()

    def transition(self, t):
        return super().transition(t)._replace(**dict(self.changed))


@pytest.mark.parametrize(
    ("field", "value", "law"),
    [
        ("F", ((1.0, 0.0),), "rows"),
        ("Q", (0.1, 0.1), "numbers"),
        ("Q", (-0.1,), "semi-definite"),
        ("Q", (math.nan,), "finite"),
        ("c", 0.0, "c is positive"),
        ("pull", -1e-3, "pull"),
        ("lost", 0.1, "lost"),
        ("flow", Flow(0.5, 1e-6), "flow.rate"),
        ("flow", Flow(1e-5, 2e-6), "flow.noise"),
        ("flow", Flow(1e-5, None), "flow.noise"),
    ],
)
def test_broken_dynamics_are_caught(field, value, law):
    wrong = Wrong(1e-3, 0.1, changed=((field, value),))
    with pytest.raises(LawViolation, match=law):
        check_dynamics(wrong)


def test_dynamics_that_forget_their_step_are_caught():
    class Counting(FixedNoise):
        calls: ClassVar[list] = []

        def transition(self, t):
            self.calls.append(t)
            return super().transition(t)._replace(decay=0.01 * len(self.calls))

    with pytest.raises(LawViolation, match="equal steps"):
        check_dynamics(Counting(1e-3, 0.1))


class Flipped(SquaredGradient):
    def observe(self, like, raw, p, prior, scalars):
        return super().observe(like, raw._replace(grad=-raw.grad), p, prior, scalars)


class Biased(SquaredGradient):
    def scalars(self, t):
        return (*super().scalars(t)[:2], 1.0)


class Mixing(SquaredGradient):
    def observe(self, like, raw, p, prior, scalars):
        obs, like = super().observe(like, raw, p, prior, scalars)
        return obs._replace(curvature=Diag(obs.curvature.values.mean().expand_as(p))), like


class InPlace(SquaredGradient):
    def observe(self, like, raw, p, prior, scalars):
        raw.grad.mul_(2)
        return super().observe(like, raw, p, prior, scalars)


class Overflowing(SquaredGradient):
    def gradient_limit(self, dtype):
        return super().gradient_limit(dtype) * 2


class Forgetful(AveragedSquaredGradient):
    def curvature(self, like, p, scalars):
        return Diag(like.exp_avg_sq * 0.5)

    def observe(self, like, raw, p, prior, scalars):
        _, moments = super().observe(like, raw, p, prior, scalars)
        return Observation(raw.grad, Diag(moments.exp_avg_sq)), moments


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (Flipped(), "sign"),
        (Biased(), "bias"),
        (Mixing(beta1=0.0), "mix|finite|Λ"),
        (InPlace(), "inputs"),
        (Overflowing(), "finite|Λ"),
        (Forgetful(), "remembered"),
    ],
)
def test_broken_likelihoods_are_caught(wrong, law):
    with pytest.raises(LawViolation, match=law):
        check_likelihood(wrong)


class Confident(Diagonal):
    """Counts every observation twice as soon as it is sure: halves do not add up."""

    def condition(self, disp, prior, obs, transition):
        squared = Diag(obs.curvature.values**2)
        return super().condition(disp, prior, obs._replace(curvature=squared), transition)


class Climbing(Diagonal):
    def condition(self, disp, prior, obs, transition):
        disp, belief = super().condition(disp, prior, obs, transition)
        return -disp, belief


class Inflating(Diagonal):
    def condition(self, disp, prior, obs, transition):
        disp, belief = super().condition(disp, prior, obs, transition)
        return disp, Belief((), type(belief.cov)(belief.cov[0] * 1.5))


class Cancelling(Diagonal):
    """The textbook form, which loses its variance to rounding."""

    def condition(self, disp, prior, obs, transition):
        (v,) = prior.cov
        post = v - v * obs.curvature.values * v / (1 + v * obs.curvature.values)
        return -post * obs.grad, Belief((), type(prior.cov)(post))


class Restless(Diagonal):
    def propagate(self, belief, transition, p=None):
        disp, prior = super().propagate(belief, transition)
        return disp, Belief((), type(prior.cov)(prior.cov[0] + 1e-3))


class Impatient(Diagonal):
    """Ages a belief by noise that depends on it: two steps are not the composed one."""

    def propagate(self, belief, transition, p=None):
        (v,) = belief.cov
        (noise,) = transition.Q
        return 0.0, Belief((), type(belief.cov)(v * transition.F[0][0] ** 2 + noise * (1 + v)))


class Eager(FixedPoint):
    """Twice the variance at which the recursion rests."""

    def variance(self, belief, curvature, transition):
        return 2 * super().variance(belief, curvature, transition)


class Lopsided(Dense):
    """A covariance that is not symmetric."""

    def covariance(self, belief, curvature, transition):
        covariance = super().covariance(belief, curvature, transition)
        return covariance + covariance.triu(1)


class Partial(Dense):
    """Conditions on the first weight's part of every row alone, which no rotation respects."""

    def condition(self, disp, prior, obs, transition):
        if isinstance(obs.curvature, LowRank):
            rows = obs.curvature.rows.clone()
            rows[:, 1:] = 0
            obs = obs._replace(curvature=LowRank(rows))
        return super().condition(disp, prior, obs, transition)


class Indefinite(Dense):
    """A covariance that loses a little more than it has."""

    def covariance(self, belief, curvature, transition):
        covariance = super().covariance(belief, curvature, transition)
        return covariance - 1e-4 * torch.eye(len(covariance), dtype=covariance.dtype)


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (Impatient(), "composed"),
        (Eager("exact"), "recursion"),
        (Lopsided(), "symmetric"),
        (Partial(), "turn"),
        (Indefinite(), "definite"),
        (Confident(), "Λ/2|finite|\\(0"),
        (Climbing(), "against"),
        (Inflating(), "adds|equal one|commute"),
        (Cancelling(), "0, ∞|against|more"),
        (Restless(), "static"),
    ],
)
def test_broken_posteriors_are_caught(wrong, law):
    with pytest.raises(LawViolation, match=law):
        check_posterior(wrong)
