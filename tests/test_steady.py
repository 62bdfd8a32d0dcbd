"""Dynamics whose transition is worked out once, and those that are asked at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import filteropt
from filteropt import engine
from filteropt.linalg import scalar
from filteropt.models import (
    FixedNoise,
    ForgetToPrior,
    KroneckerDrift,
    MomentumAugmented,
    ProportionalNoise,
    RandomWalk,
    Static,
)
from filteropt.presets import adabayes
from filteropt.trees import tree_map
from filteropt.types import Transition

STEADY = [
    FixedNoise(lr=0.1),
    FixedNoise(lr=0.1, discretization="exact"),
    RandomWalk(lr=0.1),
    ProportionalNoise(0.1),
    Static(),
    MomentumAugmented(lr=0.1, prior_variance=0.3),
    KroneckerDrift(lr=0.1),
]


def numbers(transition):
    found = []
    tree_map(lambda x: found.append(float(x)), transition)
    return found


@pytest.mark.parametrize("dynamics", STEADY, ids=lambda d: type(d).__name__)
def test_what_does_not_look_at_the_step_is_the_transition_of_every_step(dynamics):
    found = engine.steady(dynamics)
    for t in (1, 2, 7.0, 1e6):
        assert numbers(found) == numbers(dynamics.transition(scalar(t)))


LOOKS = [
    lambda t: t == 1,
    lambda t: t != 1,
    lambda t: t in (1, 2),
    lambda t: 1.0 if t else 0.0,
    lambda t: {1: 0.5}.get(t, 1.0),
    lambda t: len(str(t)),
    lambda t: len(f"{t}"),
    lambda t: len(repr(t)),
    lambda t: t > 1,
    lambda t: t + 1,
    lambda t: 1 / t,
    lambda t: -t,
    lambda t: float(t),
    lambda t: scalar(t),
    lambda t: torch.exp(t),
    lambda t: t.item(),
    lambda t: isinstance(t, float | int | torch.Tensor),
]


@pytest.mark.parametrize("look", LOOKS)
def test_what_looks_at_the_step_is_asked_at_every_step(look):
    @dataclass(frozen=True)
    class Looks(FixedNoise):
        def transition(self, t):
            return super().transition(t)._replace(c=1.0 + 0 * float(bool(look(t))))

    assert engine.steady(Looks()) is None


def test_models_with_a_schedule_are_asked_at_every_step():
    assert engine.steady(ForgetToPrior()) is None
    assert engine.steady(KroneckerDrift(every=2)) is None


class Settable(FixedNoise):
    """No dataclass of its own: it takes attributes that its base would refuse."""

    scale = 1.0

    def transition(self, t):
        found = super().transition(t)
        return found._replace(Q=(found.Q[0] * self.scale,))


@pytest.mark.parametrize(
    "dynamics", [Settable(0.1), FixedNoise(torch.tensor(0.1)), FixedNoise(0.1, torch.tensor(1.0))]
)
def test_models_whose_numbers_may_change_are_asked_at_every_step(dynamics):
    assert engine.steady(dynamics) is None


def test_models_in_slots_are_asked_at_every_step():
    @dataclass(frozen=True, slots=True)
    class Slotted:
        k: ClassVar[int] = 1
        initial_variance: float = 1.0

        def transition(self, t):
            return Transition(F=((1.0,),), Q=(0.01,), lost=0.0)

    assert engine.steady(Slotted()) is None
    preset = filteropt.variant(adabayes, dynamics=lambda lr: Slotted())
    p = torch.nn.Parameter(torch.zeros(3))
    opt = filteropt.FilterOptimizer([p], preset, lr=0.1)
    p.grad = torch.ones_like(p)
    opt.step()
    assert (p < 0).all()


def test_steps_ask_a_steady_model_once():
    asked = []

    @dataclass(frozen=True)
    class Noting(FixedNoise):
        def transition(self, t):
            asked.append(t)
            return super().transition(t)

    preset = filteropt.variant(adabayes, dynamics=lambda lr: Noting(lr))
    p = torch.nn.Parameter(torch.zeros(3))
    opt = filteropt.FilterOptimizer([p], preset, lr=0.1)
    for _ in range(3):
        p.grad = torch.ones_like(p)
        opt.step()
    before = len(asked)
    for _ in range(5):
        opt.step()
    assert len(asked) == before


def test_models_that_count_are_asked_at_every_step():
    @dataclass(eq=False)
    class Counting:
        k: int = 1
        calls: int = 0
        initial_variance: float = 1.0

        def transition(self, t):
            self.calls += 1
            return Transition(F=((1.0,),), Q=(0.01 * self.calls,), lost=0.0)

    assert engine.steady(Counting()) is None
    preset = filteropt.variant(adabayes, dynamics=lambda lr: Counting())
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    opt = filteropt.FilterOptimizer([p], preset, lr=0.1)
    seen = []
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        opt.step()
        seen.append(float(opt.state[p]["variance"][0]))
    first, second, third = seen
    assert third - second == pytest.approx(second - first + 0.01)


def test_scalars_are_the_same_with_and_without_what_is_known():
    filter = adabayes(lr=0.1)
    known = engine.steady(filter.dynamics)
    for t in (1.0, 2.0, 30.0):
        with_it, without = engine.scalars(filter, t, known), engine.scalars(filter, t)
        assert numbers(with_it) == numbers(without)
