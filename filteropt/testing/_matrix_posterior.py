"""Laws of a posterior family of weight matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from filteropt.testing._laws import DTYPES, alike, law, near, same
from filteropt.types import Belief, Observation, Outer, Posterior, Transition

__all__ = ["check_matrices"]

STATIC = Transition(F=((1.0,),), Q=(0.0,))
DRIFT = Transition(F=((0.99,),), Q=(1e-4,))
SIZES = (0.0, 1e-15, 1e-3, 1.0, 1e3, 1e7, 1e15)


def check_matrices(posterior: Posterior) -> None:
    """Check the laws of a posterior family whose curvature is that of a layer's rows.

    Args:
        posterior: the part.

    Raises:
        LawViolation: the law that broke.
    """
    for dtype in DTYPES:
        p = torch.zeros(3, 2, 2, dtype=dtype)
        start = posterior.init(p, 0.5, 1)
        _, prior = posterior.propagate(start, DRIFT, p)
        _, still = posterior.propagate(start, STATIC, p)
        law(same(start.cov, still.cov), "static dynamics leave a belief as it is")
        larger = _volume(posterior, prior) > 12 * torch.tensor(0.5 * 0.99**2).log()
        law(bool(larger), "noise raises the volume")
        for size in SIZES:
            for rows in (1, 2, 20):
                _check_condition(posterior, prior, p, rows, size)
        _check_turned(posterior, dtype)
        _check_draws(posterior, prior)
        _check_definite(posterior, dtype)
        _check_one_weight(posterior, dtype)


def _check_condition(
    posterior: Posterior, prior: Belief, p: Tensor, rows: int, size: float
) -> None:
    before = [x.clone() for x in prior.cov]
    obs = _obs(p, rows, size, seed=rows)
    disp, belief = posterior.condition(0.0, prior, obs, DRIFT)
    law(same(before, prior.cov), "condition changes none of its inputs")
    law(alike(prior.cov, belief.cov), "the belief keeps its shapes and dtypes")
    law(alike([p], [disp]), "the displacement is like p")
    law(bool((disp * obs.grad).sum() < 0), "the mean moves against the gradient")
    still, _ = posterior.condition(0.0, prior, obs._replace(grad=0 * p), DRIFT)
    law(bool((still == 0).all()), "no gradient, no motion")
    variance = posterior.variance(belief, None, DRIFT)
    law(variance.numel() == p.numel(), "there is a variance for every weight")
    law(bool((variance > 0).all() and variance.isfinite().all()), "variances are in (0, ∞)")
    rounding = 1e-4 if p.dtype == torch.float32 else 1e-9
    lower = _volume(posterior, belief) <= _volume(posterior, prior) + rounding
    law(bool(lower), "conditioning never adds volume")


def _check_turned(posterior: Posterior, dtype: torch.dtype) -> None:
    """Turned inputs and outputs have a turned displacement and turned factors."""
    p = torch.zeros(3, 4, dtype=dtype)
    obs = _obs(p, 5, 1.0, seed=1)
    assert isinstance(obs.curvature, Outer)
    turn_x, turn_y = (torch.linalg.qr(_randn(p, n, n, seed=n)).Q for n in (4, 3))
    inputs, deltas = obs.curvature
    turned = Observation(
        turn_y @ obs.grad @ turn_x.mT, Outer(inputs @ turn_x.mT, deltas @ turn_y.mT)
    )
    found = []
    for seen in (obs, turned):
        _, prior = posterior.propagate(posterior.init(p, 0.5, 1), DRIFT, p)
        disp, belief = posterior.condition(0.0, prior, seen, DRIFT)
        _, belief = posterior.propagate(belief, DRIFT, p)
        found.append((disp, *_factors(posterior, belief)))
    (disp, x, y), (disp_turned, x_turned, y_turned) = found
    close = 1e-3 if dtype == torch.float32 else 1e-6  # of the rounds' stopping, too
    law(near(disp_turned, turn_y @ disp @ turn_x.mT, close, close), "displacements turn")
    turn_x, turn_y = turn_x.to(x.dtype), turn_y.to(x.dtype)
    product = torch.kron(turn_x @ x @ turn_x.mT, turn_y @ y @ turn_y.mT)
    law(near(torch.kron(x_turned, y_turned), product, close, close), "covariances turn, too")


def _check_draws(posterior: Posterior, prior: Belief) -> None:
    """The draws of all unit vectors are a root of the covariance; its diagonal, the variances."""
    p = prior.cov[0].new_zeros(3, 4)
    _, belief = posterior.condition(0.0, posterior.init(p, 0.5, 1), _obs(p, 2, 3.0, 5), DRIFT)
    eyes = torch.eye(12, dtype=p.dtype).reshape(12, 3, 4)
    drawn = torch.stack([posterior.sample(belief, None, DRIFT, eps) for eps in eyes])
    root = drawn.mT.reshape(12, 12)  # weights column by column
    x, y = _factors(posterior, belief)
    law(
        near((root.mT @ root).to(x.dtype), torch.kron(x, y), 1e-4, 1e-6),
        "draws have their covariance",
    )
    variance = posterior.variance(belief, None, DRIFT)
    law(
        near(torch.outer(y.diagonal(), x.diagonal()), variance.to(x.dtype), 1e-5),
        "a covariance's diagonal",
    )


def _check_definite(posterior: Posterior, dtype: torch.dtype) -> None:
    """Fifty steps of random rows over twelve decades."""
    p = torch.zeros(3, 4, dtype=dtype)
    belief = posterior.init(p, 0.5, 1)
    for step in range(50):
        _, belief = posterior.propagate(belief, DRIFT, p)
        size = 10.0 ** (step * 7 % 13 - 6)
        _, belief = posterior.condition(0.0, belief, _obs(p, 2, size, step), DRIFT)
        for factor in _factors(posterior, belief):
            law(near(factor, factor.mT), "factors stay symmetric")
            values = torch.linalg.eigvalsh(factor.double())
            rounding = 8 * torch.finfo(factor.dtype).eps * values.max()
            law(bool(values.min() > -rounding), "factors stay positive, up to rounding")
            law(bool(factor.diagonal().min() > 0), "variances stay positive")


def _check_one_weight(posterior: Posterior, dtype: torch.dtype) -> None:
    """A matrix of one weight has a scalar's variance, up to the square of the evidence."""
    p = torch.zeros(1, 1, dtype=dtype)
    for size in (1e-1, 1e-2, 1e-3):
        obs = Observation(p, Outer(p + size**0.5, p + 1))
        _, belief = posterior.condition(0.0, posterior.init(p, 1.0, 1), obs, STATIC)
        error = float(1 / posterior.variance(belief, None, STATIC)) - (1 + size)
        rounding = 16 * torch.finfo(dtype).eps
        law(abs(error) <= size**2 + rounding, "Bayes' rule to first order")


def _obs(p: Tensor, rows: int, size: float, seed: int) -> Observation:
    """Random rows of this size, and a gradient."""
    flat = p.flatten(1)
    inputs = size**0.5 * _randn(p, rows, flat.shape[1], seed=seed)
    deltas = size**0.5 * _randn(p, rows, flat.shape[0], seed=seed + 1)
    grad = _randn(p, *p.shape, seed=seed + 2)
    return Observation(grad, Outer(inputs, deltas))


def _randn(like: Tensor, *shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=like.dtype, generator=generator)


def _factors(posterior: Posterior, belief: Belief) -> tuple[Tensor, Tensor]:
    """Σx and Σδ."""
    x, y = posterior.covariance(belief, None, DRIFT)
    return x, y


def _volume(posterior: Posterior, belief: Belief) -> Tensor:
    """The logarithm of the covariance's determinant."""
    x, y = (_spectrum(factor).log() for factor in _factors(posterior, belief))
    return len(y) * x.sum() + len(x) * y.sum()


def _spectrum(factor: Tensor) -> Tensor:
    """The eigenvalues, as far as they are known in this precision."""
    values = torch.linalg.eigvalsh(factor.double())
    return torch.maximum(values, torch.finfo(factor.dtype).eps * values.max())
