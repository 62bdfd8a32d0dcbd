"""A learning rate of zero is legal, and then nothing changes."""

import pytest
import torch

from .problems import (
    assert_close,
    assert_same,
    clones,
    drive,
    give_gradients,
    moved,
    parameters,
    photograph,
    weights,
)


def set_lr(opt, lr):
    """Write a learning rate into every group, as a scheduler does."""
    for group in opt.param_groups:
        group["lr"] = lr


def test_zero_lr_moves_no_weight_in_the_first_step(subject):
    """A warm-up from zero starts like this."""
    params = parameters()
    before = clones(params)
    drive(subject(params, lr=0.0), 1)
    assert_same(params, before)


def test_zero_lr_moves_no_weight_mid_run(subject):
    """A cosine to zero ends like this."""
    params = parameters()
    opt = subject(params)
    drive(opt, 3)
    before = clones(params)
    set_lr(opt, 0.0)
    drive(opt, 2, start=3)
    assert_same(params, before)


def test_zero_lr_freezes_the_belief_from_the_first_step(library_subject):
    """Steps at zero create the state and leave no other trace: the later run is as if fresh."""
    params = parameters()
    opt, fresh = library_subject(params), library_subject(clones(params))
    lr = opt.param_groups[0]["lr"]
    set_lr(opt, 0.0)
    drive(opt, 1)
    created = photograph(opt)
    drive(opt, 2, start=1)
    assert_same(photograph(opt), created)
    set_lr(opt, lr)
    drive(opt, 3)
    drive(fresh, 3)
    assert_same(photograph(opt), photograph(fresh))


def test_zero_lr_freezes_the_belief_mid_run(library_subject):
    """Steps at zero between others leave no trace."""
    params = parameters()
    opt, plain = library_subject(params), library_subject(clones(params))
    drive(opt, 3)
    lr, before = opt.param_groups[0]["lr"], photograph(opt)
    set_lr(opt, 0.0)
    drive(opt, 2, start=50)
    assert_same(photograph(opt), before)
    set_lr(opt, lr)
    drive(opt, 2, start=3)
    drive(plain, 5)
    assert_same(photograph(opt), photograph(plain))


def test_zero_lr_as_tensor_freezes_too(library_subject):
    """Distributed checkpointing writes a zero tensor over a tensor learning rate."""
    opt = library_subject(parameters())
    drive(opt, 2)
    before = photograph(opt)
    set_lr(opt, torch.tensor(0.0))
    drive(opt, 2, start=2)
    assert_same(photograph(opt), before)


def test_zero_lr_group_stays_beside_a_live_one(subject):
    """One group is frozen by its rate; the other trains as if it was alone."""
    frozen, live = parameters()
    before, alone = clones([frozen, live])
    give_gradients([frozen], 0)
    opt = subject([{"params": [frozen], "lr": 0.0}, {"params": [live]}])
    single = subject([alone])
    for t in range(3):
        give_gradients([live], t)
        give_gradients([alone], t)
        opt.step()
        single.step()
    assert_same(frozen, before)
    assert_close([live], [alone])


def test_zero_lr_group_keeps_its_belief_beside_a_live_one(library_subject):
    """The frozen group's state is created once and then stays."""
    frozen, live = parameters()
    opt = library_subject([{"params": [frozen], "lr": 0.0}, {"params": [live]}])
    drive(opt, 1)
    before = photograph(opt)[0]
    drive(opt, 3, start=1)
    assert_same(photograph(opt)[0], before)


def test_group_built_with_zero_lr_can_be_thawed(subject):
    """Gradual unfreezing builds groups at zero and raises the rate later."""
    params = parameters()
    before = clones(params)
    opt = subject(params, lr=0.0)
    drive(opt, 2)
    set_lr(opt, 1e-3)
    drive(opt, 3, start=2)
    assert moved(weights(opt), before)


@pytest.mark.parametrize("value", [1e-150, 1e-30])
def test_tiny_lr_stays_finite(subject, value):
    """The first step of a long warm-up underflows nothing into NaN, nor do steps after it."""
    opt = subject(parameters())
    lr = opt.param_groups[0]["lr"]
    set_lr(opt, value)
    drive(opt, 3)
    set_lr(opt, lr)
    drive(opt, 3)
    assert_finite(opt)


def test_tiny_lr_at_construction_stays_finite(subject):
    """The square of the rate underflows float32, not float64."""
    opt = subject(parameters(dtype=torch.float32), lr=1e-30)
    drive(opt, 3)
    assert_finite(opt)


def assert_finite(opt):
    """Assert that no weight and no state is NaN or infinite."""
    for tensors in photograph(opt):
        assert all(x.isfinite().all() for x in tensors.values())
