"""Kronecker-factored Gaussians: conditioning, drift and their projections, against dense ones."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from filteropt.matrix_normal import (
    Factors,
    Spread,
    balance,
    condition_first_order,
    condition_forward,
    condition_reverse,
    drift_first_order,
    drift_forward,
    drift_reverse,
    drifted,
    mixed,
    project_sum,
)
from tests.oracles.kronecker import best_product, divergence, eq24, eq28, flip_flop, posterior

GOLDEN = json.loads((Path(__file__).parent / "data" / "kronecker.json").read_text())
SHAPES = [(1, 1), (1, 4), (5, 1), (3, 2), (4, 3), (6, 6)]


def tensor(x):
    return torch.tensor(np.asarray(x)).double()


def dense(factors):
    """The covariance as one matrix, inputs major."""
    x, y = covariances(factors)
    return np.kron(x, y)


def covariances(factors):
    return tuple((root @ root.mT).numpy() for root in (r.double() for r in factors))


def dense_sum(terms):
    """The covariance that spreads add up to."""
    eyes = [torch.eye(len(root), dtype=root.dtype) for root in terms[0][1:]]
    return sum(
        float(term.weight)
        * dense([e if root is None else root for root, e in zip(term[1:], eyes, strict=True)])
        for term in terms
    )


def random_case(n, m, rows, size=1.0, seed=0):
    """Roots, which are neither symmetric nor triangular, and rows of about this evidence."""
    generator = np.random.default_rng(seed)
    roots = (generator.normal(size=(k, k)) + 2 * np.eye(k) for k in (n, m))
    x, delta = generator.normal(size=(rows, n)), generator.normal(size=(rows, m))
    scale = (size / (n * m)) ** 0.25 / 2
    return Factors(*map(tensor, roots)), x * scale, delta * scale


def rows(case):
    return tuple(tensor(r) for r in case)


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def orders(errors):
    """By what power errors fall from one step size to the next, half as large."""
    return np.log2(errors[:-1]) - np.log2(errors[1:])


def test_golden_trajectory():
    """Eq. 24 and Eq. 28 factor by factor, and the exact projection of every step's posterior."""
    numbers, start = GOLDEN["hyperparameters"], GOLDEN["initial_prior"]
    eta, sigma2 = numbers["eta"], numbers["sigma2"]
    factors = Factors(*(torch.linalg.cholesky(tensor(factor)) for factor in start.values()))
    for step in GOLDEN["steps"]:
        x, delta = tensor(step["x"])[None], tensor(step["delta"])[None]
        exact = dense(condition_forward(factors, x, delta))
        expected = np.array(step["forward_kl_posterior_kronecker_product"])
        np.testing.assert_allclose(exact, expected, rtol=1e-10, atol=1e-13)
        factors = condition_first_order(factors, x, delta)
        for found, given in zip(covariances(factors), step["first_order_posterior"], strict=True):
            np.testing.assert_allclose(found, given, rtol=1e-10, atol=1e-13)
        factors = drift_first_order(factors, (1 - eta**2 / (2 * sigma2)) ** 2, eta**2)
        for found, given in zip(covariances(factors), step["next_prior"], strict=True):
            np.testing.assert_allclose(found, given, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_first_order_is_eq_24_row_after_row(n, m):
    factors, x, delta = random_case(n, m, 5, size=30.0)
    sx, sd = covariances(factors)
    for one, other in zip(x, delta, strict=True):
        sx, sd = eq24(sx, sd, one, other)
    found = covariances(condition_first_order(factors, *rows((x, delta))))
    for factor, expected in zip(found, (sx, sd), strict=True):
        assert relative(factor, expected) < 1e-12


def first_order_errors(update):
    """How far from the optimum an update of (Σx, Σδ, x, δ) is, for evidence that halves."""
    errors = []
    for i in range(5):
        factors, x, delta = random_case(4, 3, 1, size=0.02 * 0.5**i)
        sx, sd = covariances(factors)
        best = flip_flop(posterior(np.kron(sx, sd), x, delta), 4, 3)
        errors.append(relative(np.kron(*update(sx, sd, x[0], delta[0])), best))
    return np.array(errors)


def ours(sx, sd, x, delta):
    roots = Factors(*(torch.linalg.cholesky(tensor(s)) for s in (sx, sd)))
    return covariances(condition_first_order(roots, tensor(x)[None], tensor(delta)[None]))


def test_first_order_is_the_optimum_up_to_the_square_of_the_step():
    assert orders(first_order_errors(ours)) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("misprint", [{"normalised": False}, {"corrected": False}])
def test_as_printed_eq_24_is_not(misprint):
    """Either misprint is wrong at first order already, and worse than no update at all."""

    def printed(*given):
        return eq24(*given, **misprint)

    assert orders(first_order_errors(printed)) == pytest.approx(1, abs=0.05)
    factors, x, delta = random_case(4, 3, 1, size=0.02)
    sx, sd = covariances(factors)
    exact = posterior(np.kron(sx, sd), x, delta)
    kl = [
        divergence(exact, np.kron(*made))
        for made in (ours(sx, sd, x[0], delta[0]), (sx, sd), printed(sx, sd, x[0], delta[0]))
    ]
    assert kl == sorted(kl)


def test_first_order_drift_is_eq_28_and_optimal_up_to_the_square_of_the_step():
    factors, *_ = random_case(4, 3, 1)
    errors = []
    for i in range(5):
        noise = 0.002 * 0.5**i
        aged = drift_first_order(factors, (1 - noise / 2) ** 2, noise)
        expected = eq28(*covariances(factors), noise**0.5, 1.0)
        for found, factor in zip(covariances(aged), expected, strict=True):
            assert relative(found, factor) < 1e-12
        exact = (1 - noise / 2) ** 2 * dense(factors) + noise * np.eye(12)
        errors.append(relative(dense(aged), flip_flop(exact, 4, 3)))
    assert orders(np.array(errors)) == pytest.approx(2, abs=0.05)


def least_divergence(exact, found, n, m, reverse):
    """The least divergence that is reached from isotropic factors, or from twice what was found."""
    blocks = found.reshape(n, m, n, m)
    x, y = blocks[:, 0, :, 0], blocks[0, :, 0, :] / blocks[0, 0, 0, 0]
    starts = None, (x * (1 + np.eye(n)), y)
    return min(best_product(exact, n, m, reverse=reverse, start=start)[1] for start in starts)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("number", [1, 2, 8])
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_conditioning_is_the_direct_minimum(n, m, number, reverse):
    factors, x, delta = random_case(n, m, number, size=3.0, seed=n + m)
    exact = posterior(dense(factors), x, delta)
    condition = condition_reverse if reverse else condition_forward
    found = dense(condition(factors, *rows((x, delta)), 100))
    kl = divergence(found, exact) if reverse else divergence(exact, found)
    assert kl - least_divergence(exact, found, n, m, reverse) < 1e-10


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_drift_is_the_direct_minimum(n, m, reverse):
    """Isotropic noise, and an observation of every weight after it."""
    factors, *_ = random_case(n, m, 1, seed=n + m)
    aged = 0.9 * dense(factors) + 0.3 * np.eye(n * m)
    pulled = np.linalg.inv(np.linalg.inv(aged) + 0.2 * np.eye(n * m))
    drift = drift_reverse if reverse else drift_forward
    found = (
        drift(factors, 0.9, 0.3, rounds=100),
        drifted(factors, 0.9, 0.3, pull=0.2, rounds=100, reverse=reverse),
    )
    for exact, made in zip((aged, pulled), map(dense, found), strict=True):
        kl = divergence(made, exact) if reverse else divergence(exact, made)
        assert kl - least_divergence(exact, made, n, m, reverse) < 1e-10


def test_one_row_in_closed_form_is_the_alternation():
    """A single row takes a quadratic equation; with a row of nothing beside it, rounds."""
    for n, m in SHAPES:
        factors, x, delta = random_case(n, m, 1, size=100.0)
        nothing = tensor(np.zeros((1, n))), tensor(np.zeros((1, m)))
        padded = [torch.cat(pair) for pair in zip(rows((x, delta)), nothing, strict=True)]
        for condition in (condition_forward, condition_reverse):
            alone = condition(factors, *rows((x, delta)))
            assert relative(dense(condition(factors, *padded, 200)), dense(alone)) < 1e-7


def test_many_rows_are_taken_in_runs():
    factors, x, delta = random_case(3, 2, 300, size=1e-3)
    x, delta = rows((x, delta))
    together = condition_forward(factors, x, delta)
    run = condition_forward(factors, x[:256], delta[:256])
    assert relative(dense(together), dense(condition_forward(run, x[256:], delta[256:]))) < 1e-12


def test_rounds_are_the_most_that_are_made():
    factors, x, delta = random_case(4, 3, 6, size=1e4)
    x, delta = rows((x, delta))
    for condition in (condition_forward, condition_reverse):
        one, many = (dense(condition(factors, x, delta, rounds)) for rounds in (1, 50))
        assert relative(one, many) > 1e-4
    for drift in (drift_forward, drift_reverse):
        one, many = (dense(drift(factors, 1.0, 5.0, rounds=rounds)) for rounds in (1, 50))
        assert relative(one, many) > 1e-4


def test_any_sum_is_projected():
    generator = np.random.default_rng(0)
    factors, *_ = random_case(4, 3, 1)
    wide = tensor(generator.normal(size=(4, 6))), tensor(generator.normal(size=(3, 1)))
    terms = [Spread(0.7, *factors), Spread(0.4, wide[0], None), Spread(0.2, None, wide[1]),
             Spread(0.1, *wide), Spread(0.05, None, None)]  # fmt: skip
    exact = dense_sum(terms)
    found = dense(project_sum(terms, 100))
    assert divergence(exact, found) - best_product(exact, 4, 3)[1] < 1e-10
    same = drift_forward(factors, 0.7, 0.05, terms[1:4], rounds=100)
    assert relative(dense(same), found) < 1e-7
    errors = []
    for i in range(4):
        small = [term._replace(weight=0.001 * 0.5**i * term.weight) for term in terms[1:4]]
        exact = dense_sum([Spread(1.0, *factors), *small])
        made = dense(drift_first_order(factors, 1.0, 0.0, small))
        errors.append(relative(made, flip_flop(exact, 4, 3)))
    assert orders(np.array(errors)) == pytest.approx(2, abs=0.1)
    with pytest.raises(ValueError, match="project_sum: the first of the terms"):
        project_sum(terms[1:])


def test_mixing_has_these_second_moments():
    """All signs of all entries of A and B, and of W along the roots: every moment is exact."""
    factors, *_ = random_case(2, 2, 1)
    mean = np.array([[0.5, -1.0], [2.0, 0.3]])
    a, b = 0.04, 0.09
    root = np.kron(*(r.numpy() for r in factors))
    offsets = [s * 2 * column.reshape(2, 2).T for column in root.T for s in (1, -1)]
    moments = np.zeros((4, 4))
    signs = np.array(list(itertools.product((-1, 1), repeat=4))).reshape(-1, 2, 2)
    for offset, left, right in itertools.product(offsets, signs, signs):
        w = mean + offset
        change = (np.eye(2) + a**0.5 * left) @ w @ (np.eye(2) + b**0.5 * right).T - w
        moments += np.outer(change.T.ravel(), change.T.ravel())
    moments /= len(offsets) * len(signs) ** 2
    found = dense_sum([Spread(0.0, *factors), *mixed(factors, tensor(mean), a, b)])
    np.testing.assert_allclose(found, moments, rtol=1e-12, atol=1e-14)
    alone = [mixed(factors, tensor(mean), *pair) for pair in ((a, 0.0), (0.0, b), (0.0, 0.0))]
    assert [len(spreads) for spreads in alone] == [2, 2, 0]


def test_static_dynamics_leave_roots_as_they_are():
    factors, *_ = random_case(3, 2, 1)
    for drift in (drift_first_order, drift_forward, drift_reverse):
        for found, given in zip(drift(factors, 1.0, 0.0), factors, strict=True):
            assert torch.equal(found, given)


def test_balance_changes_no_bit_of_the_product():
    factors, *_ = random_case(3, 2, 1)
    skewed = Factors(factors[0] * 2.0**90, factors[1] * 2.0**-90)
    shared = balance(skewed)
    sizes = [float(root.abs().max()) for root in shared]
    assert 1 / 2 <= sizes[0] / sizes[1] <= 2
    assert torch.equal(torch.kron(*shared), torch.kron(*factors))
    wild = torch.kron(*balance(Factors(torch.eye(2) * 1e30, torch.eye(2) * 1e8)))
    assert wild.max() < 1e10  # its square is a variance


@pytest.mark.parametrize("condition", [condition_first_order, condition_forward, condition_reverse])
def test_no_row_is_too_strong_or_too_weak(condition):
    """Roots stay regular and finite in float32, where no covariance would."""
    for size in (0.0, 1e-30, 1e-10, 1e10, 1e30):
        factors = Factors(torch.eye(4), torch.eye(3))
        generator = torch.Generator().manual_seed(0)
        x, delta = (torch.randn(9, k, generator=generator) for k in (4, 3))
        made = condition(factors, x * size, delta / max(size, 1e-20) ** 0.5)
        for root in made:
            values = torch.linalg.svdvals(root.double())
            assert torch.isfinite(root).all()
            assert values.min() > 0
        if size == 0:
            assert relative(dense(made), np.eye(12)) < 1e-6
