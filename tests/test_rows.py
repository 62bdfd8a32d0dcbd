"""States side by side in memory, and arithmetic without tensors."""

from __future__ import annotations

import copy
import io
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import filteropt
from filteropt.execute.arithmetic import of_floats
from filteropt.execute.rows import as_row, side_by_side
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


def test_tensors_with_gaps_stay_where_they_are():
    states = [{"gaps": torch.ones(4)[::2], "none": torch.ones(0)} for _ in range(2)]
    before = dict(states[0])
    side_by_side(states)
    assert all(states[0][name] is x for name, x in before.items())


def test_large_tensors_begin_cache_lines_of_their_own_vector(monkeypatch):
    monkeypatch.setattr(rows, "SMALL", 5)
    states = [{"x": torch.randn(n, dtype=dtype)} for dtype in (torch.float32, torch.bfloat16)
              for n in (5, 3, 70, 7, 4)]  # fmt: skip
    before = copy.deepcopy(states)
    side_by_side(states)
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(states, before, strict=True))
    large = [state["x"] for state in states if state["x"].numel() >= 5]
    assert all(x.data_ptr() % 64 == 0 for x in large)
    assert len({x.untyped_storage().data_ptr() for x in large}) == 2  # one for each dtype
    gap = large[0].as_strided((59,), (1,), 5)
    assert torch.equal(gap, torch.zeros(59))  # which is saved with them
    small = [state["x"] for state in states[:5] if state["x"].numel() < 5]
    assert as_row(small) is not None


def flags_of(address):
    """What the system knows of the memory at an address (Linux)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise LookupError(address)


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no large pages here"
)
def test_states_of_many_weights_ask_for_large_pages():
    p = torch.nn.Parameter(torch.zeros(2**22))
    opt = filteropt.AdaBayes([p], lr=0.1)
    p.grad = torch.ones_like(p)
    opt.step()
    variance = opt.state[p]["variance"]
    assert "hg" in flags_of(variance.data_ptr() + variance.nbytes // 2)
    assert "hg" not in flags_of(p.data_ptr() + p.nbytes // 2)  # which is not the optimizer's


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


def test_states_that_were_loaded_lie_side_by_side_and_share_nothing():
    params = parameters(SHAPES, dtypes=[torch.bfloat16] * 4)
    opt = filteropt.AdaBayes(params, lr=0.1)
    stepped(opt, params)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = filteropt.AdaBayes(theirs, lr=0.1)
    other.load_state_dict(opt.state_dict())
    for name in ("step", "variance"):
        assert as_row([other.state[p][name].flatten() for p in theirs]) is not None
        assert all(
            torch.equal(other.state[p][name], opt.state[q][name])
            for p, q in zip(theirs, params, strict=True)
        )
    before = [opt.state[p]["step"].clone() for p in params]
    stepped(other, theirs)
    assert [opt.state[p]["step"] for p in params] == before


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_step_in_inference_mode_leaves_others_possible(first, fused):
    params = parameters([(3,), (5,)])
    opt = filteropt.AdaBayes(params, lr=0.1, fused=fused)
    if not first:
        stepped(opt, params)
    opt._standings.clear()
    for p in params:
        p.grad = torch.ones_like(p)
    with torch.inference_mode():
        opt.step()
    stepped(opt, params)


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


def test_multiples_are_taken():
    assert of_floats(traced(lambda x: [torch.rsub(x, 1.0, alpha=3)], 1))(2.0) == [-5.0]


def test_numbers_without_end_reach_the_kernel(monkeypatch):
    """AdamW's limit, lr_sgd = inf: what floats refuse, tensors work out."""
    params = parameters([(5,)])
    opt = filteropt.AdaBayesFP(params, lr=0.1, lr_sgd=math.inf, fused=True)
    eager = parameters([(5,)])
    other = filteropt.AdaBayesFP(eager, lr=0.1, lr_sgd=math.inf, fused=False)
    assert_alike(stepped(opt, params), stepped(other, eager), rtol=1e-12)
