"""The Kronecker-factored family: its laws, against the dense filter, and at rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from filteropt.approximations import Kronecker, LayerGradients
from filteropt.models import KroneckerDrift
from filteropt.testing import LawViolation, check_posterior
from filteropt.types import LayerRows, Observation, Outer, Raw, Transition
from tests.oracles.kronecker import DenseKalman, best_product, divergence, whitening

PROJECTIONS = ["first-order", "forward", "reverse"]
STATIC = Transition(((1.0,),), (0.0,))


def tensor(x):
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def dense(family, belief):
    """The covariance as one matrix, inputs major."""
    x, y = family.covariance(belief, None, STATIC)
    return np.kron(x.double().numpy(), y.double().numpy())


def observe(family, belief, inputs, deltas, gradient=None):
    m, n = deltas.shape[1], inputs.shape[1]
    gradient = np.zeros((m, n)) if gradient is None else gradient
    obs = Observation(tensor(gradient), Outer(tensor(inputs), tensor(deltas)))
    return family.condition(0.0, belief, obs, STATIC)


def correlated(n, generator):
    """A root of a covariance with eigenvalues from 1/2 to 2."""
    turn = np.linalg.qr(generator.normal(size=(n, n)))[0]
    return turn * np.geomspace(0.5, 2, n) ** 0.5


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_it_obeys_the_laws(projection):
    check_posterior(Kronecker(projection))
    check_posterior(Kronecker(projection, dtype="float64"))


class Climbing(Kronecker):
    def condition(self, disp, prior, obs, transition):
        disp, belief = super().condition(disp, prior, obs, transition)
        return -disp, belief


class Forgetful(Kronecker):
    def propagate(self, belief, transition, p=None):
        drift, aged = super().propagate(belief, transition, p)
        return drift, aged._replace(cov=tuple(1.1 * root for root in aged.cov))


class Uninformed(Kronecker):
    def condition(self, disp, prior, obs, transition):
        disp, _ = super().condition(disp, prior, obs, transition)
        return disp, prior


class Widening(Kronecker):
    def condition(self, disp, prior, obs, transition):
        disp, belief = super().condition(disp, prior, obs, transition)
        return disp, belief._replace(cov=tuple(1.1 * root for root in belief.cov))


class Unturned(Kronecker):
    def condition(self, disp, prior, obs, transition):
        disp, belief = super().condition(disp, prior, obs, transition)
        return disp, belief._replace(cov=tuple(root.diag().abs().diag() for root in belief.cov))


class Narrow(Kronecker):
    def sample(self, belief, curvature, transition, eps):
        return 0.9 * super().sample(belief, curvature, transition, eps)


class Doubled(Kronecker):
    def variance(self, belief, curvature, transition):
        return 2 * super().variance(belief, curvature, transition)


@pytest.mark.parametrize(
    ("broken", "law"),
    [(Climbing, "against the gradient"), (Forgetful, "static dynamics"),
     (Uninformed, "to first order"), (Widening, "never adds volume"), (Unturned, "turn"),
     (Narrow, "draws"), (Doubled, "diagonal")],
)  # fmt: skip
def test_broken_families_are_caught(broken, law):
    with pytest.raises(LawViolation, match=law):
        check_posterior(broken("reverse"))


@pytest.mark.parametrize(
    ("projection", "gap", "distance"),
    [("first-order", 0.06, 1.2), ("forward", 0.04, 1.0), ("reverse", 0.04, 0.6)],
)
def test_it_stays_near_the_best_product_of_the_dense_filter(projection, gap, distance):
    """Fifty steps of one row: divergence beyond the best product's, and the mean's distance."""
    generator = np.random.default_rng(0)
    n, m, dynamics = 4, 3, Transition(((0.995,),), (0.005,))
    truth = generator.normal(size=n * m)
    family, kalman = Kronecker(projection), DenseKalman(np.zeros(n * m), 1.0)
    belief, mean = family.init(torch.zeros(m, n, dtype=torch.float64), 1.0, 1), np.zeros(n * m)
    turns = [0.7 * (np.eye(k) + generator.normal(size=(k, k)) / 2) for k in (n, m)]
    reverse, excess, distances = projection == "reverse", [], []
    for step in range(50):
        kalman.drift(0.995, 0.005)
        _, belief = family.propagate(belief, dynamics, torch.zeros(m, n))
        mean = 0.995 * mean
        truth = 0.995 * truth + 0.005**0.5 * generator.normal(size=n * m)
        x, delta = (generator.normal(size=(1, k)) @ t.T for k, t in zip((n, m), turns, strict=True))
        row = np.kron(x[0], delta[0])
        seen = row @ truth + generator.normal()
        kalman.observe(x, delta, row * (row @ kalman.mean - seen))
        gradient = (row * (row @ mean - seen)).reshape(n, m).T
        moved, belief = observe(family, belief, x, delta, gradient)
        mean = mean + moved.numpy().T.ravel()
        off = mean - kalman.mean
        distances.append((off @ np.linalg.solve(kalman.covariance, off) / (n * m)) ** 0.5)
        if step % 5 == 4:
            ours, exact = dense(family, belief), kalman.covariance
            kl = divergence(ours, exact) if reverse else divergence(exact, ours)
            excess.append(kl - best_product(exact, n, m, reverse=reverse)[1])
    assert np.mean(excess) < gap
    assert np.mean(distances) < distance


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_drift_and_evidence_rest_at_whitening(projection):
    """Without a prior: √η E[xxᵀ]^(−½) ⊗ √η E[δδᵀ]^(−½) of the summed loss, scale included."""
    generator = np.random.default_rng(1)
    n, m, eta, size = 3, 2, 2e-3, 8
    roots = correlated(n, generator), correlated(m, generator)
    family = Kronecker(projection)
    like = LayerGradients(scale=float(size), beta1=None)
    transition = KroneckerDrift(eta, float("inf")).transition(1)
    p = torch.zeros(m, n, dtype=torch.float64)
    belief, total, steps = family.init(p, 5 * eta, 1), 0.0, 1600
    for step in range(steps):
        x, delta = (generator.choice((-1, 1), size=(size, len(r))) @ r.T for r in roots)
        raw = Raw(p, layer=LayerRows(tensor(x), tensor(delta) / size))  # of the mean loss
        obs, _ = like.observe((), raw, p, belief, like.scalars(1))
        _, belief = family.propagate(belief, transition, p)
        _, belief = family.condition(0.0, belief, obs, transition)
        if step >= steps // 2:
            total = total + dense(family, belief) / (steps - steps // 2)
    expected = eta / size**0.5 * np.kron(*(whitening(r @ r.T) for r in roots))
    assert np.linalg.norm(total - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_finite_prior_rests_at_the_scalar_fixed_point(projection):
    """Isotropic evidence: every direction rests where the scalar recursion of its variance does."""
    n, m, eta, sigma2 = 3, 2, 1e-2, 1e-2
    family, transition = Kronecker(projection), KroneckerDrift(eta, sigma2).transition(1)
    x, delta = np.repeat(np.eye(n), m, 0), np.tile(np.eye(m), (n, 1))  # every weight once: Λ = I
    belief = family.init(torch.zeros(m, n, dtype=torch.float64), sigma2, 1)
    variance = sigma2
    for _ in range(600):
        _, belief = family.propagate(belief, transition, torch.zeros(m, n))
        _, belief = observe(family, belief, x, delta)
        variance = float(transition.c * transition.F[0][0] ** 2) * variance
        variance = 1 / (1 / (variance + float(transition.Q[0])) + 1)
    rtol = 1e-3 if projection == "first-order" else 1e-5
    np.testing.assert_allclose(dense(family, belief), variance * np.eye(n * m), rtol, 1e-4 * rtol)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_static_evidence_adds_up_to_both_covariances(projection):
    """1/t of E[xxᵀ]⁻¹ ⊗ E[δδᵀ]⁻¹, its scale included."""
    generator = np.random.default_rng(2)
    n, m, size, steps = 3, 2, 20, 500
    roots = correlated(n, generator), correlated(m, generator)
    family = Kronecker(projection)
    belief = family.init(torch.zeros(m, n, dtype=torch.float64), 1.0, 1)
    for _ in range(steps):
        x, delta = (generator.choice((-1, 1), size=(size, len(r))) @ r.T for r in roots)
        _, belief = observe(family, belief, x, delta)
    expected = np.kron(*(np.linalg.inv(r @ r.T) for r in roots)) / (size * steps)
    found = dense(family, belief)
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_roots_survive_ten_thousand_wild_steps(projection):
    """float32, rows over sixteen decades, drift now and then."""
    generator = torch.Generator().manual_seed(0)
    family, p = Kronecker(projection), torch.zeros(2, 3)
    belief = family.init(p, 1.0, 1)
    drift = Transition(((0.999,),), (1e-6,))
    sizes = 10 ** (8 * torch.rand(10_000, 2, generator=generator) - 4)
    inputs = torch.randn(10_000, 1, 3, generator=generator) * sizes[:, :1, None]
    deltas = torch.randn(10_000, 1, 2, generator=generator) * sizes[:, 1:, None]
    for step in range(10_000):
        if step % 10 == 0:
            _, belief = family.propagate(belief, drift, p)
        obs = Observation(p, Outer(inputs[step], deltas[step]))
        _, belief = family.condition(0.0, belief, obs, drift)
    variance = family.variance(belief, None, drift)
    assert (variance > 0).all()
    assert variance.isfinite().all()
    for root in belief.cov:
        values = torch.linalg.svdvals(root.double())
        assert values.min() > 1e-12 * values.max()


def test_draws_have_the_factors_covariance():
    family = Kronecker()
    belief = family.init(torch.zeros(2, 3, dtype=torch.float64), 0.3, 1)
    generator = np.random.default_rng(0)
    _, belief = observe(family, belief, generator.normal(size=(2, 3)), np.ones((2, 2)))
    eyes = torch.eye(6, dtype=torch.float64).reshape(6, 2, 3)
    drawn = np.stack([family.sample(belief, None, STATIC, e).numpy().T.ravel() for e in eyes])
    np.testing.assert_allclose(drawn.T @ drawn, dense(family, belief), rtol=1e-12, atol=1e-14)


def test_a_convolution_is_the_matrix_of_its_windows():
    """Four dimensions, and the same as two."""
    generator = np.random.default_rng(0)
    x, delta, gradient = (generator.normal(size=s) for s in ((5, 12), (5, 2), (2, 12)))
    family = Kronecker()
    moved = []
    for shape in ((2, 3, 2, 2), (2, 12)):
        belief = family.init(torch.zeros(shape, dtype=torch.float64), 0.3, 1)
        obs = Observation(tensor(gradient).reshape(shape), Outer(tensor(x), tensor(delta)))
        disp, belief = family.condition(0.0, belief, obs, STATIC)
        assert disp.shape == shape
        moved.append(disp.reshape(2, 12))
    assert torch.equal(*moved)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3, 0)])
def test_nothing_is_known_of_no_weights(shape, projection):
    family, p = Kronecker(projection), torch.zeros(shape)
    transition = KroneckerDrift(0.1, left=0.1).transition(1)
    _, belief = family.propagate(family.init(p, 1.0, 1), transition, p)
    rows = torch.ones(4, p.flatten(1).shape[1]), torch.ones(4, len(p))
    disp, belief = family.condition(0.0, belief, Observation(p, Outer(*rows)), transition)
    assert disp.shape == p.shape
    assert family.variance(belief, None, transition).numel() == 0
    assert family.sample(belief, None, transition, p).shape == p.shape


@pytest.mark.parametrize(
    ("projection", "least", "most"),
    [("first-order", 3e3, 1e4), ("forward", 3e3, 1e4), ("reverse", 1.0, 3.0)],
)
def test_how_much_is_known_of_a_row_that_is_far_stronger_than_the_prior(projection, least, most):
    """The exact posterior's eᵀΣ⁺e is below 1; of the projections, reverse alone is bounded."""
    generator = np.random.default_rng(0)
    family = Kronecker(projection)
    x, delta = (generator.normal(size=(1, k)) for k in (4, 3))
    x, delta = x / np.linalg.norm(x), delta / np.linalg.norm(delta)
    belief = family.init(torch.zeros(3, 4, dtype=torch.float64), 1.0, 1)
    _, belief = observe(family, belief, 100 * x, delta)
    row = np.kron(100 * x[0], delta[0])
    assert least < row @ dense(family, belief) @ row < most


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_mixing_spreads_along_the_mean(projection):
    """A of variance a adds a |column of W|² to a column's weights, B of b to a row's."""
    p = torch.tensor([[3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    family = Kronecker(projection)
    start = family.init(p, 1e-3, 1)
    variances = []
    for left, right in ((0.0, 0.0), (1e-6, 0.0), (0.0, 1e-6)):
        transition = KroneckerDrift(1e-6, float("inf"), left=left, right=right).transition(1)
        _, aged = family.propagate(start, transition, p)
        variances.append(family.variance(aged, None, transition))
    still, by_left, by_right = variances
    assert torch.allclose(by_left.sum() - still.sum(), tensor(2 * 9e-6 + 8e-9), rtol=0.01)
    gained = by_left - still, by_right - still
    assert (gained[0][:, 0] > 2 * gained[0][:, 1].abs()).all()
    assert torch.allclose(gained[1], gained[0].T, rtol=1e-6)
