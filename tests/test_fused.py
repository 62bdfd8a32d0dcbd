"""The compiled executor: equal to the loop, compiled once, and honest where it cannot be."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._inductor.utils import fresh_cache

import filteropt
from filteropt import engine, presets
from filteropt.approximations import Dense, Diagonal, FixedPoint, SquaredGradient
from filteropt.execute import choose, chunked, fused, loop, replayed
from filteropt.execute.numbers import structure_of
from filteropt.presets import adabayes
from filteropt.types import Projection
from tests.execution import CASES, assert_alike, made, parameters, stepped

layout = sys.modules["filteropt.execute.layout"]
module = sys.modules["filteropt.execute.fused"]
program = sys.modules["filteropt.execute.program"]
COMPILED = []


@pytest.fixture(autouse=True)
def count(monkeypatch):
    """Count what is compiled."""
    compiled = program._compiled

    def note(*given):
        COMPILED.append(given)
        return compiled(*given)

    monkeypatch.setattr(program, "_compiled", note)


def graphs():
    """How many graphs have been compiled so far."""
    return len(COMPILED)


@pytest.fixture
def short(monkeypatch):
    """Tensors of a few weights are stepped where they lie."""
    monkeypatch.setattr(layout, "SMALL", 24)


@pytest.fixture
def fresh(monkeypatch):
    """Nothing compiled yet, and no warning given."""
    monkeypatch.setattr(module, "_PROGRAMS", {})
    module._warn.cache_clear()


# Equal to the loop --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    **CASES,
    small=st.sampled_from([1, 24, 2**15]),
)
def test_fused_is_the_loop(shapes, layouts, dtypes, groups, late, small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SMALL", small)
        case = {"shapes": shapes, "layouts": layouts, "dtypes": dtypes, "groups": groups}
        found = stepped(adabayes, late=late, fused=True, **case)
        expected = stepped(adabayes, late=late, executor=loop, **case)
    assert_alike(found, expected)
    assert None not in module._PROGRAMS.values()


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        (presets.adabayes_fp, {"fixed_point": "exact"}),
        (presets.momentum_filter, {"linearize_at": "prediction"}),
        (presets.momentum_filter, {"stationary": True}),
        (presets.bayes_rmsprop, {"maximize": True}),
    ],
)
def test_presets_and_options_are_the_loops(preset, options, short):
    options = {**options, "lr": 0.01, "lrs": [0.01, 0.005, 0.02]}
    found = stepped(preset, fused=True, **options)
    assert_alike(found, stepped(preset, executor=loop, **options))
    assert None not in module._PROGRAMS.values()


def test_a_number_that_all_weights_share_is_stepped_once(short, fresh, monkeypatch):
    """Vadam's family counts the evidence of a tensor in one number, in every piece of it alike."""
    monkeypatch.setattr(program, "LONGEST", 16)
    filter = presets.vadam(lr=0.01, dataset_size=100)
    assert_alike(made(filter, fused), made(filter, loop), rtol=1e-12)
    assert None not in module._PROGRAMS.values()


def test_numbers_of_projections_are_followed(short):
    """IVON's clip radius and gain are no part of what was compiled."""
    found = {}
    for radius in (1e-3, 1e-1):
        filter = presets.ivon(lr=0.1, ess=100.0, clip_radius=radius, hess_approx="gradsq")
        found[radius] = made(filter, fused)
        before = graphs()
        assert_alike(found[radius], made(filter, loop), rtol=1e-12)
    assert graphs() == before
    assert not torch.equal(found[1e-3][1][0], found[1e-1][1][0])


def test_saved_tensors_notice_a_step():
    """Autograd's count of changes goes on, so that a backward pass through old weights fails."""
    (p,) = parameters([(40,)])
    opt = filteropt.AdaBayes([p], fused=True)
    loss = p.square().sum()
    p.grad = torch.ones_like(p)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Compiled once ------------------------------------------------------------------------------------


def test_a_run_compiles_once(fresh):
    """Steps, hyperparameters, schedules, sizes and further groups and optimizers: one graph."""
    params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 50_000, 40)]
    before = graphs()
    for schedule in ("gain", "model"):
        opt = filteropt.AdaBayes(params[:2], batch_size=8, fused=True, schedule=schedule)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)
        for i in range(6):
            if i == 2:
                opt.param_groups[0].update(batch_size=16, beta1=0.8, weight_decay=0.01)
            if i == 4:
                opt.add_param_group({"params": params[2:], "lr": 0.02, "lr_sgd": 0.3})
            for p in params:
                p.grad = torch.ones_like(p)
            opt.step()
            scheduler.step()
    assert graphs() - before == 1
    assert len(module._PROGRAMS) == 1


