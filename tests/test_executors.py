"""Eager executors: weights in a row, in pieces, step as tensor after tensor does."""

from __future__ import annotations

import copy
import gc
import math
import sys
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import filteropt
from filteropt.approximations import Clipped, Diagonal, SquaredGradient
from filteropt.execute import Item, chunked, is_elementwise, loop, write
from filteropt.presets import adabayes
from filteropt.testing import LawViolation, check_elementwise
from filteropt.types import Belief, Diag, State
from tests.execution import (
    CASES,
    ELEMENTWISE,
    FITTING,
    assert_alike,
    called,
    made,
    stepped,
)

layout = sys.modules["filteropt.execute.layout"]
pieces = sys.modules["filteropt.execute.chunked"]
standing = sys.modules["filteropt.execute.standing"]


@pytest.fixture
def short(monkeypatch):
    """Pieces and packs so short that a few weights are several."""
    monkeypatch.setattr(pieces, "PIECE", 16)
    monkeypatch.setattr(layout, "SMALL", 24)
    monkeypatch.setattr(layout, "TOGETHER", 40)


# What is elementwise ------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", ELEMENTWISE, ids=called)
def test_parts_that_say_so_treat_every_weight_on_its_own(filter):
    check_elementwise(filter)


def test_nearly_all_compositions_of_diagonal_families_are_elementwise():
    names = {type(f.likelihood).__name__ for f in ELEMENTWISE}
    whole = {"GaussNewton", "LayerGradients"}
    assert names == {type(f.likelihood).__name__ for f in FITTING} - whole
    families = {type(f.posterior).__name__ for f in ELEMENTWISE}
    assert families == {"Diagonal", "FixedPoint", "OneStepAhead", "Retracted", "SquareRooted"}


class Centring(SquaredGradient):
    """Takes the mean over the weights out, and does not say that it is elementwise."""

    def observe(self, like, raw, p, prior, scalars):
        raw = raw._replace(grad=raw.grad - raw.grad.mean())
        return super().observe(like, raw, p, prior, scalars)


class Lying(Centring):
    elementwise = True


class Careful(SquaredGradient):
    """Changes what is not the program."""

    def gradient_limit(self, dtype):
        return 1.0


def norm_clipped(disp, belief):
    return disp / disp.norm().clamp_min(1.0), belief


class Pooled(Diagonal):
    """One variance for all the weights; a subclass of a part that is elementwise is not."""

    def condition(self, disp, prior, obs, transition):
        obs = obs._replace(curvature=Diag(obs.curvature.values.mean().expand_as(obs.grad)))
        return super().condition(disp, prior, obs, transition)


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ({}, True),
        ({"likelihood": Careful()}, True),
        ({"likelihood": Centring()}, False),
        ({"likelihood": filteropt.approximations.Tempered(Centring(), 0.5)}, False),
        ({"likelihood": filteropt.approximations.Averaged(SquaredGradient())}, True),
        ({"projections": (Clipped(1.0),)}, True),
        ({"projections": (norm_clipped,)}, False),
        ({"posterior": Pooled()}, False),
    ],
)
def test_parts_are_taken_at_the_word_of_the_class_that_defines_the_program(slots, expected):
    assert is_elementwise(replace(adabayes(), **slots)) is expected


@pytest.mark.parametrize(
    "likelihood", [Centring(), filteropt.approximations.Tempered(Centring(), 0.5)]
)
def test_what_does_not_say_so_is_stepped_as_whole_tensors(likelihood, short):
    """A mean over the weights is that of each tensor, not of what lies next to it."""
    preset = filteropt.variant(adabayes, likelihood=likelihood)
    assert_alike(stepped(preset), stepped(preset, executor=loop), rtol=0)


def test_a_part_that_lies_is_caught():
    with pytest.raises(LawViolation, match="half"):
        check_elementwise(replace(adabayes(), likelihood=Lying()))
    with pytest.raises(LawViolation, match="Centring"):
        check_elementwise(replace(adabayes(), likelihood=Centring()))


