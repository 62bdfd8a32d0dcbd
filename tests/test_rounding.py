"""Beliefs in bfloat16: rounded at random, right on average, and alike however they are stepped."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import filteropt
from filteropt import engine, presets
from filteropt.blocks import Block
from filteropt.execute import Item, chunked, fused, items, loop
from filteropt.execute.flat import advance, run_of
from filteropt.rounding import Dither, held, round_at_random
from filteropt.trees import leaves, restore, tree_map
from filteropt.types import Raw
from tests.execution import stepped

N = 1 << 16
WEIGHTS, GRADS = torch.randn(2, N, generator=torch.Generator().manual_seed(0))


def noise(t=1.0, column=0, mean=WEIGHTS, grad=GRADS):
    return Dither(mean, grad, t)(column)


def standard(*given, **named):
    """Noise of mean 0 and variance 1."""
    return (noise(*given, **named).double() + 0.5) / N * 12**0.5 - 3**0.5


# Rounding -----------------------------------------------------------------------------------------


@given(st.floats(1e-30, 1e30), st.booleans(), st.integers(1, 2**24))
def test_numbers_go_to_a_neighbour_and_are_right_on_average(x, negative, t):
    x = float(torch.tensor(-x if negative else x))  # a float32
    found = round_at_random(torch.full((N,), x), noise(float(t))).double()
    bits = torch.tensor(x).view(torch.int32) & -0x10000
    down, up = ((bits + k).view(torch.float32).double() for k in (0, 0x10000))
    assert ((found == down) | (found == up)).all()
    part = (x - down) / (up - down)
    error = (found.mean() - x) / (up - down)
    assert error.abs() < 6 * (part * (1 - part) / N) ** 0.5 + 2**-16


def test_what_bfloat16_holds_stays_as_it_is():
    x = torch.cat([torch.tensor([0.0, -0.0, 1.0, -3.5]), torch.randn(60).bfloat16().float()])
    assert torch.equal(round_at_random(x, noise()[: len(x)]).float(), x)


def test_noise_is_uniform():
    counts = torch.bincount(noise() // 256, minlength=256)
    assert ((counts - 256) ** 2 / 256).sum() < 255 + 5 * (2 * 255) ** 0.5  # chi squared


@pytest.mark.parametrize(("t", "column"), [(2.0, 0), (3.0, 0), (1.0, 1), (2.0, 1)])
def test_steps_and_columns_are_independent(t, column):
    assert (standard() * standard(t, column)).mean().abs() < 0.02  # 5 standard errors


@pytest.mark.parametrize("other", ["mean", "grad"])
def test_weights_that_differ_in_one_bit_are_independent(other):
    x = {"mean": WEIGHTS, "grad": GRADS}[other]
    near = (x.view(torch.int32) ^ 1).view(torch.float32)
    assert (standard() * standard(**{other: near})).mean().abs() < 0.02


def test_a_weight_at_rest_is_rounded_anew_in_every_step():
    """Neither it nor its gradient changes, and yet a small drift is kept on average."""
    still = torch.linspace(-1, 1, 64)
    x, steps = torch.ones(64).bfloat16(), 4000
    for t in range(1, steps + 1):
        x = round_at_random(x.float() + 2**-13, Dither(still, still, float(t))(0))
    assert abs(float(x.float().mean()) - 1 - steps * 2**-13) < 0.04  # 5 standard errors
    assert (torch.ones(64).bfloat16() + 2**-13 == 1).all()  # to nearest it would be lost


# Beliefs ------------------------------------------------------------------------------------------

SHORT = {"belief_dtype": torch.bfloat16}
KEPT = [presets.adabayes, presets.adabayes_fp, presets.bayes_rmsprop]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", KEPT)
@pytest.mark.parametrize("executor", [chunked, fused])
def test_executors_round_alike(preset, executor, dtype):
    """But for weights whose last bit in float32 differs: in the next step their hash is another."""

    def run(executor):
        return stepped(preset, executor, dtypes=[dtype] * 8, **SHORT)

    differing = total = 0
    for (p, state), (q, other) in zip(run(executor), run(loop), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-2, atol=1e-4)
        for name in state:
            assert state[name].dtype == (torch.bfloat16 if state[name].dim() else torch.float32)
            torch.testing.assert_close(state[name], other[name], rtol=2**-7, atol=1e-30)
            differing += int((state[name] != other[name]).sum())
            total += state[name].numel()
    assert differing <= 0.01 * total + 1


STEPS = 10_000


@functools.cache
def settled(dtype):
    """Weights and variances after many steps down noisy quadratics of many curvatures."""
    filter = presets.adabayes(lr=1e-4, batch_size=16)
    generator = torch.Generator().manual_seed(0)
    p, curvature = torch.ones(128), torch.logspace(-1, 1, 128)
    state = engine.init(filter, p)
    kept = [x.to(dtype) for x in leaves(state)]
    numbers = tree_map(float, engine.scalars(filter, STEPS))
    for t in range(1, STEPS + 1):
        raw = Raw(curvature * p + torch.randn(128, generator=generator))
        run = run_of(Item(Block(p), raw, state, kept))
        advance(filter, numbers._replace(t=float(t)), run, 1.0)
    return p, engine.variance(filter, numbers, restore(state, map(held, kept)), p)


def test_ten_thousand_steps_stay_near_float32():
    """Variances within 1 % on average and 10 % each, weights within two standard deviations.

    Variances move by some 1e-4 of themselves in a step, which rounding to nearest loses.
    """
    mean, variance = settled(torch.float32)
    other, found = settled(torch.bfloat16)
    assert float((found / variance).log().mean().abs()) < 0.01
    assert float((found / variance - 1).abs().quantile(0.99)) < 0.1
    assert float(((other - mean).square() / variance).mean()) < 2**2


def test_rounding_to_nearest_would_not(monkeypatch):
    monkeypatch.setattr(items, "round_at_random", lambda x, _: x.bfloat16())
    mean, variance = settled(torch.float32)
    other, found = settled.__wrapped__(torch.bfloat16)
    assert float((found / variance).log().mean()) < -0.3
    assert float(((other - mean).square() / variance).mean()) > 100


def test_half_the_memory():
    p = torch.nn.Parameter(torch.zeros(100, 10))
    opt = filteropt.AdaBayes([p], **SHORT)
    p.grad = torch.ones_like(p)
    opt.step()
    kept = [x for x in opt.state[p].values() if x.dim()]
    assert sum(x.numel() * x.element_size() for x in kept) == 4 * p.numel()


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    def started():
        p = torch.nn.Parameter(WEIGHTS[:50].clone())
        return p, filteropt.AdaBayes([p], **SHORT)

    def go(p, opt, steps):
        for t in steps:
            p.grad = GRADS[50 * t : 50 * t + 50].clone()
            opt.step()

    p, opt = started()
    go(p, opt, range(5))
    torch.save((p, opt.state_dict()), tmp_path / "run.pt")
    go(p, opt, range(5, 9))
    q, again = started()
    saved, state = torch.load(tmp_path / "run.pt", weights_only=False)
    q.data.copy_(saved.data)
    again.load_state_dict(state)
    go(q, again, range(5, 9))
    assert torch.equal(p, q)
    for name, x in opt.state[p].items():
        assert torch.equal(x, again.state[q][name])
        assert x.dtype == again.state[q][name].dtype


def test_what_reads_a_belief_takes_it_in_float32():
    p = torch.nn.Parameter(torch.zeros(20))
    opt = filteropt.AdaBayes([p], **SHORT)
    p.grad = torch.ones_like(p)
    opt.step()
    assert opt.posterior_variance(p).dtype is torch.float32
    with opt.sampled_params(train=False):
        assert p.std() > 0
    assert opt.report()[0].state_bytes < 4.3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: filteropt.AdaBayes([p], belief_dtype=torch.float16), "torch.bfloat16"),
        (lambda p: filteropt.MomentumFilter([p], **SHORT), "2 latents"),
        (lambda p: filteropt.EigenbasisFilter([p], **SHORT), "matrices need all their bits"),
        (lambda p: filteropt.AdaBayes([p.double()], **SHORT), "float64"),
    ],
)
def test_what_has_no_short_belief_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(torch.zeros(3, 3))