@pytest.mark.parametrize("name", ["adabayes", "adabayes_fp", "momentum_filter", "bayes_rmsprop"])
def test_what_numbers_alone_decide_is_no_part_of_the_kernel(name, fresh):
    stepped(getattr(presets, name), fused=True, params=parameters([(40,)]))
    (graph, _), worked_out = COMPILED[-1], []
    for node in graph.graph.nodes:
        if node.op == "call_function" and "val" in node.meta and not node.meta["val"].dim():
            worked_out.append(node)
    assert not worked_out


def test_each_dtype_and_structure_has_a_program_of_its_own(fresh):
    memoryless = filteropt.variant(adabayes, likelihood=SquaredGradient(beta1=None))
    for dtype in (torch.float32, torch.float64):
        for preset in (adabayes, memoryless):
            stepped(preset, fused=True, params=parameters([(40,)], dtypes=[dtype]))
    assert len(module._PROGRAMS) == 4


@pytest.mark.parametrize("name", ["adabayes", "adabayes_fp", "momentum_filter", "bayes_rmsprop"])
def test_no_number_is_part_of_a_structure(name):
    preset = getattr(presets, name)
    one, other = preset(), preset(lr=0.03, batch_size=17)
    early, late = engine.scalars(one, 1), engine.scalars(other, 9)
    assert structure_of(one, early) == structure_of(other, late)


def test_what_is_no_number_is_part_of_a_structure():
    def structure(**slots):
        filter = filteropt.variant(presets.adabayes_fp, **slots)()
        return structure_of(filter, engine.scalars(filter, 1))

    assert structure() != structure(posterior=FixedPoint("exact"))
    assert structure() != structure(posterior=Diagonal())
    assert structure(posterior=Diagonal(0.5)) == structure(posterior=Diagonal(0.25))


# Where it cannot be -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gated(Projection):
    """Branches on a value, which a compiled program cannot."""

    elementwise: ClassVar[bool] = True

    def __call__(self, disp, belief):
        return (disp if float(disp.abs().sum()) < 1e9 else 0 * disp), belief


class Bare(Projection):
    elementwise: ClassVar[bool] = True

    def __call__(self, disp, belief):
        return disp, belief


def test_a_part_that_cannot_be_compiled_falls_back_with_one_warning(fresh, short):
    preset = filteropt.variant(adabayes, projections=(Gated(),))
    with pytest.warns(UserWarning, match="could not be compiled") as found:
        after = stepped(preset, fused=True)
    assert len(found) == 1
    assert_alike(after, stepped(preset, executor=loop), rtol=1e-14)


def test_a_profile_names_the_kernels():
    params = parameters([(5,), (40,)])
    opt = filteropt.AdaBayes(params, lr=0.1, fused=True)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        opt.step()
    assert sum(e.count for e in seen.key_averages() if e.key == "filteropt.execute.fused") == 1


@pytest.fixture
def sources(fresh, monkeypatch):
    """What is compiled, in C++."""
    compiled, found = program._compiled, []

    def note(*given):
        kernel = compiled(*given)
        found.append(kernel.source_code)
        return kernel

    monkeypatch.setattr(program, "_compiled", note)
    with fresh_cache():  # of kernels on disk
        yield found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # which takes two registers
def test_bits_of_floats_stay_in_registers(sources, dtype):
    options = {"fused": True, "belief_dtype": torch.bfloat16}
    stepped(adabayes, shapes=[(40,)], dtypes=[dtype], **options)
    (source,) = sources
    assert ("bit_cast<int32_t>" in source) != ("at::vec::cast<int32_t, float>" in source)
    assert "tmpbuf" not in source


