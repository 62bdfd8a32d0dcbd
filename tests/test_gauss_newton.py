"""Per-example Jacobians: which minibatches count, in what pieces, and clear refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import filteropt
from filteropt import FilterOptimizer
from filteropt.approximations import Averaged, Diagonal, GaussNewtonDiagonal
from filteropt.engine import Filter
from filteropt.models import Static


def mlp(seed=0, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def data(seed=0, examples=8):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, 3, (examples,), generator=generator)


def logistic(model, x, y):
    return cross_entropy(model(x), y, reduction="sum")


def ekf(model, params=None, **options):
    options = {"loss": "cross_entropy", "initial_variance": 0.1, "drift": 0.01, **options}
    params = model.named_parameters() if params is None else params
    return filteropt.ExtendedKalmanFilter(params, model=model, **options)


def fisher(model, x):
    """The Gauss–Newton matrix of every tensor by one reverse pass per output, dense."""
    model = copy.deepcopy(model)  # which no optimizer watches
    model._forward_hooks.clear()
    found = {name: 0.0 for name, _ in model.named_parameters()}
    for example in x:
        logits = model(example[None])[0]
        pi = logits.detach().softmax(0)
        hessian = pi.diag() - torch.outer(pi, pi)
        for name, p in model.named_parameters():
            rows = torch.stack(
                [torch.autograd.grad(out, p, retain_graph=True)[0].ravel() for out in logits]
            )
            found[name] = found[name] + rows.T @ hessian @ rows
    return found


def learned(opt, model, prior=10.0):
    """The precision that the first step added, per tensor."""
    return {
        name: torch.linalg.inv(opt.posterior_covariance(p)) - prior * torch.eye(p.numel())
        for name, p in model.named_parameters()
    }


def assert_learned(opt, model, expected):
    for name, precision in learned(opt, model).items():
        torch.testing.assert_close(precision, expected[name], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("memory", [1, 2000, 2**28])
def test_rows_make_the_gauss_newton_matrix_however_few_fit(memory):
    """One example at a time, some, and all at once."""
    model, (x, y) = mlp(), data()
    opt, expected = ekf(model, memory=memory), fisher(model, x)
    logistic(model, x, y).backward()
    opt.step()
    assert_learned(opt, model, expected)


@pytest.mark.parametrize("memory", [1, 2**28])
def test_squares_are_the_diagonal_of_the_dense_matrix(memory):
    model, (x, y) = mlp(), data()
    expected = fisher(model, x)

    def preset():
        return Filter(Static(), GaussNewtonDiagonal("cross_entropy", memory=memory), Diagonal(0.1))

    opt = FilterOptimizer(model.parameters(), preset, model=model)
    logistic(model, x, y).backward()
    opt.step()
    for name, p in model.named_parameters():
        found = 1 / opt.posterior_variance(p) - 10
        torch.testing.assert_close(found.ravel(), expected[name].diag(), rtol=1e-8, atol=1e-9)


def test_an_average_of_the_diagonal_is_the_diagonal_at_the_first_step():
    model, (x, y) = mlp(), data()
    expected = fisher(model, x)

    def preset():
        return Filter(Static(), Averaged(GaussNewtonDiagonal("cross_entropy")), Diagonal(0.1))

    opt = FilterOptimizer(model.parameters(), preset, model=model)
    logistic(model, x, y).backward()
    opt.step()
    for name, p in model.named_parameters():
        found = 1 / opt.posterior_variance(p) - 10
        torch.testing.assert_close(found.ravel(), expected[name].diag(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("memory", "sizes"), [(1, [1] * 8), (3100, [3, 3, 2]), (2**28, [8])])
def test_memory_bounds_the_examples_worked_on_at_a_time(monkeypatch, memory, sizes):
    """One example's rows take 3 outputs x 43 weights x 8 bytes = 1032; at least one is taken."""
    calls, original = [], torch.func.vmap

    def counting(function, **options):
        def call(*args):
            if "in_dims" in options:  # over examples, not over outputs
                calls.append(len(args[0]))
            return original(function, **options)(*args)

        return call

    monkeypatch.setattr("filteropt.gathering.recorder.vmap", counting)
    model, (x, y) = mlp(), data()
    opt = ekf(model, memory=memory)
    logistic(model, x, y).backward()
    opt.step()
    assert calls == sizes


