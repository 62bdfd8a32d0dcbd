"""Dtypes: beliefs in float32 at least, several dtypes at once, and torch's global defaults."""

import copy

import pytest
import torch
from torch import nn

from .problems import (
    assert_close,
    assert_same,
    clones,
    drive,
    give_gradients,
    noise,
    parameters,
    photograph,
    weights,
)

HALF = [torch.bfloat16, torch.float16]
DTYPES = [*HALF, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_keep_their_dtype(subject, dtype):
    """A step casts nothing that the user owns."""
    params = parameters(dtype=dtype)
    drive(subject(params), 2)
    assert all(p.dtype == p.grad.dtype == dtype for p in params)


@pytest.mark.parametrize("dtype", DTYPES)
def test_belief_has_at_least_float32(library_subject, dtype):
    """A variance in bfloat16 would stop changing: its steps are smaller than its rounding."""
    opt = library_subject(parameters(dtype=dtype))
    drive(opt, 2)
    expected = torch.float32 if dtype in HALF else dtype
    for p in weights(opt):
        tensors = [v for v in opt.state[p].values() if torch.is_tensor(v) and v.ndim]
        assert tensors
        assert {v.dtype for v in tensors} == {expected}


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_belief_is_that_of_float32_weights(library_subject, dtype):
    """With the same gradients it differs only by what the weights' rounding feeds back."""
    half = parameters(dtype=dtype)
    full = [nn.Parameter(p.detach().float()) for p in half]
    one, two = library_subject(half), library_subject(full)
    for t in range(4):
        give_gradients(half, t)
        for p, q in zip(half, full, strict=True):
            q.grad = p.grad.float()
        one.step()
        two.step()
    for a, b in zip(photograph(one), photograph(two), strict=True):
        assert_same({**a, "weight": None}, {**b, "weight": None})
        torch.testing.assert_close(a["weight"].float(), b["weight"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_resume_is_bitwise(library_subject, dtype):
    """Torch casts loaded state to the weights' dtype; the belief must not go through that."""
    params = parameters(dtype=dtype)
    opt = library_subject(params)
    drive(opt, 3)
    again = clones(params)
    resumed = library_subject(again)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert_same(photograph(resumed), photograph(opt))
    drive(opt, 3, start=3)
    drive(resumed, 3, start=3)
    assert_same(photograph(resumed), photograph(opt))


@pytest.mark.parametrize("grouped", [True, False])
def test_dtypes_may_be_mixed(subject, grouped):
    """In one group or several, each parameter trains as if alone."""
    mixed = [nn.Parameter(noise(3, 4, seed=i, dtype=d)) for i, d in enumerate(DTYPES[2:] * 2)]
    alone = clones(mixed)
    opt = subject([{"params": [p]} for p in mixed] if grouped else mixed)
    singles = [subject([p]) for p in alone]
    for t in range(3):
        give_gradients(mixed, t)
        give_gradients(alone, t)
        for o in (opt, *singles):
            o.step()
    assert_close(mixed, alone)


def test_half_and_double_may_be_mixed(library_subject):
    """The belief of each has its own dtype."""
    mixed = [nn.Parameter(noise(3, 4, seed=i, dtype=d)) for i, d in enumerate(DTYPES)]
    alone = clones(mixed)
    opt, singles = library_subject(mixed), [library_subject([p]) for p in alone]
    for t in range(3):
        give_gradients(mixed, t)
        give_gradients(alone, t)
        for o in (opt, *singles):
            o.step()
    assert_same(photograph(opt), [entry for o in singles for entry in photograph(o)])


@pytest.mark.parametrize("default", [torch.float64, torch.float32, torch.bfloat16])
def test_default_dtype_changes_nothing(library_subject, default):
    """`torch.set_default_dtype` speaks of new tensors of the user, not of these."""
    params = parameters(dtype=torch.float32)
    plain = library_subject(clones(params))
    drive(plain, 3)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        opt = library_subject(params)
        drive(opt, 3)
    finally:
        torch.set_default_dtype(before)
    assert_same(photograph(opt), photograph(plain))


def test_default_device_changes_nothing(library_subject):
    """Inside `with torch.device("meta")` state still lives beside its parameter."""
    params = parameters()
    plain = library_subject(clones(params))
    drive(plain, 3)
    opt = library_subject(params)
    for t in range(3):
        give_gradients(params, t)
        with torch.device("meta"):
            opt.step()
    assert_same(photograph(opt), photograph(plain))


def test_step_follows_a_model_cast_before_the_first_gradient(library_subject):
    """Nothing about dtypes is decided before the first step."""
    model = nn.Linear(3, 2)
    opt = library_subject(model.parameters())
    model.double()
    drive(opt, 2)
    for p in model.parameters():
        assert {v.dtype for v in opt.state[p].values() if v.ndim} == {torch.float64}
