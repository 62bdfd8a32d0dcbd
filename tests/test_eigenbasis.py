"""The eigenbasis filter: its limits, its basis, and what a turn does to the belief."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import filteropt
from filteropt import FilterOptimizer, engine, presets, regression, variant
from filteropt.approximations import (
    AveragedPull,
    Dense,
    Diagonal,
    KroneckerEigenbasis,
    SquaredGradient,
)
from filteropt.engine import Filter, IncompatibleComposition
from filteropt.models import FixedNoise, ForgetToPrior, MomentumAugmented
from filteropt.types import Raw
from tests.oracles.soap import SOAP

INF = float("inf")


def gradients(shape, steps, seed=0):
    """Correlated gradients, so that the bases are far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(n, n, dtype=torch.float64, generator=generator) for n in shape[:2]]
    for _ in range(steps):
        g = torch.randn(shape, dtype=torch.float64, generator=generator)
        yield torch.einsum("ij,jk...,kl->il...", sides[0], g, sides[1])


def parameter(*shape, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))


def run(opt, p, grads):
    for g in grads:
        p.grad = g.clone()
        opt.step()


@pytest.mark.parametrize("refresh", ["qr", "eigh"])
def test_fixed_point_without_a_prior_is_soap(refresh):
    p = parameter(5, 4)
    oracle = SOAP(p.detach().numpy(), 0.02, 0.9, 0.99, 0.3)
    opt = filteropt.EigenbasisFilter(
        [p], 0.02, INF, (0.9, 0.99), 0.3, batch_size=7, update_every=3, refresh=refresh,
        transport="keep",
    )  # fmt: skip
    for t, g in enumerate(gradients((5, 4), 50)):
        p.grad = g.clone()
        opt.step()
        if not t:  # the first gradient makes the basis
            assert torch.equal(p, parameter(5, 4))
            continue
        left, right = (opt.state[p][f"eigenvectors_{i}"].numpy() for i in range(2))
        oracle.step(g.numpy(), left, right)
        torch.testing.assert_close(p.detach().numpy(), oracle.w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stationary", [True, False])
@pytest.mark.parametrize("shape", [(6,), (), (4, 3), (3, 2, 2)])
def test_in_the_identity_basis_it_is_adabayes(stationary, shape):
    p = parameter(*shape)
    q = copy.deepcopy(p)
    settings = {"lr": 0.02, "lr_sgd": 0.3, "weight_decay": 0.1, "batch_size": 5}
    betas = (0.8, 0.95)
    rotated = filteropt.EigenbasisFilter(
        [p], betas=betas, stationary=stationary, max_dim=1, **settings
    )
    plain = (
        filteropt.AdaBayesFP([q], betas=betas, **settings)
        if stationary
        else filteropt.AdaBayes([q], beta1=0.8, **settings)
    )
    for seed in range(20):
        g = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        p.grad, q.grad = g, g.clone()
        rotated.step()
        plain.step()
    assert torch.equal(p, q)
    assert torch.equal(rotated.posterior_variance(p), plain.posterior_variance(q))


def test_factors_and_bases_are_those_of_the_gradients_before():
    basis, grads = KroneckerEigenbasis(beta=0.9, update_every=4), list(gradients((4, 3, 2), 7))
    p = torch.zeros(4, 3, 2, dtype=torch.float64)
    state = basis.init(p)
    factors = [torch.zeros(n, n, dtype=torch.float64) for n in p.shape]
    for seen, g in enumerate(grads):  # the first makes the basis, and is no step
        assert basis.ready(state) == bool(seen)
        before = state
        state, turn = basis.refresh(state, Raw(g), max(seen, 1))
        assert (turn is not None) == (seen in {1, 5})
        for i, factor in enumerate(factors):
            vectors, old = (getattr(s, f"eigenvectors_{i}") for s in (state, before))
            eye = torch.eye(len(vectors), dtype=torch.float64)
            torch.testing.assert_close(vectors.mT @ vectors, eye)
            if seen == 1:
                diagonal = vectors.mT @ factor @ vectors
                off = diagonal - diagonal.diag().diag()  # but for what keeps null spaces apart
                assert off.abs().max() <= 1e-6 * diagonal.diag().mean()
                assert (diagonal.diag().diff() <= 1e-6 * diagonal.diag().mean()).all()
            elif seen == 5:
                spanned = torch.linalg.qr(factor @ old).Q
                torch.testing.assert_close((spanned.mT @ vectors).abs(), eye, atol=1e-4, rtol=0)
            else:
                assert torch.equal(vectors, old)
        new = [torch.einsum(s, g, g) for s in ("iab,jab->ij", "aib,ajb->ij", "abi,abj->ij")]
        factors = [0.9 * f + 0.1 * n for f, n in zip(factors, new, strict=True)]
        for i, factor in enumerate(factors):
            torch.testing.assert_close(getattr(state, f"factor_{i}"), factor)


def test_orthogonal_iteration_finds_the_eigenvectors():
    torch.manual_seed(0)
    basis = KroneckerEigenbasis(beta=0.0, update_every=1)
    left = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    g = left * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    state, _ = basis.refresh(basis.init(g), Raw(torch.randn(5, 5, dtype=torch.float64)), 1)
    for t in range(2, 60):
        state, _ = basis.refresh(state, Raw(g), t)
    overlap = (state.eigenvectors_0.mT @ left).abs()
    # up to what damping, of a millionth of the trace, turns
    torch.testing.assert_close(overlap, torch.eye(5, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (3, 4, 2, 2)])
def test_coordinates_come_and_go(shape):
    basis, (g,) = KroneckerEigenbasis(), gradients(shape, 1)
    state, _ = basis.refresh(basis.refresh(basis.init(g), Raw(g), 1)[0], Raw(g), 1)
    x = torch.randn_like(g)
    torch.testing.assert_close(basis.backward(state, basis.forward(state, x)), x)
    rotation = torch.stack([
        basis.forward(state, e.reshape(shape)).flatten()
        for e in torch.eye(g.numel(), dtype=g.dtype)
    ]).mT  # fmt: skip
    variance = torch.rand_like(g)
    dense = rotation.mT @ variance.flatten().diag() @ rotation
    found = basis.variance(state, variance).flatten()
    torch.testing.assert_close(found, dense.diagonal())


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
def test_a_turn_moves_the_belief_as_the_dense_covariance_would(shape):
    """Means and averages turn exactly; variances are the diagonal of the turned covariance."""
    first, second = gradients(shape, 2)
    filter = Filter(
        MomentumAugmented(0.1, 0.5, 0.05, 0.2),
        SquaredGradient(beta1=0.9),
        Diagonal(),
        KroneckerEigenbasis(update_every=1, refresh_by="eigh"),
    )
    state = engine.refresh(filter, 1, engine.init(filter, first), Raw(first))
    state = engine.refresh(filter, 2, state, Raw(second))
    numbers = engine.scalars(filter, 2)
    for _ in range(3):
        _, state = engine.step(filter, numbers, state, Raw(first), torch.zeros_like(first))
    turned = engine.refresh(filter, 3, state, Raw(second))
    n, basis = first.numel(), filter.basis
    eye = torch.eye(n, dtype=first.dtype)
    turn = torch.stack([
        basis.forward(turned.basis, basis.backward(state.basis, e.reshape(shape))).flatten()
        for e in eye
    ]).mT  # fmt: skip
    for before, after in [
        (state.belief.aux[0], turned.belief.aux[0]),
        (state.like.exp_avg, turned.like.exp_avg),
    ]:
        torch.testing.assert_close(after.flatten(), turn @ before.flatten())
    blocks = regression.covariance(state.belief.cov).reshape(n, 2, 2)
    expected = torch.einsum("ij,jab->iab", turn**2, blocks)
    found = regression.covariance(turned.belief.cov).reshape(n, 2, 2)
    torch.testing.assert_close(found, expected)


@given(st.integers(1, 4), st.integers(0, 1000))
def test_transported_covariances_are_averages_and_stay_positive(k, seed):
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(6, k, k, dtype=torch.float64, generator=generator)
    blocks = roots @ roots.mT + 1e-6 * torch.eye(k, dtype=torch.float64)
    chol = torch.linalg.cholesky(blocks)
    unit = chol / chol.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    cov = [unit[:, i, j] if j < i else chol[:, i, i] ** 2 for i in range(k) for j in range(i + 1)]
    weights = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q ** 2
    found = regression.transport(cov, lambda d: weights @ d)
    expected = torch.einsum("ij,jab->iab", weights, blocks)
    torch.testing.assert_close(regression.covariance(found), expected)
    assert all((found[i * (i + 3) // 2] > 0).all() for i in range(k))


def test_wild_covariances_stay_positive_through_turns_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    cov = regression.independent([torch.ones(8), torch.ones(8)])
    for t in range(2000):
        scale = 10 ** (20 * torch.rand(8, generator=generator) - 10)
        cov = (cov[0] / (1 + cov[0] * scale), *cov[1:])
        cov = regression.predict(cov, MomentumAugmented(0.1, 0.5, 0.05, 0.2).transition(t))
        turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q.square()
        cov = regression.transport(cov, lambda d, turn=turn: turn @ d)
        assert all(x.isfinite().all() for x in cov)
        assert (cov[0] > 0).all()
        assert (cov[2] > 0).all()


RECURSIVE_AND_NOT = presets.adabayes, presets.adabayes_fp
OTHERS = presets.momentum_filter, presets.online_natural_gradient


@pytest.mark.parametrize("preset", [*RECURSIVE_AND_NOT, *OTHERS])
def test_every_filter_runs_in_it_and_knows_no_axes(preset):
    """Turned gradients give turned steps."""
    grads = list(gradients((4, 3), 12))
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in (4, 3))
    eigenbasis = KroneckerEigenbasis(update_every=5, refresh_by="eigh")
    rotated = variant(preset, basis=eigenbasis)
    p = parameter(4, 3)
    q = nn.Parameter(left @ p.detach() @ right)
    run(FilterOptimizer([p], rotated, lr=0.05), p, grads)
    run(FilterOptimizer([q], rotated, lr=0.05), q, [left @ g @ right for g in grads])
    torch.testing.assert_close(q.detach(), left @ p.detach() @ right, rtol=1e-4, atol=1e-5)
    r = parameter(4, 3)
    run(FilterOptimizer([r], preset, lr=0.05), r, grads)
    assert not torch.allclose(p, r)


def test_other_latents_turn_with_the_basis():
    """With a curvature that is known, momentum in turning bases is momentum in none."""
    grads = list(gradients((4, 3), 12))
    mild = variant(presets.momentum_filter, likelihood=lambda: Constant())
    turning = variant(mild, basis=KroneckerEigenbasis(update_every=2))
    p = parameter(4, 3)
    q = copy.deepcopy(p)
    run(FilterOptimizer([p], mild, lr=0.05), p, grads[1:])
    run(FilterOptimizer([q], turning, lr=0.05), q, grads)  # the first makes the basis
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


class Constant(SquaredGradient):
    """The same curvature whatever the gradient."""

    def observe(self, like, raw, p, prior, scalars):
        obs, like = super().observe(like, raw, p, prior, scalars)
        return obs._replace(curvature=type(obs.curvature)(torch.full_like(raw.grad, 2.0))), like


def test_sides_that_are_too_long_are_not_rotated():
    basis = KroneckerEigenbasis(max_dim=4)
    assert basis.init(torch.zeros(4, 5))._fields == ("factor_0", "eigenvectors_0")
    assert basis.init(torch.zeros(5, 4))._fields == ("factor_1", "eigenvectors_1")
    assert basis.init(torch.zeros(5)) == ()
    assert basis.init(torch.zeros(1, 3))._fields == ("factor_1", "eigenvectors_1")
    assert basis.init(torch.zeros(0, 3)) == ()


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        (Filter(FixedNoise(0.1), SquaredGradient(), Dense(), KroneckerEigenbasis()), "Dense"),
        (
            Filter(
                ForgetToPrior(0.1), AveragedPull(SquaredGradient(beta1=None)), Diagonal(),
                KroneckerEigenbasis(),
            ),
            "AveragedPull",
        ),
    ],
)  # fmt: skip
def test_parts_that_cannot_turn_are_refused(filter, words):
    with pytest.raises(IncompatibleComposition, match=f"{words}.*coordinates that turn.*Would fit"):
        engine.check(filter)


def test_a_checkpoint_goes_on_bit_for_bit():
    grads = list(gradients((4, 3), 15))
    p = parameter(4, 3)
    opt = filteropt.EigenbasisFilter([p], update_every=4)
    run(opt, p, grads[:6])
    q = copy.deepcopy(p)
    other = filteropt.EigenbasisFilter([q], update_every=4)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    run(opt, p, grads[6:])
    run(other, q, grads[6:])
    assert torch.equal(p, q)


def test_dead_weights_leave_the_basis_orthonormal():
    """Rows and columns that never see a gradient, in single precision, for long."""
    p = nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    opt = filteropt.EigenbasisFilter([p], update_every=1)
    for g in gradients((6, 5), 500):
        p.grad = g.float()
        p.grad[2:] = 0
        p.grad[:, 1] = 0
        opt.step()
    for i, n in enumerate(p.shape):
        vectors = opt.state[p][f"eigenvectors_{i}"]
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(n), atol=1e-5, rtol=0)
    assert p.isfinite().all()


