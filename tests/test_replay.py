"""The replayed executor: equal to the loop, and to the very bit to what was recorded."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import filteropt
from filteropt import presets
from filteropt.execute import loop, replayed
from filteropt.execute.replay import Trial, _planned, _writer, replay
from filteropt.presets import adabayes
from filteropt.types import Projection
from tests.execution import (
    CASES,
    ELEMENTWISE,
    assert_alike,
    called,
    made,
    parameters,
    stepped,
)

layout = sys.modules["filteropt.execute.layout"]
choice = sys.modules["filteropt.execute.choice"]
fused = sys.modules["filteropt.execute.fused"]
program = sys.modules["filteropt.execute.program"]


def checked(recorded, given):
    """A replay that is compared with the operations themselves."""
    run = replay(recorded, given)

    def both(inputs):
        copies = [x.clone() for x in inputs]
        recorded(*copies)
        run(inputs)
        for found, expected in zip(inputs, copies, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)

    return both


@pytest.fixture
def short(monkeypatch):
    """A few weights are several pieces, whatever was recorded before."""
    monkeypatch.setattr(fused, "_PROGRAMS", {})
    monkeypatch.setattr(program, "replay", checked)
    monkeypatch.setattr(program, "PIECE", 16)
    monkeypatch.setattr(choice, "SEVERAL", 0)
    monkeypatch.setattr(layout, "SMALL", 24)


KINDS = {(type(f.likelihood), type(f.posterior), f.dynamics.k): f for f in ELEMENTWISE}


@pytest.mark.parametrize("filter", KINDS.values(), ids=called)
def test_every_kind_of_elementwise_composition_is_replayed_as_in_the_loop(filter, short):
    assert_alike(made(filter, replayed), made(filter, loop), rtol=1e-12)
    assert None not in fused._PROGRAMS.values()


@settings(deadline=None, max_examples=20)
@given(
    **CASES,
    size=st.sampled_from([2, 3, 16, 2**18]),
    small=st.sampled_from([1, 24, 2**15]),
)
def test_replays_are_the_loop(shapes, layouts, dtypes, groups, late, size, small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_PROGRAMS", {})
        patch.setattr(program, "PIECE", size)
        patch.setattr(choice, "SEVERAL", 0)
        patch.setattr(layout, "SMALL", small)
        case = {"shapes": shapes, "layouts": layouts, "dtypes": dtypes, "groups": groups}
        found = stepped(adabayes, late=late, **case)
        assert None not in fused._PROGRAMS.values()
        expected = stepped(adabayes, late=late, executor=loop, **case)
    assert_alike(found, expected)


@pytest.mark.parametrize("linearize_at", ["posterior", "prediction"])
@pytest.mark.parametrize("options", [{"maximize": True}, {"schedule": "model"}, {}])
@pytest.mark.parametrize(
    "preset", [adabayes, presets.adabayes_fp, presets.momentum_filter, presets.bayes_rmsprop]
)
def test_options_of_the_optimizer_hold(preset, options, linearize_at, short):
    options = {**options, "linearize_at": linearize_at, "lrs": [0.01, 0.005, 0.02]}
    found = stepped(preset, lr=0.01, **options)
    assert_alike(found, stepped(preset, lr=0.01, executor=loop, **options))
    assert None not in fused._PROGRAMS.values()


def test_many_steps_of_any_numbers_are_one_recording(short):
    params = parameters([(40,), (5,)])
    opt = filteropt.AdaBayes(params, lr=0.01)
    for t in range(5):
        opt.param_groups[0].update(lr=0.01 / (t + 1), batch_size=t + 1)
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    assert len(fused._PROGRAMS) == 1


def test_weights_are_stepped_in_pieces_of_about_one_length(short, monkeypatch):
    lengths = []

    def noted(graph, given):
        run = replay(graph, given)
        return lambda inputs: (lengths.append(len(inputs[1])), run(inputs))

    monkeypatch.setattr(program, "replay", noted)
    monkeypatch.setattr(program, "PIECE", 300)
    stepped(adabayes, shapes=[(700,), (301,), (300,), (40,)], lrs=[None])
    assert lengths == [256, 256, 188, 192, 109, 300, 40]


@dataclass(frozen=True)
class Gated(Projection):
    """Branches on a value, which cannot be recorded."""

    elementwise: ClassVar[bool] = True

    def __call__(self, disp, belief):
        return (disp * 0.5 if bool(disp[0] > 0) else disp), belief


@dataclass(frozen=True)
class Gate(Projection):
    """Works numbers out that are of the weights' dtype in a step, and of another when recorded."""

    elementwise: ClassVar[bool] = True
    low: float = 0.5
    high: float = 0.7

    def __call__(self, disp, belief):
        gate = torch.where(disp > 0, self.low, self.high)
        return disp * gate + (disp < 0) * (self.low * 1e-3), belief


