"""Steps that can be captured: none reads a number, and done again and again they are steps."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import filteropt
from filteropt import presets
from filteropt.approximations import Dense, SampledFisher
from filteropt.presets import adabayes
from tests.execution import assert_alike, parameters, stepped

layout = sys.modules["filteropt.execute.layout"]
fused = sys.modules["filteropt.execute.fused"]
measure = sys.modules["filteropt.measure"]
program = sys.modules["filteropt.execute.program"]

CAPTURABLE = {"capturable": True, "on_nonfinite": "ignore"}
PRESETS = [
    adabayes,
    presets.adabayes_fp,
    presets.momentum_filter,
    presets.bayes_rmsprop,
    presets.online_natural_gradient,
]


class Capture(TorchDispatchMode):
    """Notes every operation, refuses those that read a number, and does all of them again.

    As a CUDA graph, it does them in the memory that they were done in.
    """

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in {
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
        }, "a number was read"
        found = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, found))
        return found

    def replay(self):
        for func, args, kwargs, found in self.done:
            again = func(*args, **kwargs)
            aliased = any(x.alias_info is not None for x in func._schema.arguments)
            if isinstance(found, torch.Tensor) and not aliased:
                found.copy_(again)


@pytest.fixture
def uncompiled(monkeypatch):
    """Programs are replayed, whose operations can be noted; a few weights lie by themselves."""

    def missing(*_, **__):
        raise RuntimeError("not now")

    monkeypatch.setattr(fused, "_PROGRAMS", {})
    monkeypatch.setattr(program, "_compiled", missing)
    monkeypatch.setattr(fused, "_warn", lambda _: None)
    monkeypatch.setattr(layout, "SMALL", 24)


def give(params, t):
    """Gradients of a step, in the memory of those before."""
    generator = torch.Generator().manual_seed(t)
    for p in params:
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = grad if p.grad is None else p.grad.copy_(grad)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_captured_step_is_a_step_whenever_it_is_done_again(preset, uncompiled, monkeypatch):
    """Bias corrections go on, for parameters of two ages, in groups of other hyperparameters."""

    def run(capture, **options):
        params = parameters([(40,), (5,), (3, 4), (), (30,)])
        groups = [{"params": params[:3], "lr": 0.02}, {"params": params[3:]}]
        opt = filteropt.FilterOptimizer(groups, preset, lr=0.01, **options)
        for t in range(3):
            give(params, t)
            if t == 0:
                params[1].grad = None  # which is a step younger from now on
            opt.step()
        if capture is None:
            for t in range(3, 8):
                give(params, t)
                opt.step()
        else:
            give(params, 3)
            with monkeypatch.context() as patch, capture:
                patch.setattr(measure, "capturing", lambda: True)
                opt.step()
            for t in range(4, 8):
                give(params, t)
                capture.replay()
        return [(p, opt.state[p]) for p in params]

    assert_alike(run(Capture(), **CAPTURABLE), run(None), rtol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_outside_of_a_capture_steps_are_the_same(preset):
    options = {"lrs": [0.01, 0.005, 0.02], "lr": 0.01, "shapes": [(40,), (3, 4), (1,)]}
    late = {"late": [False, True, False]}
    found = stepped(preset, **options, **late, **CAPTURABLE)
    assert_alike(found, stepped(preset, **options, **late), rtol=1e-12)


def test_the_first_step_is_not_captured(uncompiled, monkeypatch):
    params = parameters([(40,), (5,)])
    opt = filteropt.AdaBayes(params, **CAPTURABLE)
    give(params, 0)
    with monkeypatch.context() as patch:
        patch.setattr(measure, "capturing", lambda: True)
        with pytest.raises(RuntimeError, match="take a step of the same parameters"):
            opt.step()
    opt.step()
    assert all(float(opt.state[p]["step"]) == 1 for p in params)


def test_a_capture_has_to_be_asked_for(uncompiled, monkeypatch):
    """Else its numbers would be those of one step for ever."""
    params = parameters([(40,), (5,)])
    opt = filteropt.AdaBayes(params, on_nonfinite="ignore")
    give(params, 0)
    opt.step()
    before = [p.detach().clone() for p in params]
    monkeypatch.setattr(measure, "capturing", lambda: True)
    with pytest.raises(RuntimeError, match="construct it with capturable=True"):
        opt.step()
    assert all(map(torch.equal, params, before))


def test_what_the_loop_has_to_step_is_not_captured(uncompiled, monkeypatch):
    memory = torch.randn(60, dtype=torch.float64)
    params = [torch.nn.Parameter(memory[:40]), torch.nn.Parameter(memory[20:])]
    opt = filteropt.AdaBayes(params, **CAPTURABLE)
    give(params, 0)
    opt.step()
    monkeypatch.setattr(measure, "capturing", lambda: True)
    with pytest.raises(RuntimeError, match="parameters that overlap in memory"):
        opt.step()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_nonfinite": "raise"}, "capturable=True needs on_nonfinite='ignore'"),
        ({"fused": False}, "and a compiled step"),
        ({"linearize_at": "prediction"}, "linearize_at='prediction' keeps numbers"),
        ({"posterior": Dense()}, "capturable=True, but Dense does not say"),
        ({"likelihood": SampledFisher()}, "SampledFisher needs squares"),
        ({"capturable": 1.5}, "capturable"),
    ],
)
def test_what_cannot_be_captured_is_refused(options, words):
    slots = {name: options.pop(name) for name in ("posterior", "likelihood") if name in options}
    preset = filteropt.variant(adabayes, **slots)
    with pytest.raises((TypeError, ValueError), match=words):
        filteropt.FilterOptimizer([torch.nn.Parameter(torch.zeros(3))], preset,
                                  **{**CAPTURABLE, **options})  # fmt: skip


@pytest.mark.parametrize("kind", ["saver", "loader"])
def test_checkpoints_go_from_one_kind_to_the_other(kind):
    """Steps are counted where the loading optimizer wants them."""
    options = {True: CAPTURABLE, False: {}}
    params = parameters([(40,), (5,)])
    saver = filteropt.AdaBayes(params, **options[kind == "saver"])
    give(params, 0)
    saver.step()
    loader = filteropt.AdaBayes(params, **options[kind == "loader"])
    loader.load_state_dict(saver.state_dict())
    give(params, 1)
    loader.step()
    assert all(float(loader.state[p]["step"]) == 2 for p in params)
    meta = torch.nn.Parameter(torch.empty(2, device="meta"))
    assert loader._clock_of(meta).type == ("meta" if kind == "loader" else "cpu")
