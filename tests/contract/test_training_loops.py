"""The manners of training that a user expects to give what plain training gives."""

import pytest
import torch
from torch import nn

from .problems import (
    DOUBLE,
    assert_close,
    assert_same,
    assert_same_weights,
    batch,
    clones,
    drive,
    give_gradients,
    loss_of,
    network,
    parameters,
    photograph,
    train,
    trained,
    weights,
)


def test_training_lowers_the_loss(subject):
    """The problem that everything is compared on is one that trains."""
    model = network()
    opt = subject(model.parameters(), lr=0.05)
    x, y = batch(0)
    losses = []
    for _ in range(60):
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("caller", [torch.no_grad, torch.enable_grad])
def test_closure_runs_with_gradients_and_its_loss_is_returned(subject, caller):
    """Whatever mode the caller is in, which the step leaves as it was."""
    model = network()
    opt = subject(model.parameters())
    losses = []

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        losses.append(loss_of(model, len(losses)))
        losses[-1].backward()
        return losses[-1]

    with caller():
        mode = torch.is_grad_enabled()
        for _ in range(3):
            assert opt.step(closure) is losses[-1]
            assert torch.is_grad_enabled() == mode
    assert len(losses) == 3
    assert_same_weights(model, trained(subject, 3))


def test_step_without_closure_returns_nothing(subject):
    """As trainers assume when they log what they get."""
    params = parameters()
    opt = subject(params)
    give_gradients(params, 0)
    assert opt.step() is None


def test_exception_in_closure_changes_nothing(subject):
    """A failed forward pass leaves the optimizer usable."""
    params = parameters()
    opt, twin = subject(params), subject(clones(params))
    drive(opt, 2)
    drive(twin, 2)

    def closure():
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        opt.step(closure)
    drive(opt, 2, start=2)
    drive(twin, 2, start=2)
    assert_same(photograph(opt), photograph(twin))


def test_accumulated_micro_batches_equal_the_full_batch(subject):
    """Four quarters, each loss divided by four."""
    model = network()
    opt = subject(model.parameters())
    for t in range(3):
        opt.zero_grad()
        for x, y in zip(*(part.chunk(4) for part in batch(t)), strict=True):
            (nn.functional.mse_loss(model(x), y) / 4).backward()
        opt.step()
    assert_close(model.parameters(), trained(subject, 3).parameters(), rounded=subject.whole)


def test_clipping_takes_effect(subject):
    """What is in `.grad` at the step is what is used."""
    clipped, scaled, plain = network(), network(), network()
    opts = [subject(m.parameters()) for m in (clipped, scaled, plain)]
    for t in range(4):
        for model, opt in zip((clipped, scaled, plain), opts, strict=True):
            opt.zero_grad()
            (10 * (t + 1) * loss_of(model, t)).backward()
        nn.utils.clip_grad_norm_(clipped.parameters(), 0.5)
        norm = torch.stack([p.grad.norm() for p in scaled.parameters()]).norm()
        assert norm > 0.5
        for p in scaled.parameters():
            p.grad = p.grad * (0.5 / (norm + 1e-6))
        for opt in opts:
            opt.step()
    assert_close(clipped.parameters(), scaled.parameters())
    assert not torch.allclose(clipped[0].weight, plain[0].weight, rtol=1e-6)


def test_grad_scaler_gives_the_plain_result(subject):
    """Scaling by a power of two and back is exact."""
    model = network(torch.float32)
    opt = subject(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(4):
        opt.zero_grad()
        scaler.scale(loss_of(model, t)).backward()
        scaler.unscale_(opt) if t % 2 else None
        scaler.step(opt)
        scaler.update()
    assert_same_weights(model, trained(subject, 4, torch.float32))


def test_grad_scaler_skips_infinite_gradients_itself(subject):
    """Its own skip comes first: no error, nothing changed, a smaller scale."""
    model = network(torch.float32)
    opt = subject(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t, factor in enumerate((1.0, float("inf"), 1.0)):
        before = photograph(opt)
        opt.zero_grad()
        scaler.scale(loss_of(model, t) * factor).backward()
        scaler.step(opt)
        scaler.update()
        if factor > 1:
            assert_same(photograph(opt), before)
    assert scaler.get_scale() < 1024.0


def test_autocast_trains(subject):
    """Weights and gradients stay in float32 under bfloat16 autocast."""
    model = network(torch.float32)
    before = clones(model.parameters())
    opt = subject(model.parameters())
    for t in range(3):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, t)
        loss.backward()
        opt.step()
    for p, q in zip(model.parameters(), before, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, q)


def test_zero_grad_to_none_stops_the_next_step(subject):
    """Without a gradient nothing ages."""
    opt = subject(parameters())
    drive(opt, 2)
    before = photograph(opt)
    opt.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in weights(opt))
    opt.step()
    assert_same(photograph(opt), before)