def test_draws_have_the_variance_that_is_told():
    p = parameter(3, 2)
    opt = filteropt.EigenbasisFilter([p], stationary=False, batch_size=4)
    run(opt, p, gradients((3, 2), 8))
    mean, generator = p.detach().clone(), torch.Generator().manual_seed(0)
    draws = []
    for _ in range(4000):
        with opt.sampled_params(generator=generator):
            draws.append(p.detach() - mean)
    ratio = torch.stack(draws).var(0) / opt.posterior_variance(p)
    assert (ratio - 1).abs().max() < 6 * (2 / 4000) ** 0.5


def test_rounding_does_not_choose_the_basis_of_a_null_space():
    """Gradients of rank one: another order of operations gives another rounding, and no more."""
    generator = torch.Generator().manual_seed(0)
    columns, rows = (torch.randn(12, n, dtype=torch.float64, generator=generator) for n in (5, 4))
    grads = [torch.outer(c, r) for c, r in zip(columns, rows, strict=True)]
    ends = []
    for error in (0.0, 1e-15):
        p = parameter(5, 4)
        opt = filteropt.EigenbasisFilter([p], lr=0.05, update_every=1)
        run(
            opt,
            p,
            [g * (1 + error * torch.arange(20, dtype=torch.float64).reshape(5, 4)) for g in grads],
        )
        ends.append(p.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-8)