# Equal to the loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", ELEMENTWISE, ids=called)
def test_every_elementwise_composition_steps_as_in_the_loop(filter, short):
    """Compositions that need more than gradients are given squares and products of their own."""
    assert_alike(made(filter, chunked), made(filter, loop), rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    **CASES,
    size=st.sampled_from([1, 3, 16, 2**18]),
    small=st.sampled_from([1, 24, 2**15]),
)
def test_chunks_are_the_loop(shapes, layouts, dtypes, groups, late, size, small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", size)
        patch.setattr(layout, "SMALL", small)
        patch.setattr(layout, "TOGETHER", 4 * small)
        case = {"shapes": shapes, "layouts": layouts, "dtypes": dtypes, "groups": groups}
        found = stepped(adabayes, late=late, **case)
        expected = stepped(adabayes, late=late, executor=loop, **case)
    assert_alike(found, expected)


@pytest.mark.parametrize("linearize_at", ["posterior", "prediction"])
@pytest.mark.parametrize("options", [{"maximize": True}, {"schedule": "model"}, {}])
@pytest.mark.parametrize(
    "preset", [adabayes, filteropt.presets.adabayes_fp, filteropt.presets.momentum_filter]
)
def test_options_of_the_optimizer_hold(preset, options, linearize_at, short):
    options = {**options, "linearize_at": linearize_at, "lrs": [0.01, 0.005, 0.02]}
    found = stepped(preset, lr=0.01, **options)
    assert_alike(found, stepped(preset, lr=0.01, executor=loop, **options))


# Where things lie is found once -------------------------------------------------------------------


def moved(opt):
    for group in opt.param_groups:
        for p in group["params"]:
            p.data = p.detach().clone()


def turned(opt):
    for group in opt.param_groups:
        for p in group["params"]:
            p.data = p.detach().mT.contiguous().mT if p.dim() > 1 else p.detach()


def elsewhere(opt):
    for state in opt.state.values():
        state.update({name: x.clone() for name, x in state.items()})


def halved(opt):
    for state in opt.state.values():
        for x in state.values():
            x.mul_(0.5 if x.dim() else 1.0)


def loaded(opt):
    opt.load_state_dict(opt.state_dict())


def later(opt):
    for state in list(opt.state.values())[::2]:
        state["step"].fill_(7)


def emptied(opt):
    opt.state.clear()


def fewer(opt):
    opt.param_groups[0]["params"].pop()


def others(opt):
    for group in opt.param_groups:
        group["params"].reverse()


def swapped(opt):
    params = opt.param_groups[0]["params"]
    params[1], params[-1] = params[-1], params[1]


def replaced(opt):
    params = opt.param_groups[0]["params"]
    params[1] = torch.nn.Parameter(params[1].detach() + 1)
    params[1].grad = torch.ones_like(params[1])


def predicting(opt):
    for group in opt.param_groups:
        group["linearize_at"] = "prediction"


def undecayed(opt):
    for group in opt.param_groups:
        group["weight_decay"] = 0.3


CHANGES = [
    moved,
    turned,
    elsewhere,
    halved,
    loaded,
    later,
    emptied,
    fewer,
    others,
    swapped,
    replaced,
    predicting,
]


@pytest.mark.parametrize("change", [*CHANGES, undecayed])
def test_what_has_changed_since_the_last_step_is_found_again(change, short):
    found = stepped(adabayes, lr=0.1, lrs=[None] * 4, after_first=change)
    expected = stepped(adabayes, lr=0.1, lrs=[None] * 4, executor=loop, after_first=change)
    assert_alike(found, expected)


def test_options_that_need_other_state_are_followed(short):
    """From a recursion to its fixed point, whose state is another one."""

    def settled(opt):
        opt.param_groups[0]["settled"] = True

    def preset(lr: float = 0.1, settled: bool = False):
        return (filteropt.presets.adabayes_fp if settled else adabayes)(lr=lr)

    with pytest.raises(RuntimeError, match="has not kept"):
        stepped(preset, after_first=settled)


@pytest.mark.parametrize("flip", [lambda x: x.mT, lambda x: x.view(2, 8)])
def test_weights_that_lie_otherwise_in_the_same_memory_are_noticed(flip, short):
    def after(known):
        with pytest.MonkeyPatch.context() as patch:
            if not known:
                patch.setattr(standing.Standings, "find", lambda *_: None)
            p = torch.nn.Parameter(torch.arange(16.0).view(4, 4))
            opt = filteropt.AdaBayes([p], lr=0.1)
            for t in range(4):
                if t == 2:
                    p.data, opt.state[p]["variance"].data, opt.state[p]["exp_avg"].data = (
                        flip(x.detach())
                        for x in (p, opt.state[p]["variance"], opt.state[p]["exp_avg"])
                    )
                p.grad = slope(p).contiguous()
                opt.step()
        return [(p, opt.state[p])]

    assert_alike(after(known=True), after(known=False), rtol=1e-6)


def test_messages_name_parameters_of_groups_that_have_moved(short):
    """A group keeps what is known of it when another before it goes."""
    named = [[("first", torch.nn.Parameter(torch.ones(5)))],
             [("second", torch.nn.Parameter(torch.ones(5)))]]  # fmt: skip
    opt = filteropt.AdaBayes([{"params": group} for group in named], lr=0.1)
    p = named[1][0][1]
    for _ in range(3):
        p.grad = torch.ones_like(p)
        opt.step()
    del opt.param_groups[0]
    p.grad = torch.full_like(p, math.inf)
    with pytest.raises(filteropt.NonFiniteGradientError, match="'second'"):
        opt.step()


def test_ages_that_change_places_are_followed(short):
    """Two parameters alike, of which either is the older one."""

    def after(known):
        with pytest.MonkeyPatch.context() as patch:
            if not known:
                patch.setattr(standing.Standings, "find", lambda *_: None)
            params = [torch.nn.Parameter(torch.full((30,), x)) for x in (1.0, 2.0)]
            opt = filteropt.AdaBayes(params, lr=0.1)
            for t in range(4):
                for i, p in enumerate(params):
                    p.grad = slope(p) * (i + 1) if t or i else None
                opt.step()
                if t == 2:
                    opt.state[params[0]]["step"].fill_(7)
        return [(p, opt.state[p]) for p in params]

    assert_alike(after(known=True), after(known=False), rtol=1e-6)


def test_means_that_parameters_hold_are_no_place_to_step_from(short):
    p = torch.nn.Parameter(torch.ones(50))
    opt = filteropt.AdaBayes([p], lr=0.1, linearize_at="prediction")
    for _ in range(3):
        p.grad = torch.ones_like(p)
        opt.step()
    opt.eval()
    with pytest.raises(RuntimeError, match="call train"):
        opt.step()


def test_an_optimizer_goes_with_its_last_name(short):
    """What it has found of its parameters does not hold it: its state's memory is free at once."""
    gc.disable()
    try:
        p = torch.nn.Parameter(torch.ones(50))
        opt = filteropt.AdaBayes([p], lr=0.1)
        for _ in range(2):
            p.grad = torch.ones_like(p)
            opt.step()
        seen = weakref.ref(opt.state[p]["variance"])
        del opt
        assert seen() is None
    finally:
        gc.enable()


def slope(p):
    """A gradient whose entries differ."""
    return torch.linspace(-1, 2, p.numel(), dtype=p.dtype).view(p.shape)


GRADIENTS = {
    "another": slope,
    "transposed": lambda p: slope(p).mT.contiguous().mT,
    "with gaps": lambda p: torch.stack([slope(p), p.detach()], -1)[..., 0],
    "negated": lambda p: torch._neg_view(slope(p)),
    "the weights' own memory, shifted": lambda p: torch.as_strided(
        p.detach(), p.shape, p.stride(), p.storage_offset() - 1
    ),
    "the weights' own memory": lambda p: p.detach(),
    "none": lambda p: None,
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_may_lie_anywhere_in_every_step(kind, short):
    def after(executor):
        params = [
            torch.nn.Parameter(torch.arange(1.0, 44.0, dtype=torch.float64)[1:].view(6, 7)),
            torch.nn.Parameter(torch.arange(1.0, 8.0, dtype=torch.float64)[1:].view(3, 2)),
        ]
        with pytest.MonkeyPatch.context() as patch:
            if executor is not None:
                patch.setattr(sys.modules["filteropt.execute.update"], "choose", executor)
                patch.setattr(standing.Standings, "find", lambda *_: None)
            opt = filteropt.AdaBayes(params, lr=0.1)
            for make in (slope, GRADIENTS[kind], slope):
                for p in params:
                    p.grad = make(p)
                opt.step()
        return [(p, opt.state[p]) for p in params]

    assert_alike(after(None), after(lambda *_: loop), rtol=1e-14)


def test_a_run_looks_once(short, monkeypatch):
    """New gradients, schedules and hyperparameters leave everything where it is."""
    found, of = [], layout.Layout.__init__
    monkeypatch.setattr(layout.Layout, "__init__", lambda *given: (found.append(1), of(*given))[1])
    for schedule in ("gain", "model"):
        stepped(adabayes, schedule=schedule, lr=0.1, lrs=[0.1, 0.2, 0.3])
    assert len(found) == 2


@pytest.mark.parametrize("n", [5, 50])
def test_gradients_are_let_go(n, short):
    """Until the next step, nothing of them takes memory."""
    p = torch.nn.Parameter(torch.ones(n))
    opt = filteropt.AdaBayes([p], lr=0.1)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        seen = weakref.ref(p.grad)
        opt.step()
        opt.zero_grad()
        assert seen() is None


def test_gradients_of_a_step_that_was_not_taken_are_let_go(short):
    p = torch.nn.Parameter(torch.ones(50))
    opt = filteropt.AdaBayes([p], lr=0.1, on_nonfinite="skip")
    for value in (1.0, 1.0, math.inf):
        p.grad = torch.full_like(p, value)
        seen = weakref.ref(p.grad)
        opt.step()
        opt.zero_grad()
        assert seen() is None


def test_little_is_kept_where_gradients_come_and_go(short, monkeypatch):
    """Every first parameter would have a standing of its own."""
    monkeypatch.setattr(standing, "FEW", 3)
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(9)]
    opt = filteropt.AdaBayes(params, lr=0.1)
    for i in range(9):
        for p in params[i:]:
            p.grad = torch.ones_like(p)
        opt.step()
        opt.zero_grad()
        assert len(opt._standings) <= 3


def test_a_copy_steps_its_own_weights(short):
    p = torch.nn.Parameter(torch.ones(50))
    opt = filteropt.AdaBayes([p], lr=0.1)
    p.grad = torch.ones_like(p)
    opt.step()
    twin = copy.deepcopy(opt)
    (q,) = twin.param_groups[0]["params"]
    q.grad = torch.ones_like(q)
    before = p.detach().clone()
    twin.step()
    assert torch.equal(p, before)
    opt.step()
    assert torch.equal(p, q)


# What is not laid in a row ------------------------------------------------------------------------


def overlapping(kind):
    base = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if kind == "tied":  # two parameters of which one shows a part of the other
        return [torch.nn.Parameter(base[:40]), torch.nn.Parameter(base[30:])]
    return [torch.nn.Parameter(base[:30]), torch.nn.Parameter(base[30:])]


@pytest.mark.parametrize("kind", ["tied", "side by side"])
def test_parameters_in_one_memory_step_in_turn(kind, short):
    """The second of two tied parameters sees what the first has become."""

    def after(executor):
        params = overlapping(kind)
        return stepped(adabayes, params=params, executor=executor, lr=0.1)

    assert_alike(after(None), after(loop), rtol=1e-14)


def test_a_parameter_that_overlaps_with_itself_is_no_row(short):
    """As ever, torch refuses to write to it."""
    p = torch.nn.Parameter(torch.zeros(1).expand(50))
    with pytest.raises(RuntimeError, match="single memory location"):
        stepped(adabayes, params=[p])


def test_states_of_another_layout_are_taken_along(short):
    """As after loading a checkpoint of a model in another memory format."""

    def params():
        p = torch.nn.Parameter(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)))
        return [torch.nn.Parameter(p.detach().to(memory_format=torch.channels_last))]

    def turned(opt):
        for state in opt.state.values():
            for name, x in state.items():
                state[name] = x.contiguous()

    found = stepped(adabayes, params=params(), after_first=turned)
    assert_alike(found, stepped(adabayes, params=params(), executor=loop, after_first=turned))


