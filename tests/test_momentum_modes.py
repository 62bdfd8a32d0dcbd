"""Which mean the momentum filter's parameters hold, what is saved of it, and what it costs."""

from __future__ import annotations

import copy
import io

import pytest
import torch

import filteropt

PRESETS = {
    "recursive": {},
    "centred": {"centred_beta": 0.9},
    "stationary": {"stationary": True},
    "stationary-centred": {"stationary": True, "centred_beta": 0.9},
    "posterior": {"linearize_at": "posterior"},
}
NUMBERS = {"recursive": 4, "centred": 5, "stationary": 2, "stationary-centred": 3, "posterior": 4}
STRICT = [name for name in PRESETS if name != "posterior"]
SHAPES = ((3, 4), (5,), ())


def built(name, params=None, dtype=torch.float32, **changes):
    """Parameters and their optimizer."""
    if params is None:
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    params = [torch.nn.Parameter(p.detach().clone()) for p in params]
    options = {"lr": 0.02, "lr_sgd": 0.3, "lr_w": 0.01, **PRESETS[name], **changes}
    return params, filteropt.MomentumFilter(params, **options)


def drive(params, opt, steps, start=0):
    for t in range(start, start + steps):
        generator = torch.Generator().manual_seed(100 + t)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        opt.step()


def copies(params):
    return [p.detach().clone() for p in params]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=0)


def saved(opt):
    """A state dict that went through a file."""
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", STRICT)
def test_evaluating_now_and_then_changes_nothing(name, dtype):
    params, opt = built(name, dtype=dtype, lr=0.2)
    twins, twin = built(name, dtype=dtype, lr=0.2)
    for t in range(12):
        drive(params, opt, 1, t)
        drive(twins, twin, 1, t)
        before = copies(params)
        assert opt.eval() is opt
        means = copies(params)
        assert not torch.equal(params[0], before[0])
        opt.eval()
        same(params, means)
        assert opt.train() is opt
        same(params, before)
        opt.train()
        same(params, before)
        same(params, twins)
        opt.eval()  # and again, from the parameters brought back
        same(params, means)
        opt.train()


@pytest.mark.parametrize("name", STRICT)
def test_step_refuses_parameters_that_hold_the_posterior_mean(name):
    params, opt = built(name)
    drive(params, opt, 3)
    opt.eval()
    held = copies(params)
    with pytest.raises(RuntimeError, match="train"):
        drive(params, opt, 1)
    same(params, held)


def test_parameters_of_the_other_order_always_hold_the_posterior_mean():
    params, opt = built("posterior")
    drive(params, opt, 5)
    held = copies(params)
    same(opt.eval().param_groups[0]["params"], held)
    drive(params, opt, 1, 5)  # no train() is due
    assert not torch.equal(params[0], held[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_checkpoint_of_either_mode_goes_on_bit_for_bit(name, evaluating, dtype):
    params, opt = built(name, dtype=dtype)
    drive(params, opt, 7)
    if evaluating:
        opt.eval()
    checkpoint, weights = saved(opt), copies(params)
    others, other = built(name, weights)
    other.load_state_dict(checkpoint)
    same(others, weights)
    for o in (opt, other):
        o.eval()
    same(others, params)
    for ps, o in ((params, opt), (others, other)):
        drive(ps, o.train(), 5, 7)
    same(others, params)
    for p, q in zip(params, others, strict=True):
        assert opt.state[p].keys() == other.state[q].keys()
        same(other.state[q].values(), opt.state[p].values())


@pytest.mark.parametrize("evaluating", [False, True])
def test_deep_copy_of_either_mode_goes_on_bit_for_bit(evaluating):
    params, opt = built("recursive")
    drive(params, opt, 7)
    opt.train(not evaluating)
    others, other = copy.deepcopy((params, opt))
    for ps, o in ((params, opt), (others, other)):
        drive(ps, o.train(), 5, 7)
    same(others, params)


def test_checkpoint_goes_on_without_the_weights_it_was_saved_with():
    """The posterior mean alone (as deployed) and the state suffice to rebuild the prediction."""
    params, opt = built("recursive", dtype=torch.float64)
    drive(params, opt, 7)
    prediction = copies(params)
    checkpoint, means = saved(opt.eval()), copies(params)
    for state in checkpoint["state"].values():
        del state["prediction"]
    others, other = built("recursive", means)
    other.load_state_dict(checkpoint)
    other.train()
    for found, expected in zip(others, prediction, strict=True):
        torch.testing.assert_close(found.detach(), expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", STRICT)
def test_weights_changed_by_hand_survive(name):
    """Some are set while evaluating: those predict from the new mean, the others are untouched."""
    params, opt = built(name, dtype=torch.float64)
    drive(params, opt, 6)
    before = copies(params)
    opt.eval()
    means = copies(params)
    for p in params[:2]:
        p.data.view(-1)[0] += 0.25
    opt.train()
    same([p.flatten()[1:] for p in params[:2]], [p.flatten()[1:] for p in before[:2]])
    same(params[2:], before[2:])
    shrink = 1 - (0.02**2 + 0.01**2) / (2 * 0.3)
    for p, old in zip(params[:2], before, strict=False):
        moved = (p.flatten()[0] - old.flatten()[0]).item()
        assert moved == pytest.approx(0.25 * shrink, rel=1e-12)
    opt.eval()
    for p, mean in zip(params[:2], means, strict=False):
        assert p.flatten()[0].item() == pytest.approx(mean.flatten()[0].item() + 0.25, rel=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_numbers_per_weight(name):
    params, opt = built(name)
    drive(params, opt, 3)
    big = params[0]
    kept = [x for x in opt.state[big].values() if x.shape == big.shape]
    assert len(kept) == NUMBERS[name]
    assert {x.dtype for x in kept} == {torch.float32}
    others = [x.numel() for x in opt.state[big].values() if x.shape != big.shape]
    assert all(n == 1 for n in others)  # step, decay, drift, evaluating
    assert len(others) <= 4


def test_evaluating_before_the_first_step_does_nothing():
    params, opt = built("recursive")
    start = copies(params)
    opt.eval()
    same(params, start)
    drive(params, opt, 1)
    assert not torch.equal(params[0], start[0])


def test_beta2_is_the_stationary_forms_own():
    """It changes that one's trajectory, and is refused where there is no average to decay."""
    weights = []
    for beta2 in (None, 0.9):
        p = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        opt = filteropt.MomentumFilter([p], stationary=True, beta2=beta2)
        for gradient in (1.0, 3.0, -2.0):
            p.grad = torch.full_like(p, gradient)
            opt.step()
        weights.append(p.detach().clone())
    assert not torch.allclose(*weights, rtol=1e-6)
    with pytest.raises(ValueError, match=r"beta2=0.9 is the decay .* pass stationary=True"):
        filteropt.MomentumFilter([p], beta2=0.9)
