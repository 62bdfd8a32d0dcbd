"""States side by side in memory, transitions that are known, and arithmetic without tensors."""

from __future__ import annotations

import copy
import io
import math
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import filteropt
from filteropt import engine, models
from filteropt.engine.steady import transition_at
from filteropt.execute.arithmetic import of_floats
from filteropt.execute.rows import as_row, side_by_side
from filteropt.linalg import scalar
from filteropt.types import Transition
from tests.execution import assert_alike, parameters

rows = sys.modules["filteropt.execute.rows"]
SHAPES = [(3, 4), (), (7,), (2, 3, 2, 2)]


def stepped(opt, params, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        opt.step()
    return [(p, opt.state[p]) for p in params]


# Rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("preset", [filteropt.AdaBayes, filteropt.MomentumFilter])
def test_small_states_lie_side_by_side_and_step_as_others_do(preset, fused, monkeypatch):
    def after(small):
        monkeypatch.setattr(rows, "SMALL", small)
        params = parameters(SHAPES, layouts=["transposed", "plain", "plain", "channels last"])
        opt = preset(params, lr=0.1, fused=fused)
        return stepped(opt, params), opt

    together, opt = after(2**15)
    for name in opt.state[together[0][0]]:
        vectors = [state[name].flatten() for _, state in together[1:3]]
        assert as_row(vectors) is not None
    alone, _ = after(0)
    assert_alike(together, alone, rtol=1e-12)


def test_states_side_by_side_keep_values_and_forms():
    states = [{"a": torch.randn(3, 4).mT, "b": torch.tensor(i)} for i in range(3)]
    before = copy.deepcopy(states)
    side_by_side(states)
    for state, old in zip(states, before, strict=True):
        for name, x in old.items():
            assert torch.equal(state[name], x)
            assert state[name].stride() == x.stride()
    assert as_row([state["b"] for state in states]).tolist() == [0, 1, 2]


def test_large_tensors_and_those_with_gaps_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(rows, "SMALL", 5)
    states = [{"large": torch.ones(5), "gaps": torch.ones(4)[::2], "none": torch.ones(0)}] * 2
    before = dict(states[0])
    side_by_side(states)
    assert all(states[0][name] is x for name, x in before.items())


@pytest.mark.parametrize(
    "tensors",
    [
        lambda: list(torch.zeros(4).split(2))[::-1],
        lambda: [torch.zeros(2), torch.zeros(2)],
        lambda: [*torch.zeros(4)[:3].split(2), torch.zeros(1)],
        lambda: [torch.zeros(4)[0:2], torch.zeros(4)[2:4]],
        lambda: list(torch.zeros(2, 2, 2)),
        lambda: [torch.zeros(4)[::2]],
    ],
)
def test_what_lies_otherwise_is_no_row(tensors):
    assert as_row(tensors()) is None


@pytest.mark.parametrize(
    "through",
    [
        copy.deepcopy,
        lambda opt: torch.load(_saved(opt), weights_only=False),
    ],
)
def test_copies_of_states_side_by_side_go_their_own_way(through):
    params = parameters(SHAPES)
    opt = filteropt.AdaBayes(params, lr=0.1)
    stepped(opt, params)
    other = through(opt)
    theirs = [p for group in other.param_groups for p in group["params"]]
    expected = [(p.detach().clone(), copy.deepcopy(opt.state[p])) for p in params]
    stepped(other, theirs, seed=1)
    assert_alike([(p, opt.state[p]) for p in params], expected, rtol=0)
    assert_alike(stepped(opt, params, seed=1), [(p, other.state[p]) for p in theirs], rtol=1e-12)


def _saved(opt):
    file = io.BytesIO()
    torch.save(opt, file)
    file.seek(0)
    return file


# Transitions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Warming:
    """Noise that grows with the step."""

    k: ClassVar[int] = 1
    rate: float = 0.5

    def transition(self, t):
        return Transition(F=((scalar(1.0),),), Q=(self.rate * scalar(t),))


class Counting:
    """No value: what it says depends on more than its fields."""

    k = 1

    def __init__(self):
        self.asked = 0

    def transition(self, t):
        self.asked += 1
        return Transition(F=((scalar(1.0),),), Q=(scalar(self.asked),))


@dataclass(frozen=True)
class Learned:
    """Noise in a tensor, which may be written to."""

    k: ClassVar[int] = 1
    noise: torch.Tensor

    def transition(self, t):
        return Transition(F=((scalar(1.0),),), Q=(self.noise,))


def test_transitions_that_look_at_the_step_are_asked_every_time():
    dynamics = Warming()
    found = [float(transition_at(dynamics, scalar(t)).Q[0]) for t in (1.0, 2.0, 3.0, 4.0)]
    assert found == [0.5, 1.0, 1.5, 2.0]


def test_transitions_that_do_not_are_asked_a_few_times(monkeypatch):
    asked, dynamics = [], models.FixedNoise(lr=0.1)
    transition = models.FixedNoise.transition

    def counted(self, t):
        asked.append(t)
        return transition(self, t)

    monkeypatch.setattr(models.FixedNoise, "transition", counted)
    found = [transition_at(dynamics, scalar(t)) for t in range(1, 9)]
    assert len(asked) == 3  # two steps, and one look whether they differ
    assert found[0] == found[-1]
    assert (pytest.approx(0.01),) == found[0].Q


def test_transitions_of_what_may_change_are_asked_every_time():
    counting, learned = Counting(), Learned(torch.ones(()))
    assert [float(transition_at(counting, scalar(t)).Q[0]) for t in (1.0, 2.0, 3.0)] == [1, 2, 3]
    for t in (1.0, 2.0, 3.0):
        learned.noise.fill_(t)
        assert float(transition_at(learned, scalar(t)).Q[0]) == t


def test_few_dynamics_are_held():
    steady = sys.modules["filteropt.engine.steady"]
    for i in range(3 * steady.FEW):
        transition_at(models.FixedNoise(lr=0.1 + i), scalar(1))
    assert len(steady._MET) <= steady.FEW


@pytest.mark.parametrize("preset", [filteropt.AdaBayes, filteropt.MomentumFilter])
def test_a_known_transition_takes_no_other_steps(preset, monkeypatch):
    def after(known):
        if not known:
            monkeypatch.setattr(engine.filter, "transition_at",
                                lambda dynamics, t: dynamics.transition(t))  # fmt: skip
        params = parameters([(5,)])
        return stepped(preset(params, lr=0.1), params, steps=5)

    assert_alike(after(known=True), after(known=False), rtol=1e-14)


# Arithmetic ---------------------------------------------------------------------------------------


def program(x, y, z):
    small = torch.where(x > 0, -torch.expm1(-x) / y, 1.0)
    return [(x * y - z).clamp_min(0), small.clamp_max(2.0), 1 / z, (x + y).sqrt() ** 2, 1 - x,
            torch.where(y < 1.5, y**3, -y)]  # fmt: skip


def traced(function, count):
    given = [torch.ones((), dtype=torch.float64) for _ in range(count)]
    return make_fx(function)(*given)


@given(*[st.floats(0.01, 100)] * 3)
def test_floats_are_what_tensors_are(x, y, z):
    quick = of_floats(traced(program, 3))
    exact = program(*(torch.tensor(v, dtype=torch.float64) for v in (x, y, z)))
    assert quick(x, y, z) == pytest.approx([float(v) for v in exact], rel=1e-15)


def test_what_is_infinite_is_left_to_tensors():
    quick = of_floats(traced(program, 3))
    for x, y, z in [(1.0, 1.0, 0.0), (-1e4, 1.0, 1.0), (-2.0, 1.0, 1.0)]:
        with pytest.raises((ArithmeticError, ValueError)):
            quick(x, y, z)


def test_nan_stays_in_clamps():
    quick = of_floats(traced(lambda x: [x.clamp_min(0.0), x.clamp_max(0.0)], 1))
    assert all(map(math.isnan, quick(math.nan)))


def test_other_operations_are_left_to_tensors():
    assert of_floats(traced(lambda x: [torch.erfinv(x)], 1)) is None
    assert of_floats(traced(lambda x: [torch.add(x, x, alpha=3)], 1)) is None


def test_numbers_without_end_reach_the_kernel(monkeypatch):
    """AdamW's limit, lr_sgd = inf: what floats refuse, tensors work out."""
    params = parameters([(5,)])
    opt = filteropt.AdaBayesFP(params, lr=0.1, lr_sgd=math.inf, fused=True)
    eager = parameters([(5,)])
    other = filteropt.AdaBayesFP(eager, lr=0.1, lr_sgd=math.inf, fused=False)
    assert_alike(stepped(opt, params), stepped(other, eager), rtol=1e-12)
