"""The Kronecker-factored filter in an optimizer, its dynamics and its likelihood."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from filteropt import FilterOptimizer, KroneckerFilter
from filteropt.approximations import Diagonal, Kronecker, LayerGradients
from filteropt.engine import Filter, IncompatibleComposition, check, scalars
from filteropt.linalg import scalar
from filteropt.models import FixedNoise, ForgetToPrior, KroneckerDrift, RandomWalk, Static
from tests.oracles.kronecker import best_product, divergence, posterior

PROJECTIONS = ["first-order", "forward", "reverse"]


def trained(make, steps=5, dtype=torch.float64):
    """A small model, its optimizer, and the losses."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) / 2
    model.to(dtype)
    opt, losses = FilterOptimizer(model.parameters(), make, model=model), []
    x = torch.randn(16, 3, generator=generator).to(dtype)
    y = (x[:, 0] > 0).long()
    for _ in range(steps):
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return model, opt, losses


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize(
    "dynamics",
    [Static(), RandomWalk(1e-2), ForgetToPrior(0.01, 0.1), FixedNoise(1e-2, 0.1),
     KroneckerDrift(1e-2, 0.1, left=1e-3, right=1e-3)],
    ids=lambda d: type(d).__name__,
)  # fmt: skip
def test_it_trains_under_any_dynamics(dynamics, projection):
    def make(batch_size=16.0):
        return Filter(dynamics, LayerGradients(batch_size), Kronecker(projection, 20, 0.1))

    model, opt, losses = trained(make, 30)
    assert losses[-1] < 0.5 * losses[0]
    for p in model.parameters():
        x, y = opt.posterior_covariance(p)
        found = torch.outer(y.diagonal(), x.diagonal())
        torch.testing.assert_close(opt.posterior_variance(p), found, rtol=1e-12, atol=0)