def test_zero_grad_to_zeros_keeps_the_tensors(subject):
    """Training is the same, in the same gradient buffers."""
    model = network()
    opt = subject(model.parameters())
    train(model, opt, 1)
    buffers = [p.grad for p in model.parameters()]
    for t in range(1, 3):
        opt.zero_grad(set_to_none=False)
        assert not any(g.any() for g in buffers)
        loss_of(model, t).backward()
        opt.step()
    assert all(p.grad is g for p, g in zip(model.parameters(), buffers, strict=True))
    assert_same_weights(model, trained(subject, 3))


def test_zero_gradients_stay_finite(subject):
    """From the very first step on: masked and dead units have them always."""
    opt = subject(parameters(), **subject.decay(0.0))
    before = clones(weights(opt))
    for _ in range(4):
        for p in weights(opt):
            p.grad = torch.zeros_like(p)
        opt.step()
    assert_same(weights(opt), before)
    drive(opt, 2)
    assert all(x.isfinite().all() for entry in photograph(opt) for x in entry.values())


def test_maximize_is_minimising_the_negated_loss(subject):
    """Bit by bit."""
    up, down = network(), network()
    maximizer = subject(up.parameters(), maximize=True)
    minimizer = subject(down.parameters())
    for t in range(4):
        for model, opt, sign in ((up, maximizer, -1.0), (down, minimizer, 1.0)):
            opt.zero_grad()
            (sign * loss_of(model, t)).backward()
            opt.step()
    assert_same_weights(up, down)


def test_maximize_is_per_group(subject):
    """An adversary and a player may share an optimizer."""
    a, b = parameters((3,), (3,))
    (twin,) = clones([a])
    opt = subject([{"params": [a], "maximize": True}, {"params": [b]}])
    single = subject([twin])
    for t in range(3):
        give_gradients([a, b], t)
        twin.grad = -a.grad
        opt.step()
        single.step()
    assert_same([a], [twin])


def test_optimizer_in_backward_equals_plain_training(subject):
    """One optimizer per parameter, stepped as soon as its gradient is there."""
    model = network()
    optimizers = {p: subject([p]) for p in model.parameters()}

    def hook(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    for t in range(3):
        loss_of(model, t).backward()
        assert all(p.grad is None for p in model.parameters())
    assert_close(model.parameters(), trained(subject, 3).parameters())


def test_gradients_with_a_graph_are_used_as_values(subject):
    """After `backward(create_graph=True)` no graph enters the weights or the state."""
    params = parameters()
    opt = subject(params)
    for t in range(2):
        give_gradients(params, t)
        for p in params:
            p.grad = p.grad * torch.ones_like(p, requires_grad=True)
        opt.step()
    assert all(p.is_leaf and p.grad.requires_grad for p in params)
    assert not any(x.requires_grad for entry in photograph(opt) for x in entry.values())
    twin = parameters()
    drive(subject(twin), 2)
    assert_same(params, twin)


def test_order_of_parameters_does_not_matter(subject):
    """Each parameter's rule is its own."""
    forward, backward = network(), network()
    train(forward, subject(forward.parameters()), 3)
    train(backward, subject(reversed([*backward.parameters()])), 3)
    assert_close(forward.parameters(), backward.parameters())


def test_no_random_numbers_are_drawn(subject):
    """A point-estimate optimizer leaves the global generator alone."""
    params = parameters(dtype=DOUBLE)
    opt = subject(params)
    before = torch.get_rng_state()
    drive(opt, 2)
    assert torch.equal(torch.get_rng_state(), before)