def test_a_gradient_that_is_not_finite_changes_nothing(short):
    params = [torch.nn.Parameter(torch.ones(n)) for n in (5, 100, 3)]
    opt = filteropt.AdaBayes(params)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    before = [x.clone() for p in params for x in (p, *opt.state[p].values())]
    params[2].grad[1] = float("nan")
    with pytest.raises(filteropt.NonFiniteGradientError):
        opt.step()
    assert all(map(torch.equal, before, [x for p in params for x in (p, *opt.state[p].values())]))


# Storing ------------------------------------------------------------------------------------------


def test_a_state_whose_tensors_change_places_is_kept_right():
    """A part may remember the last two gradients: the older is where the newer was."""
    p, old, new = torch.zeros(2), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])
    kept = [new, old]
    block = filteropt.blocks.Block(p)
    state = State(Belief((), ()), (torch.tensor([3.0, 3.0]), new), ())
    write(Item(block, filteropt.types.Raw(p), state, kept), p, state, 1.0)
    assert kept[0].tolist() == [3.0, 3.0]
    assert kept[1].tolist() == [2.0, 2.0]


def test_a_state_that_holds_the_weights_holds_them_as_they_were():
    p, kept = torch.zeros(2), [torch.ones(2)]
    state = State(Belief((), ()), (p,), ())
    write(Item(filteropt.blocks.Block(p), filteropt.types.Raw(p), state, kept), p + 1, state, 1.0)
    assert kept[0].tolist() == [0.0, 0.0]
    assert p.tolist() == [1.0, 1.0]