def test_large_gradients_are_refused_before_their_moments_overflow():
    p, q = (nn.Parameter(torch.ones(8, 8)) for _ in range(2))
    opt = filteropt.EigenbasisFilter([p, q], on_nonfinite="skip")
    for size in (1.0, 1e19, 1.0, 1.0):
        p.grad, q.grad = torch.ones(8, 8), torch.full((8, 8), size)
        opt.step()
    assert float(opt.state[p]["step"]) == float(opt.state[q]["step"]) == 2
    assert p.isfinite().all()
    assert opt.state[q]["factor_0"].isfinite().all()


@pytest.mark.parametrize("change", [{"max_dim": 4}, {"max_dim": 64}])
def test_a_belief_is_not_read_in_other_coordinates(change):
    p = parameter(12, 3)
    opt = filteropt.EigenbasisFilter([p], max_dim=12 if change["max_dim"] == 4 else 4)
    run(opt, p, gradients((12, 3), 5))
    opt.param_groups[0].update(change)
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match=r"now need (other )?.*eigenvectors_0"):
        run(opt, p, gradients((12, 3), 1))
    assert torch.equal(p, before)


def test_factors_of_another_kind_are_refused_before_anything_moves():
    model = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2))
    opt = filteropt.EigenbasisFilter(model.parameters(), model=model)
    for factors, words in (("gradients", ""), ("layers", "no rows"), ("layers", "now need")):
        opt.param_groups[0]["factors"] = factors
        opt.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        before = copy.deepcopy(list(model.parameters()))
        if factors == "layers":
            with pytest.raises(RuntimeError, match=words):
                opt.step()
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        else:
            opt.step()