def test_the_first_step_is_the_projection_of_the_dense_posterior():
    """A mean loss of two examples, whose gradients autograd takes one by one."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1])
    alone = [
        torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]), model.weight)[0]
        for i in range(2)
    ]
    rows = [np.linalg.svd(g.numpy()) for g in alone]  # each of rank one
    inputs = np.stack([v[0] for _, _, v in rows])
    deltas = np.stack([u[:, 0] * s[0] for u, s, _ in rows])
    exact = posterior(2.0 * np.eye(6), inputs, deltas)
    before = model.weight.detach().clone()

    def make(batch_size=2.0):
        return Filter(Static(), LayerGradients(batch_size, None), Kronecker("forward", 200, 2.0))

    opt = FilterOptimizer(model.parameters(), make, model=model)
    cross_entropy(model(x), y).backward()
    opt.step()
    found = np.kron(*(factor.numpy() for factor in opt.posterior_covariance(model.weight)))
    assert divergence(exact, found) - best_product(exact, 3, 2)[1] < 1e-10
    step = -(found @ sum(alone).numpy().T.ravel()).reshape(3, 2).T
    np.testing.assert_allclose((model.weight.detach() - before).numpy(), step, rtol=1e-9)


def test_factors_may_be_kept_more_exactly_than_weights():
    def make(dtype):
        return lambda batch_size=16.0: Filter(
            KroneckerDrift(1e-2, 0.1), LayerGradients(batch_size), Kronecker(dtype=dtype)
        )

    for dtype, kept in ((None, torch.float32), ("float64", torch.float64)):
        model, opt, _ = trained(make(dtype), dtype=torch.float32)
        for p in model.parameters():
            roots = [opt.state[p][name] for name in ("input_root", "output_root")]
            assert [root.dtype for root in roots] == [kept, kept]
            assert opt.state[p]["exp_avg"].dtype == torch.float32


def test_drift_without_mixing_is_fixed_noise():
    for given in ({}, {"weight_decay": 0.3}, {"discretization": "exact"}):
        drift, noise = (cls(0.1, 0.5, **given) for cls in (KroneckerDrift, FixedNoise))
        assert drift.transition(scalar(3)) == noise.transition(scalar(3))
        assert drift.initial_variance == noise.initial_variance


@pytest.mark.parametrize("weight_decay", [None, 0.3])
def test_rare_drifts_are_worth_as_many(weight_decay):
    """The exact transition of k steps in the k-th, none in between; a decay of its own goes on."""
    given = {"weight_decay": weight_decay, "discretization": "exact"}
    rare = KroneckerDrift(0.1, 0.5, left=1e-3, right=2e-3, every=3, **given)
    often, variance, mean = KroneckerDrift(0.1, 0.5, **given), 0.2, 1.0
    aged, shrunk = variance, mean
    for t in range(1, 7):
        (((f,),), (q,), c, decay, *_), there = (
            often.transition(scalar(t)),
            rare.transition(scalar(t)),
        )
        variance, mean = c * f * f * variance + q, mean * (1 - decay)
        ((f,),), (q,), c, decay, *_ = there
        assert torch.equal(there.mixing[0], scalar(3e-3 if t % 3 == 0 else 0.0))
        if t % 3:
            assert (float(c * f * f), float(q)) == (1.0, 0.0)
        aged, shrunk = c * f * f * aged + q, shrunk * (1 - (1 - f if decay is None else decay))
    assert float(aged) == pytest.approx(float(variance), rel=1e-12)
    assert float(shrunk) == pytest.approx(float(mean), rel=1e-12)


def test_variances_saw_between_rare_drifts():
    """By k√h η of themselves, about where steady drift would let them rest."""
    eta, h, k = 1e-3, 4.0, 20
    drift, seen = KroneckerDrift(eta, float("inf"), every=k), []
    variance = eta / h**0.5
    for t in range(1, 3001):
        ((f,),), (q,), *_ = drift.transition(scalar(t))
        variance = 1 / (1 / (float(f) ** 2 * variance + float(q)) + h)
        seen.append(variance)
    low, high = min(seen[-k:]), max(seen[-k:])
    assert (high - low) / variance == pytest.approx((k - 1) * h**0.5 * eta, rel=0.03)
    assert (high + low) / 2 == pytest.approx(eta / h**0.5, rel=0.01)


def test_a_belief_ages_at_its_drifts_alone():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    opt = KroneckerFilter(model, lr=0.1, batch_size=4, drift_every=2)
    roots = []
    for _ in range(4):
        model(torch.zeros(4, 3)).mul(0.0).sum().backward()  # rows that tell nothing
        opt.step()
        roots.append(torch.cat([x.flatten() for x in opt.posterior_covariance(model.weight)]))
        opt.zero_grad()
    moved = [not torch.allclose(a, b, rtol=1e-5) for a, b in itertools.pairwise(roots)]
    assert moved == [True, False, True]


def test_the_first_prior_is_not_mixed():
    """The initial variance is the prior of the first step, which ages by nothing."""
    filter = Filter(KroneckerDrift(left=0.1, right=0.2), LayerGradients(), Kronecker())
    found = [tuple(map(float, scalars(filter, t).age.mixing)) for t in (1, 2)]
    assert found == [(0.0, 0.0), (0.1, 0.2)]


def test_other_families_refuse_mixing():
    with pytest.raises(IncompatibleComposition, match="KroneckerDrift does not fit"):
        check(Filter(KroneckerDrift(left=1e-3), LayerGradients(), Diagonal()))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Kronecker("backward"), "projection='backward' is not allowed; use 'first-order'"),
        (lambda: Kronecker(rounds=0), r"rounds=0 must be a number in \[1, inf\)"),
        (lambda: Kronecker(initial_variance=0.0), r"initial_variance=0.0 .*\(0, inf\)"),
        (lambda: Kronecker(max_dim=0), r"max_dim=0 .*\(0, inf\)"),
        (lambda: Kronecker(dtype="float16"), "dtype='float16' is not allowed; use 'float32'"),
        (lambda: Kronecker().init(torch.zeros(3), 1.0, 1), r"shape \(3,\) is no weight matrix"),
        (lambda: Kronecker(max_dim=4).init(torch.zeros(2, 5), 1.0, 1), r"\(2, 5\).*max_dim=4"),
        (lambda: KroneckerDrift(left=-1.0), r"left=-1.0 must be a number in \[0, inf\)"),
        (lambda: LayerGradients(rows=0), r"rows=0 must be a number in \[1, inf\)"),
        (lambda: LayerGradients(sharing="sum"), "sharing='sum' is not allowed; use 'expand'"),
    ],
)
def test_errors_name_what_is_allowed(made, message):
    with pytest.raises(ValueError, match=message):
        made()
