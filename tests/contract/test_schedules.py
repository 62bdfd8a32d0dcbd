"""Learning-rate schedulers: a scheduler is no more than a writer of `lr`."""

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from .problems import assert_same, clones, drive, moved, network, parameters, photograph, train

STEPS = 12


def one_cycle(opt):
    """Cycle the momentum too, where the optimizer has a key that torch knows."""
    cycled = "betas" in opt.defaults
    return lr_scheduler.OneCycleLR(opt, 0.01, total_steps=STEPS + 1, cycle_momentum=cycled)


SCHEDULES = {
    "warm_up_from_zero": lambda opt: lr_scheduler.LambdaLR(opt, lambda t: min(1.0, t / 4)),
    "cosine_to_zero": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=STEPS - 3),
    "warm_restarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=4),
    "one_cycle": one_cycle,
    "exponential": lambda opt: lr_scheduler.ExponentialLR(opt, 0.5),
    "chained": lambda opt: lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.LinearLR(opt, 0.25, total_iters=4),
            lr_scheduler.StepLR(opt, 3),
        ]
    ),
    "sequential": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.LinearLR(opt, 1e-8, total_iters=4), lr_scheduler.CosineAnnealingLR(opt, 6)],
        milestones=[4],
    ),
    "plateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.1),
    "swa": lambda opt: swa_utils.SWALR(opt, swa_lr=5e-3, anneal_epochs=5),
}


def advance(scheduler):
    """Step a scheduler; the plateau is told of a loss that never falls."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0)
    else:
        scheduler.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_scheduler_only_writes_hyperparameters(subject, schedule):
    """A run by hand with the same numbers in the groups is the same run, bit by bit."""
    model, by_hand = network(), network()
    opt, manual = subject(model.parameters()), subject(by_hand.parameters())
    scheduler = SCHEDULES[schedule](opt)
    rates = set()
    for t in range(STEPS):
        numbers = {k: v for k, v in opt.param_groups[0].items() if k not in {"params", "base_lr"}}
        manual.param_groups[0].update(numbers)
        rates.add(numbers["lr"])
        train(model, opt, 1, start=t)
        train(by_hand, manual, 1, start=t)
        assert_same(photograph(opt), photograph(manual))
        advance(scheduler)
    assert len(rates) > 2
    assert all(p.isfinite().all() for p in model.parameters())


def test_warm_up_from_zero_does_not_move_in_the_first_step(subject):
    """LambdaLR writes a zero before the first step."""
    params = parameters()
    before = clones(params)
    opt = subject(params)
    scheduler = SCHEDULES["warm_up_from_zero"](opt)
    drive(opt, 1)
    assert_same(params, before)
    scheduler.step()
    drive(opt, 1 + subject.whole, start=1)
    assert moved(params, before)


def test_cosine_ends_at_rest(subject):
    """At the bottom of the cosine no weight moves."""
    params = parameters()
    opt = subject(params)
    scheduler = lr_scheduler.CosineAnnealingLR(opt, T_max=4)
    for t in range(4):
        drive(opt, 1, start=t)
        scheduler.step()
    assert not opt.param_groups[0]["lr"]
    before = clones(params)
    drive(opt, 1, start=4)
    assert_same(params, before)


def test_scheduled_step_is_smaller(subject):
    """The displacement follows the rate: a tenth of the rate moves about a tenth as far."""
    params, same = parameters(), parameters()
    full, tenth = (subject(ps, **subject.decay(0.0)) for ps in (params, same))
    drive(full, 3)
    drive(tenth, 3)
    start = clones(params)
    tenth.param_groups[0]["lr"] *= 0.1
    drive(full, 1, start=3)
    drive(tenth, 1, start=3)
    for p, q, origin in zip(params, same, start, strict=True):
        ratio = (q - origin).norm() / (p - origin).norm()
        assert 0.05 < ratio < 0.2


def test_groups_are_scheduled_apart(subject):
    """LambdaLR takes one function per group."""
    first, second = parameters()
    before = clones([second])
    opt = subject([{"params": [first]}, {"params": [second]}])
    scheduler = lr_scheduler.LambdaLR(opt, [lambda t: 1.0, lambda t: 0.0])
    for t in range(3):
        drive(opt, 1, start=t)
        scheduler.step()
    assert_same([second], before)
    assert first.isfinite().all()


def test_averaged_model_averages_the_weights(subject):
    """Stochastic weight averaging sees ordinary parameters."""
    model = network()
    opt = subject(model.parameters(), lr=0.01)
    averaged = swa_utils.AveragedModel(model)
    seen = []
    for t in range(4):
        train(model, opt, 1, start=t)
        averaged.update_parameters(model)
        seen.append(clones(model.parameters()))
    for p, *history in zip(averaged.module.parameters(), *seen, strict=True):
        torch.testing.assert_close(p.detach(), torch.stack([*history]).mean(0).detach())