def test_factors_of_another_size_are_refused_though_their_names_are_the_same():
    model = nn.Conv2d(2, 3, 2)
    opt = filteropt.EigenbasisFilter(model.parameters(), model=model, max_dim=3)
    other = {"factors": "layers", "max_dim": 8}
    for change, words in (({}, ""), (other, "no rows"), ({}, "now need other factor_1")):
        opt.param_groups[0].update(change)
        opt.zero_grad()
        model(torch.randn(5, 2, 3, 3)).square().mean().backward()
        before = model.weight.detach().clone()
        if words:
            with pytest.raises(RuntimeError, match=words):
                opt.step()
            assert torch.equal(model.weight, before)
        else:
            opt.step()


def test_no_prediction_of_momentum_in_coordinates_that_turn():
    rotated = variant(presets.momentum_filter, basis=KroneckerEigenbasis())
    with pytest.raises(ValueError, match=r"linearize_at='prediction'.*KroneckerEigenbasis"):
        FilterOptimizer([parameter(3, 2)], rotated, linearize_at="prediction")


def test_directions_without_gradients_stay_where_they_are_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 64, generator=generator)
    basis, g = KroneckerEigenbasis(update_every=1, beta=0.9), torch.randn(8, 4) @ rows
    state, _ = basis.refresh(basis.init(g), Raw(g), 1)
    for t in (2, 3):
        old = state.eigenvectors_1
        state, _ = basis.refresh(state, Raw(torch.randn(8, 4, generator=generator) @ rows), t)
    kept = (state.eigenvectors_1 * old).sum(0)[4:].square()
    assert kept.mean() > 0.98
