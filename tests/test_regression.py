"""Covariances as regressions: predicting and conditioning against explicit matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filteropt import regression
from filteropt.approximations import Diagonal
from filteropt.types import Transition

WEIGHTS = 5


def packed(matrix):
    return tuple(matrix[np.triu_indices(len(matrix))])


def rows(matrix):
    return tuple(map(tuple, matrix))


def random_form(rng, k, spread):
    """A regression of every weight, and its covariance matrices."""
    lower = np.tril(rng.standard_normal((WEIGHTS, k, k)), -1) + np.eye(k)
    scale = 10.0 ** rng.uniform(-spread, spread, (WEIGHTS, k))
    numbers = []
    for i in range(k):
        numbers += [torch.tensor(lower[:, i, j]) for j in range(i)] + [torch.tensor(scale[:, i])]
    cov = regression.form(k)(*numbers)
    return cov, (lower * scale[:, None, :]) @ lower.transpose(0, 2, 1)


def random_noise(rng, k, rank):
    root = rng.standard_normal((k, rank))
    return root @ root.T


def observed(cov, precision):
    """(P^-1 + h e0 e0')^-1 for one matrix, by Sherman and Morrison."""
    return cov - np.outer(cov[:, 0], cov[0]) * precision / (1 + precision * cov[0, 0])


def close(found, expected, rtol=1e-10):
    """Entries relative to the two standard deviations that they are about."""
    spread = np.sqrt(np.einsum("...ii->...i", expected))
    unit = spread[..., :, None] * spread[..., None, :]
    np.testing.assert_allclose(found.numpy() / unit, expected / unit, rtol=0, atol=rtol)


def full_rank(rng, k, observed_weight):
    """A transition matrix; the others do not depend on the weight if its mean is the parameter."""
    factor = rng.standard_normal((k, k)) + 2 * np.eye(k)
    if observed_weight:
        factor[1:, 0] = 0.0
    return factor


@settings(max_examples=300, deadline=None)
@given(
    k=st.integers(1, 4),
    rank=st.integers(0, 4),
    spread=st.sampled_from([0.0, 2.0]),
    feels=st.booleans(),
    c=st.sampled_from([1.0, 0.5, 1.25]),
    pull=st.sampled_from([None, 0.0, 0.3]),
    tensors=st.booleans(),
    seed=st.integers(0, 10**9),
)
def test_predict_is_the_matrix_algebra(k, rank, spread, feels, c, pull, tensors, seed):
    rng = np.random.default_rng(seed)
    cov, matrices = random_form(rng, k, spread)
    factor = full_rank(rng, k, not feels)
    noise = random_noise(rng, k, min(rank, k))
    expected = c * factor @ matrices @ factor.T + noise
    if pull is not None:
        expected = np.stack([observed(m, pull) for m in expected])
    transition = Transition(rows(factor), packed(noise), c, pull=pull)
    if tensors:
        transition = Transition(
            tuple(tuple(map(torch.tensor, row)) for row in factor),
            tuple(map(torch.tensor, packed(noise))),
            torch.tensor(c, dtype=torch.float64),
            pull=pull,
        )
    found = regression.predict(cov, transition)
    condition_number = np.linalg.cond(factor) ** 2
    close(regression.covariance(found), expected, 1e-13 * max(100.0, condition_number))
    assert all((x > 0).all() for name, x in found._asdict().items() if "slope" not in name)


@settings(max_examples=200, deadline=None)
@given(
    k=st.integers(1, 4),
    log_h=st.floats(-6, 6),
    zero=st.booleans(),
    seed=st.integers(0, 10**9),
)
def test_condition_is_the_matrix_algebra(k, log_h, zero, seed):
    rng = np.random.default_rng(seed)
    cov, matrices = random_form(rng, k, 1.0)
    h = 10.0**log_h * rng.uniform(0.1, 1.0, WEIGHTS) * (not zero)
    posterior, column = regression.condition(cov, torch.tensor(h))
    direct = np.stack(
        [
            np.linalg.inv(np.linalg.inv(m) + x * np.diag(np.eye(k)[0]))
            for m, x in zip(matrices, h, strict=True)
        ]
    )
    tolerance = 1e-14 * max(100.0, np.linalg.cond(matrices).max(), h.max() * matrices.max())
    if tolerance < 1e-6:
        close(regression.covariance(posterior), direct, tolerance)
    exact = np.stack([observed(m, x) for m, x in zip(matrices, h, strict=True)])
    close(regression.covariance(posterior), exact, 1e-8)
    for i in range(k):
        np.testing.assert_allclose(column[i].numpy(), exact[:, 0, i], rtol=1e-4)
    changed = [not torch.equal(a, b) for a, b in zip(cov, posterior, strict=True)]
    assert not any(changed[1:])


def test_forms_are_named_and_of_k_k_plus_1_over_2_numbers():
    assert regression.form(1)._fields == ("variance",)
    names = ["variance", "slope_10", "residual_1", "slope_20", "slope_21", "residual_2"]
    assert list(regression.form(3)._fields) == names
    ones = torch.ones(2)
    made = regression.independent([ones, 2 * ones, 3 * ones])
    torch.testing.assert_close(
        regression.covariance(made), torch.diag(torch.tensor([1.0, 2.0, 3.0])).expand(2, 3, 3)
    )


@pytest.mark.parametrize("k", [2, 3, 5])
def test_forms_and_means_share_no_tensors(k):
    """They are updated in place, one by one."""
    form = regression.independent([torch.ones(2)] * k)
    made = [x for name, x in form._asdict().items() if "slope" in name]
    made += Diagonal().init(torch.ones(2), 1.0, k).aux
    assert len({x.data_ptr() for x in made}) == len(made) == k * (k - 1) // 2 + k - 1


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("variance", [1e-37, 1.0, 1e19])
def test_priors_stay_where_they_and_their_squares_are_numbers(k, factor, variance):
    cov = regression.independent([torch.full((3,), variance)] * k)
    turn = tuple(tuple(factor * float(i <= j) for j in range(k)) for i in range(k))
    prior = regression.predict(cov, Transition(F=turn, Q=(0.0,) * (k * (k + 1) // 2)))
    tiny = torch.finfo(torch.float32).tiny
    for name, x in prior._asdict().items():
        assert x.isfinite().all()
        if not name.startswith("slope"):
            assert (x >= tiny).all()
            assert (x * x).isfinite().all()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("slope", [1e6, -1e12])
@pytest.mark.parametrize("variance", [1e-37, 1.0, 1e18])
def test_steep_regressions_overflow_into_bounds(k, slope, variance):
    slopes = [[torch.full((3,), slope)] * i for i in range(k)]
    cov = regression._pack(slopes, [torch.full((3,), variance)] * k)
    turn = tuple(tuple(float(i <= j) for j in range(k)) for i in range(k))
    for noise in (0.0, 1e-6):
        q = (noise,) + (0.0,) * (k * (k + 1) // 2 - 1)
        prior = regression.predict(cov, Transition(F=turn, Q=q))
        assert all(x.isfinite().all() for x in prior)