def test_kernels_of_others_are_not_taken_for_these(sources, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(program, "waiting_less", contextlib.nullcontext)
        stepped(adabayes, shapes=[(40,)], dtypes=[torch.float32], fused=True)
    module._PROGRAMS.clear()
    stepped(adabayes, shapes=[(40,)], dtypes=[torch.float32], fused=True)
    assert ["__builtin_prefetch" in source for source in sources] == [False, True]


def test_kernels_ask_once_for_each_vector_that_they_read(sources):
    stepped(adabayes, shapes=[(40,)], dtypes=[torch.float32], fused=True)
    (source,) = sources
    asked = re.findall(
        r"__builtin_prefetch\(\(const char\*\)\((\w+) \+.*\) \+ 2048, 0, 2\);", source
    )
    assert set(Counter(asked).values()) == {2}  # the loop, and what is left at its end
    assert len(asked) == 2 * 4  # weights, gradients, precisions, averages; numbers are at hand


def test_threads_compile_one_after_the_other(fresh, monkeypatch):
    attempt, inside, most = module._attempt, [], []

    def slow(*given, **options):
        inside.append(given)
        most.append(len(inside))
        time.sleep(0.05)
        try:
            return attempt(*given, **options)
        finally:
            inside.pop()

    monkeypatch.setattr(module, "_attempt", slow)
    threads = [threading.Thread(target=stepped, args=(adabayes,), kwargs={"fused": True})
               for _ in range(3)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * len(module._PROGRAMS)
    assert None not in module._PROGRAMS.values()


@pytest.mark.parametrize("size", [5, 40])  # copied there and back, and where it lies
def test_autograd_is_told_that_weights_changed(short, size):
    p = torch.nn.Parameter(torch.ones(size))
    opt = filteropt.AdaBayes([p], lr=0.1, fused=True)
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_a_compiler_the_eager_executor_steps_in(fresh, monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(program, "_compiled", missing)
    with pytest.warns(UserWarning, match="No working C\\+\\+ compiler found") as found:
        after = stepped(adabayes, fused=True, dtypes=[torch.float32, torch.float64])
    assert len(found) == 1
    assert_alike(after, stepped(adabayes, executor=loop, dtypes=[torch.float32, torch.float64]))
    assert None not in module._PROGRAMS.values()  # they are replayed


def test_what_was_replayed_is_compiled_when_that_is_asked_for(fresh, monkeypatch):
    monkeypatch.setattr(sys.modules["filteropt.execute.choice"], "SEVERAL", 0)
    before = graphs()
    for wanted in (False, True):
        stepped(adabayes, params=parameters([(40,)]), fused=wanted)
    assert len(module._PROGRAMS) == 2
    assert graphs() == before + 1


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"posterior": Dense()}, "Dense does not say"),
        ({"projections": (lambda disp, belief: (disp, belief),)}, "function does not say"),
        ({"projections": (Bare(),)}, "Bare is no dataclass"),
    ],
)
def test_a_composition_that_cannot_be_fused_is_refused(slots, words):
    preset, p = filteropt.variant(adabayes, **slots), torch.zeros(3)
    filteropt.FilterOptimizer([torch.nn.Parameter(p)], preset)
    with pytest.raises(ValueError, match=f"fused=True, but {words}"):
        filteropt.FilterOptimizer([torch.nn.Parameter(p)], preset, fused=True)


@pytest.mark.parametrize("fused", [1.0, "yes"])
def test_fused_is_a_choice_of_three(fused):
    with pytest.raises((TypeError, ValueError), match="fused"):
        filteropt.AdaBayes([torch.nn.Parameter(torch.zeros(1))], fused=fused)


# The choice ---------------------------------------------------------------------------------------


def test_size_decides_where_nothing_is_asked_for():
    filter = adabayes()
    assert choose(filter, 10**7, None) is fused
    assert choose(filter, 10**7 - 1, None) is replayed
    assert choose(filter, 10**9, False) is replayed
    assert choose(filter, 2**18 - 1, None) is chunked
    assert choose(filter, 1, True) is fused
    assert choose(replace(filter, projections=(Bare(),)), 10**9, None) is chunked
    dense = filteropt.variant(adabayes, posterior=Dense())()
    assert choose(dense, 10**9, None) is loop


def test_a_step_of_many_weights_is_compiled_by_itself(fresh, monkeypatch):
    monkeypatch.setattr(sys.modules["filteropt.execute.choice"], "MANY", 100)
    stepped(adabayes, params=parameters([(60,), (50,)]))
    assert len(module._PROGRAMS) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepped(adabayes, params=parameters([(60,), (30,)], dtypes=[torch.float32] * 2))
    assert len(module._PROGRAMS) == 1
