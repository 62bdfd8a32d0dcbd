"""SGD, RMSprop, Adam and AdamW as compositions: torch's own, over a hundred steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filteropt import FilterOptimizer, presets

STEPS = 100


def gradient(p, generator):
    """Of a noisy quadratic, away from 0, where RMSprop without eps divides by 0."""
    return p.detach() + 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)


def warm_up_and_decay(t):
    """A factor on lr at step t that rises, falls, and is never 0."""
    return min(1.0, (t + 1) / 10) * 0.98**t


def run(make, scheduled=False, groups=None, decay=0.0):
    """Weights after every tenth step; ``decay`` shrinks them before each step."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (4,)]
    params = [
        torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes
    ]
    opt = make([{"params": [p], **g} for p, g in zip(params, groups or [{}, {}], strict=True)])
    if scheduled:
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, warm_up_and_decay)
    kept = []
    for t in range(STEPS):
        for p in params:
            p.grad = gradient(p, generator)
            p.data.mul_(1 - decay)
        opt.step()
        if scheduled:
            schedule.step()
        if t % 10 == 9:
            kept.append(torch.cat([p.detach().flatten() for p in params]))
    return torch.stack(kept)


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


PAIRS = {
    "sgd": (presets.sgd, torch.optim.SGD, {"lr": 0.05}, {}),
    "sgd-decay": (presets.sgd, torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.3}, {}),
    "momentum": (presets.sgd, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}, {}),
    "rmsprop": (presets.rmsprop, torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.95}, {"eps": 0.0}),
    "adam": (presets.adam, torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.97)}, {"eps": 0.0}),
    "adamw": (
        presets.adamw,
        torch.optim.AdamW,
        {"lr": 0.01, "betas": (0.8, 0.97), "weight_decay": 0.4},
        {"eps": 0.0},
    ),
    "defaults-adam": (presets.adam, torch.optim.Adam, {}, {"eps": 0.0}),
    "defaults-adamw": (presets.adamw, torch.optim.AdamW, {}, {"eps": 0.0}),
    "defaults-rmsprop": (presets.rmsprop, torch.optim.RMSprop, {}, {"eps": 0.0}),
    "defaults-sgd": (presets.sgd, torch.optim.SGD, {}, {}),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("schedule", [None, "gain", "model"])
def test_it_is_torchs_optimizer_with_and_without_a_schedule(name, schedule):
    """Schedules on the gain and in the dynamics are the same for variances at Taylor's rest."""
    preset, cls, shared, theirs = PAIRS[name]
    options = {"schedule": schedule} if schedule else {}
    scheduled = schedule is not None
    ours = run(lambda ps: FilterOptimizer(ps, preset, **shared, **options), scheduled)
    assert_equal(ours, run(lambda ps: cls(ps, **shared, **theirs), scheduled))


@pytest.mark.parametrize("name", ["sgd-decay", "momentum", "rmsprop", "adam", "adamw"])
def test_groups_have_their_own_hyperparameters(name):
    preset, cls, shared, theirs = PAIRS[name]
    different = {"momentum": 0.5} if name == "momentum" else {}
    if "decay" in name or name == "adamw":
        different = {"weight_decay": 0.7}
    groups = [{"lr": 0.03}, {"lr": 0.004, **different}]
    ours = run(lambda ps: FilterOptimizer(ps, preset, **shared), groups=groups)
    assert_equal(ours, run(lambda ps: cls(ps, **shared, **theirs), groups=groups))


rates = st.floats(1e-5, 0.1)
betas = st.tuples(st.floats(0.0, 0.99), st.floats(0.5, 0.9999))


@settings(max_examples=5, deadline=None)
@given(lr=rates, momentum=st.floats(0.0, 0.95))
def test_any_momentum_is_torchs(lr, momentum):
    ours = run(lambda ps: FilterOptimizer(ps, presets.sgd, lr=lr, momentum=momentum))
    assert_equal(ours, run(lambda ps: torch.optim.SGD(ps, lr=lr, momentum=momentum)))


@settings(max_examples=5, deadline=None)
@given(lr=rates, alpha=st.floats(0.0, 0.999))
def test_any_rmsprop_is_torchs(lr, alpha):
    ours = run(lambda ps: FilterOptimizer(ps, presets.rmsprop, lr=lr, alpha=alpha))
    assert_equal(ours, run(lambda ps: torch.optim.RMSprop(ps, lr=lr, alpha=alpha, eps=0.0)))


@settings(max_examples=5, deadline=None)
@given(lr=rates, betas=betas, weight_decay=st.floats(0.0, 1.0))
def test_any_adamw_is_torchs(lr, betas, weight_decay):
    options = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    ours = run(lambda ps: FilterOptimizer(ps, presets.adamw, **options))
    assert_equal(ours, run(lambda ps: torch.optim.AdamW(ps, **options, eps=0.0)))


def test_decay_with_momentum_is_decoupled_as_adamws():
    """Torch's SGD puts it into the momentum buffer instead, and differs."""
    options = {"lr": 0.02, "momentum": 0.9}
    ours = run(lambda ps: FilterOptimizer(ps, presets.sgd, **options, weight_decay=0.5))
    apart = run(lambda ps: torch.optim.SGD(ps, **options), decay=0.02 * 0.5)
    coupled = run(lambda ps: torch.optim.SGD(ps, **options, weight_decay=0.5))
    assert_equal(ours, apart)
    assert (ours - coupled).abs().max() > 1e-2


def test_sgd_keeps_no_state_but_its_momentum():
    for momentum, kept in ((0.0, {"step"}), (0.9, {"step", "exp_avg"})):
        p = torch.nn.Parameter(torch.ones(3))
        opt = FilterOptimizer([p], presets.sgd, momentum=momentum)
        p.grad = torch.ones(3)
        opt.step()
        assert set(opt.state[p]) == kept
