"""Which minibatches count: those whose gradients the step takes, as they were, and no others."""

from __future__ import annotations

import gc
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

import filteropt


@pytest.fixture
def problem():
    """A linear model, its inputs and targets, and an extended Kalman filter of it."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    opt = filteropt.ExtendedKalmanFilter(model.parameters(), initial_variance=0.5, model=model)
    return model, x, y, opt


def loss_of(model, x, y):
    return 0.5 * (model(x) - y).square().sum()


def expected_variance(x):
    """The weight's posterior variances after one minibatch: the two outputs are independent."""
    block = torch.linalg.inv(2 * torch.eye(3, dtype=torch.float64) + x.T @ x)
    return block.diagonal().repeat(2, 1)


def after_one_step(problem, prepare):
    model, x, y, opt = problem
    prepare(model, x, y, opt)
    loss_of(model, x, y).backward()
    opt.step()
    torch.testing.assert_close(
        opt.posterior_variance(model.weight), expected_variance(x), rtol=1e-10, atol=0
    )


def test_gradients_taken_away_by_the_model_do_not_count(problem):
    def prepare(model, x, y, opt):
        loss_of(model, 100 * x, y).backward()
        model.zero_grad()

    after_one_step(problem, prepare)


def test_training_by_another_optimizer_before_does_not_count(problem):
    def prepare(model, x, y, opt):
        other = torch.optim.AdamW(model.parameters())
        for _ in range(5):
            other.zero_grad()
            loss_of(model, 10 * x, y).backward()
            other.step()
        other.zero_grad()
        kept = opt._gathering.recorder.minibatches
        assert len(kept) == 1  # no more is held, however long that lasts

    after_one_step(problem, prepare)


def test_gradients_of_inputs_do_not_count(problem):
    """An adversary's inner loop differentiates the same loss by its input."""

    def prepare(model, x, y, opt):
        moved = x.clone().requires_grad_()
        for _ in range(3):
            torch.autograd.grad(loss_of(model, moved, y), moved)

    after_one_step(problem, prepare)


def test_a_graph_that_was_differentiated_before_still_counts_once(problem):
    model, x, y, opt = problem
    loss = loss_of(model, x, y)
    torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    opt.zero_grad()
    loss.backward()
    opt.step()
    found = opt.posterior_variance(model.weight)
    torch.testing.assert_close(found, expected_variance(x), rtol=1e-10, atol=0)


@pytest.mark.parametrize("transform", ["per example", "jacobian"])
def test_the_users_own_transforms_do_not_count(problem, transform):
    def prepare(model, x, y, opt):
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def loss(weights, one):
            return functional_call(model, weights, one.unsqueeze(0)).square().sum()

        if transform == "jacobian":
            jacrev(loss)(weights, x[0])
        else:
            vmap(grad(loss), in_dims=(None, 0))(weights, x)

    after_one_step(problem, prepare)


def test_after_a_skipped_step_training_goes_on():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    opt = filteropt.ExtendedKalmanFilter(model.parameters(), on_nonfinite="skip", model=model)
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    for scale, moves in ((1.0, True), (torch.nan, False), (1.0, True)):
        model.zero_grad()
        before = model.weight.detach().clone()
        loss_of(model, scale * x, y).backward()
        opt.step()
        assert (not torch.equal(model.weight, before)) == moves


def test_inputs_changed_in_place_are_refused(problem):
    model, x, y, opt = problem
    loss_of(model, x, y).backward()
    x.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        opt.step()


def test_the_mode_of_the_forward_pass_decides():
    """Dropout that was active then is refused, though the model is in eval mode at the step."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1))
    opt = filteropt.ExtendedKalmanFilter(model.parameters(), model=model)
    model(torch.randn(4, 3)).square().sum().backward()
    model.eval()
    with pytest.raises(ValueError, match=r"layer '1' \(Dropout\)"):
        opt.step()
    idle = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0))
    opt = filteropt.ExtendedKalmanFilter(idle.parameters(), model=idle)
    idle(torch.randn(4, 3)).square().sum().backward()
    opt.step()


def test_what_vmap_cannot_run_is_explained():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else -super().forward(x)

    model = Branching(2, 1)
    opt = filteropt.ExtendedKalmanFilter(model.parameters(), model=model)
    model(torch.ones(3, 2)).sum().backward()
    with pytest.raises(RuntimeError, match="Jacobians of Branching failed"):
        opt.step()


def test_compiled_models_train(problem):
    model, x, y, opt = problem
    model.compile(backend="eager")
    after_one_step((model, x, y, opt), lambda *_: None)


def test_foreign_parameters_are_refused_at_once():
    model = nn.Linear(2, 1)
    before_flat = list(model.parameters())
    flat = filteropt.Flat(model)
    with pytest.raises(ValueError, match="wrap a model in Flat before"):
        filteropt.ExtendedKalmanFilter(before_flat, model=flat)
    with pytest.raises(TypeError, match="model=3 must be a"):
        filteropt.ExtendedKalmanFilter(flat.parameters(), model=3)


def test_too_large_tensors_are_refused_at_once():
    model = nn.Linear(200, 100)
    with pytest.raises(ValueError, match="20000 weights"):
        filteropt.ExtendedKalmanFilter(model.parameters(), model=model)


def test_no_hook_outlives_its_optimizer():
    model = nn.Linear(2, 1)
    opt = filteropt.ExtendedKalmanFilter(model.parameters(), model=model)
    assert len(model._forward_hooks) == 1
    del opt
    gc.collect()
    assert not model._forward_hooks
    assert b"filteropt" not in pickle.dumps(model)