def test_numbers_are_of_the_dtype_that_they_have_in_a_step(short):
    preset = filteropt.variant(adabayes, projections=(Gate(),))
    case = {"shapes": [(40,), (5,)], "dtypes": [torch.float32] * 2}
    assert_alike(stepped(preset, **case), stepped(preset, executor=loop, **case))
    assert None not in fused._PROGRAMS.values()


@dataclass(frozen=True)
class Listing(Gate):
    knots: list = field(default_factory=lambda: [1.0])


def test_parts_of_which_no_key_can_be_made_are_stepped_as_they_stand(short):
    preset = filteropt.variant(adabayes, projections=(Listing(),))
    assert_alike(stepped(preset), stepped(preset, executor=loop))
    assert not fused._PROGRAMS
    with pytest.raises(ValueError, match=r"fused=True, but .*unhashable type: 'list'"):
        stepped(preset, fused=True)


def test_what_cannot_be_recorded_is_stepped_without_a_word(short, recwarn):
    preset = filteropt.variant(adabayes, projections=(Gated(),))
    params = [(1,)]  # of which there is one piece
    found = stepped(preset, shapes=params)
    assert_alike(found, stepped(preset, shapes=params, executor=loop), rtol=1e-14)
    stepped(preset, shapes=[(40,)])
    assert list(fused._PROGRAMS.values()) == [None]
    assert not recwarn


# In little memory ---------------------------------------------------------------------------------


def recorded(function, *given):
    """A function of vectors after numbers, as it is recorded of a step."""
    return program.record(function, 1, list(given))[1]


def memory(graph, given):
    """How many vectors a replay needs beside what it is given."""
    trial = Trial(graph)
    trial.run(*[x.clone() for x in given])
    return len(_planned(trial)[1])


def test_a_step_needs_little_memory(short, monkeypatch):
    needed = []

    def noted(graph, given):
        needed.append(memory(graph, given))
        return replay(graph, given)

    monkeypatch.setattr(program, "replay", noted)
    for preset in (adabayes, presets.adabayes_fp):
        stepped(preset, shapes=[(40,)])
    assert needed == [3, 3]


def late_look(_, p, state):
    new = state * 2
    p.add_(state)  # as it was
    state.copy_(new)


def late_look_by_a_view(_, p, state):
    seen = state.view(-1)
    new = state * 2
    p.add_(seen)
    state.copy_(new)


def changed_after(_, p, state):
    new = p * 2
    state.copy_(new)
    p.add_(new.add_(1))  # which the state must not see


def changed_before(_, p, state):
    new = p * 2
    new.add_(1)
    state.copy_(new)
    p.add_(new)


def twice(_, p, state):
    new = p + state
    p.copy_(new)
    state.copy_(new)


def exchanged(_, p, state):
    old = state.clone()
    state.copy_(p)
    p.copy_(old)


def swapped(_, p, state):
    one, other = p * 1, state * 1
    p.copy_(other)
    state.copy_(one)


def used_long_after(_, p, state):
    early = p * 3
    for _ in range(3):
        p.add_((p * state).sin() + early.cos())
    p.add_(early)


def of_other_dtypes(_, p, state):
    bits = (p * 2).float().view(torch.int32) ^ 5
    p.add_((bits & 255).to(p.dtype) + torch.where(p > state, p.double(), 1.0).to(p.dtype))


def by_a_view(_, p, state):
    new = p * 2
    same = new.view(-1)
    p.add_(state * 3)
    p.add_(same)


def by_views_of_views(_, p, state):
    same = (p * 2).view(1, -1).view(-1)
    p.add_(state * 3)
    p.add_(same)


def by_one_of_several(_, p, state):
    (same,) = (p * 2).view(1, -1).unbind()
    p.add_(state * 3)
    p.add_(same)


def in_place_again_and_again(_, p, state):
    new = (p * 2).add_(1).mul_(state)
    p.add_(state * 3)
    p.add_(new)


def changed_after_by_a_view(_, p, state):
    new = p * 2
    state.copy_(new)
    p.add_(new.view(-1).add_(1))


def with_keywords(_, p, state):
    new = torch.add(p, state, alpha=3)
    p.copy_(torch.div(new, state, rounding_mode="floor"))