def step_on(batches, before=lambda opt, model: None):
    """One step on the sum of the batches' losses; the weights and covariances after it."""
    model = mlp()
    opt = ekf(model)
    before(opt, model)
    for x, y in batches:
        logistic(model, x, y).backward()
    opt.step()
    return [p.detach() for p in model.parameters()] + [
        opt.posterior_covariance(p) for p in model.parameters()
    ]


def test_accumulated_halves_are_one_batch():
    x, y = data()
    halves = step_on([(x[:3], y[:3]), (x[3:], y[3:])])
    for mine, reference in zip(halves, step_on([(x, y)]), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


def evaluated(opt, model):
    with torch.no_grad():
        model(torch.ones(2, 4).double())


def never_backpropagated(opt, model):
    model(torch.ones(2, 4).double()).sum()


def forgotten(opt, model):
    model(torch.ones(2, 4).double()).sum().backward()
    opt.zero_grad()


@pytest.mark.parametrize("before", [evaluated, never_backpropagated, forgotten])
def test_forward_passes_without_gradient_do_not_count(before):
    batches = [data()]
    plain = step_on(batches)
    assert all(map(torch.equal, step_on(batches, before), plain))


def test_a_forward_pass_counts_by_its_gradient_not_by_its_time():
    """The loss is computed, then zero_grad called, then the gradient taken."""
    (x, y), model = data(), mlp()
    opt = ekf(model)
    loss = logistic(model, x, y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    found = [p.detach() for p in model.parameters()]
    assert all(map(torch.equal, found, step_on([(x, y)])))


def test_a_step_forgets_its_minibatches():
    """The second step learns from its own minibatch alone, though gradients were never zeroed."""
    model, (x, y) = mlp(), data()
    opt = ekf(model, lr=1e-300, drift=0.0)  # the weights stay, the belief learns
    expected = fisher(model, x)
    for _ in range(2):
        logistic(model, x, y).backward()
        opt.step()
    assert_learned(opt, model, {name: 2 * value for name, value in expected.items()})


def test_a_closure_is_looked_at_like_any_loss():
    (x, y), model = data(), mlp()
    opt = ekf(model)

    def closure():
        opt.zero_grad()
        loss = logistic(model, x, y)
        loss.backward()
        return loss

    opt.step(closure)
    found = [p.detach() for p in model.parameters()]
    assert all(map(torch.equal, found, step_on([(x, y)])))


class Scaled(nn.Module):
    """Logits times one number per example, which may be given by name."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x, scale=None, *, double=False):
        outputs = self.inner(x) if scale is None else self.inner(x) * scale
        return 2 * outputs if double else outputs


def test_several_inputs_and_options_reach_every_example():
    model, (x, y) = Scaled(), data()
    scale = torch.linspace(0.5, 2, 8, dtype=torch.float64)[:, None]
    opt = ekf(model)
    cross_entropy(model(x, scale, double=True), y, reduction="sum").backward()

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.outer = model

        def forward(self, both):
            return self.outer(both[:, :-1], both[:, -1:], double=True)

    named = dict(model.named_parameters())
    expected = fisher(Alone(), torch.cat([x, scale], 1))
    opt.step()
    for name, p in named.items():
        precision = torch.linalg.inv(opt.posterior_covariance(p)) - 10 * torch.eye(p.numel())
        torch.testing.assert_close(precision, expected[f"outer.{name}"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("hide", [lambda x: {"scale": x}, lambda x: {"scale": (x,)}])
def test_tensors_given_by_name_are_refused(hide):
    """They would reach every example whole."""
    model, (x, y) = Scaled(), data()
    opt = ekf(model)
    ones = torch.ones(8, 1, dtype=torch.float64)
    model.forward = lambda x, scale: model.inner(x)
    cross_entropy(model(x, **hide(ones)), y).backward()
    with pytest.raises(TypeError, match=r"keyword.*argument of its own"):
        opt.step()