def of_another_dtype(_, p, state):
    state.add_((p.double() * 2).to(state.dtype))
    p.copy_(p.double() * 3)


def along_the_vector(_, p, state):
    p.add_((p * 2).cumsum(0) + (state + 1).flip(0))


def changed_by_a_list(_, p, state):
    new = p * 2
    state.copy_(new)
    torch._foreach_mul_([new], 3.0)
    p.add_(new)


def written_to_by_keyword(_, p, state):
    new = p * 1
    torch.clamp(p, -0.1, 0.1, out=new)
    state.copy_(p * 2 + state * 4)
    p.add_(new)


def kept_place_changed_after(_, p, state):
    new = p * 2
    state.copy_(new)
    state.add_(1)
    p.add_(new)


def kept_place_copied_to_again(_, p, state):
    new = p * 2
    state.copy_(new)
    state.copy_(p)
    p.add_(new)


def a_copy_of_a_part(_, p, state):
    new = p * 2
    state.copy_(new[:1].expand(p.shape))


def a_part_of_what_is_written_to(_, p, state):
    new = p * 2
    p.copy_(new[:1].expand(p.shape) * p + 1)
    state.copy_(state[:1].expand(p.shape) * 3)


def copied_to_itself(_, p, state):
    p.copy_(p)
    state.add_(p * 2)


def kept_by_a_view(_, p, state):
    seen = state.view(-1)
    new = state * 2
    p.add_(state)
    seen.copy_(new)


def bits_of_another_kind(_, p, state):
    whole = torch.int32 if p.dtype is torch.float32 else torch.int64
    state.copy_((p * 2).view(whole))
    p.copy_((p.view(whole) ^ 1).view(p.dtype))


def numbers_and_conditions(_, p, state):
    p.add_((p > 0) * 0.3)
    p.mul_(torch.where(state > 0, 0.5, 1.0))


def shared_numbers(_, p, state):
    p.add_((state[:1] * 2).expand(p.shape) * p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [
        late_look,
        late_look_by_a_view,
        changed_after,
        changed_before,
        twice,
        exchanged,
        swapped,
        used_long_after,
        of_other_dtypes,
        by_a_view,
        by_views_of_views,
        by_one_of_several,
        in_place_again_and_again,
        changed_after_by_a_view,
        with_keywords,
        of_another_dtype,
        along_the_vector,
        changed_by_a_list,
        written_to_by_keyword,
        kept_place_changed_after,
        kept_place_copied_to_again,
        a_copy_of_a_part,
        a_part_of_what_is_written_to,
        copied_to_itself,
        kept_by_a_view,
        bits_of_another_kind,
        numbers_and_conditions,
        shared_numbers,
    ],
)
def test_whatever_is_recorded_is_replayed_to_the_bit(function, dtype):
    torch.manual_seed(0)
    p, state = torch.randn(2, 64, dtype=dtype).unbind()
    graph = recorded(function, p.clone(), state.clone())
    for n in (64, 3):
        inputs = [torch.ones(1), p[:n].clone(), state[:n].clone()]
        checked(graph, [x.clone() for x in inputs])(inputs)
        expected = [p[:n].clone(), state[:n].clone()]
        function(None, *expected)
        for x, y in zip(inputs[1:], expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


def broken(*_, **__):
    raise RuntimeError("no such operation")


def test_a_replay_is_tried_before_weights_are_stepped(monkeypatch):
    p, state = torch.randn(2, 64).unbind()
    graph, given = recorded(changed_before, p, state), [torch.ones(1), p, state]
    writer = {torch.ops.aten.mul.Tensor: broken}.get
    monkeypatch.setattr(sys.modules["filteropt.execute.replay"], "_writer", writer)
    with pytest.raises(RuntimeError, match="no such operation"):
        replay(graph, given)


def test_what_looks_along_a_vector_is_given_no_memory():
    assert _writer(torch.ops.aten.cumsum.default) is None
    assert _writer(torch.ops.aten.mul.Tensor) is torch.ops.aten.mul.out


def test_a_new_state_is_worked_out_where_it_is_kept():
    """But where something still looks at the old one, or at what it was copied from."""
    p, state = torch.randn(2, 64).unbind()
    needed = {
        f: memory(recorded(f, p, state), [torch.ones(1), p, state])
        for f in (changed_before, late_look, changed_after, swapped)
    }
    assert needed == {changed_before: 0, late_look: 1, changed_after: 1, swapped: 1}
