"""Laws that any part must obey, as checkers for your own dynamics, likelihoods and posteriors.

Each checker takes a part through its laws and raises :class:`LawViolation`, an ``AssertionError``
whose message states the law that broke.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from filteropt.linalg import scalar
from filteropt.trees import tree_map
from filteropt.types import (
    Belief,
    Diag,
    Dynamics,
    Flow,
    Likelihood,
    Observation,
    Posterior,
    Raw,
    Transition,
)

__all__ = ["LawViolation", "check_dynamics", "check_likelihood", "check_posterior"]

STATIC = Transition(F=((1.0,),), Q=(0.0,))
DRIFT = Transition(F=((0.99,),), Q=(1e-4,), flow=Flow(rate=0.02, noise=1e-4))
PRECISIONS = (0.0, 1e-30, 1e-3, 1.0, 1e3, 1e15, 1e30)
DTYPES = (torch.float64, torch.float32)


class LawViolation(AssertionError):  # ruff: ignore[error-suffix-on-exception-name] - the name states the fact
    """A part broke a law; the message says which."""


def check_dynamics(dynamics: Dynamics) -> None:
    """Check the laws of a dynamics prior.

    F is k×k and Q packed; every number is finite and depends on the step alone; Q is positive
    semi-definite and c positive, so that propagated covariances are positive definite; a stated
    continuous-time limit agrees with the transition to first order in the step.

    Args:
        dynamics: the part.

    Raises:
        LawViolation: the law that broke.

    Example:
        >>> from filteropt.models import FixedNoise
        >>> check_dynamics(FixedNoise(lr=1e-3, prior_variance=0.1))
    """
    k = dynamics.k
    for t in (1, 2, 10, 1000):
        transition = dynamics.transition(scalar(t))
        _law(isinstance(transition, Transition), "transition(t) returns a Transition")
        _law([len(row) for row in transition.F] == [k] * k, f"F has {k} rows of {k} numbers")
        _law(len(transition.Q) == k * (k + 1) // 2, f"Q has {k * (k + 1) // 2} numbers")
        numbers = _flat(transition)
        _law(all(map(math.isfinite, numbers)), "every number of the transition is finite")
        _law(numbers == _flat(dynamics.transition(scalar(t))), "equal steps, equal transitions")
        _law(float(transition.c) > 0, "c is positive")
        factor, noise = _dense(transition)
        eigenvalues = torch.linalg.eigvalsh(noise)
        _law(bool(eigenvalues.min() >= -1e-12 * eigenvalues.max()), "Q is positive semi-definite")
        for seed in range(3):
            prior = float(transition.c) * factor @ _covariance(k, seed) @ factor.T + noise
            lowest = torch.linalg.eigvalsh(prior).min()
            _law(bool(lowest > 0), "propagated covariances are positive definite")
        if transition.flow is not None and k == 1:
            _check_flow(transition, transition.flow)


def _check_flow(transition: Transition, flow: Flow) -> None:
    lost = 1 - float(transition.c * transition.F[0][0] ** 2)
    rate, noise = float(flow.rate), float(flow.noise)
    _law(abs(rate - lost) <= rate**2 + 1e-12, "flow.rate is 1 - cF² to first order")
    gap = abs(noise - float(transition.Q[0]))
    _law(gap <= (rate + 1e-12) * noise, "flow.noise is Q to first order")


def check_likelihood(likelihood: Likelihood) -> None:
    """Check the laws of a likelihood approximation that reads the gradient.

    The state keeps its shapes and dtypes, and inputs are left alone; gradients keep their sign, and
    a constant one is reported without bias from the first step; precisions are finite and not
    negative up to the stated gradient limit; weights do not mix; a remembered curvature is the one
    last reported.

    Args:
        likelihood: the part.

    Raises:
        LawViolation: the law that broke.

    Example:
        >>> from filteropt.approximations import SquaredGradient
        >>> check_likelihood(SquaredGradient(scale=128, beta1=0.9))
    """
    for dtype in DTYPES:
        for size in (0.0, 1e-3, 1.0, likelihood.gradient_limit(dtype)):
            grad = size * torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=dtype)
            observed = _observe_repeatedly(likelihood, grad)
            alone = _observe_repeatedly(likelihood, grad[:2])
            for obs, part in zip(observed, alone, strict=True):
                pull, precision = obs.grad, obs.curvature.values
                _law(bool((pull * grad.sign() >= 0).all()), "gradients keep their sign")
                _law(bool(pull.isfinite().all()), f"the mean's pull is finite at {size:g}")
                finite = (precision >= 0) & precision.isfinite()
                _law(bool(finite.all()), f"0 ≤ Λ < ∞ at a gradient of {size:g}")
                _law(_same([pull[:2]], [part.grad]), "weights do not mix")
                first = observed[0].grad
                _law(torch.allclose(pull, first, rtol=1e-5), "a constant gradient has no bias")


def _observe_repeatedly(likelihood: Likelihood, grad: Tensor) -> list[Observation]:
    """Five observations of one gradient, checking the state on the way."""
    p = torch.zeros_like(grad)
    like, observed = likelihood.init(p), []
    for t in range(1, 6):
        numbers = tree_map(float, likelihood.scalars(scalar(t)))
        before = [x.clone() for x in (grad, *like)]
        obs, new = likelihood.observe(like, Raw(grad), p, Belief((), ()), numbers)
        _law(_same(before, (grad, *like)), "observe changes none of its inputs")
        _law(_alike(like, new), "the state keeps its shapes and dtypes")
        _law(_alike([p, p], [obs.grad, obs.curvature.values]), "the observation is like p")
        kept = likelihood.curvature(new, numbers)
        _law((kept is not None) == likelihood.averages, "`averages` says whether Λ is remembered")
        if kept is not None:
            _law(_same([kept.values], [obs.curvature.values]), "the Λ remembered is the last one")
        like = new
        observed.append(obs)
    return observed


def check_posterior(posterior: Posterior) -> None:
    """Check the laws of a posterior family with one latent and diagonal curvature.

    Variances stay positive and finite for precisions from 0 to 1e30; more evidence never leaves
    more variance; the mean moves against the gradient, and only then; inputs are left alone.
    Families that filter (rather than rest at a fixed point) also find that conditioning never adds
    variance, two observations of precision Λ/2 equal one of Λ, independent observations commute,
    and static dynamics leave a belief as it is.

    Args:
        posterior: the part.

    Raises:
        LawViolation: the law that broke.

    Example:
        >>> from filteropt.approximations import Diagonal
        >>> check_posterior(Diagonal())
    """
    for dtype in DTYPES:
        precision = torch.tensor(PRECISIONS, dtype=dtype)
        start = posterior.init(torch.zeros_like(precision), 0.5, 1)
        _, prior = posterior.propagate(start, DRIFT)
        before = [x.clone() for x in prior.cov]
        gradient = torch.ones_like(precision)
        disp, belief = posterior.condition(0.0, prior, _obs(gradient, precision), DRIFT)
        _law(_same(before, prior.cov), "condition changes none of its inputs")
        _law(_alike(prior.cov, belief.cov), "the belief keeps its shapes and dtypes")
        _law(_alike([precision], [disp]), "the displacement is like p")
        _law(bool((disp < 0).all()), "the mean moves against the gradient")
        still, _ = posterior.condition(0.0, prior, _obs(0 * gradient, precision), DRIFT)
        _law(bool((still == 0).all()), "no gradient, no motion")
        variance = posterior.variance(belief, Diag(precision), DRIFT)
        _law(bool((variance > 0).all() and variance.isfinite().all()), "variances are in (0, ∞)")
        _law(bool((variance.diff() <= 0).all()), "more evidence never leaves more variance")
        if not posterior.stationary:
            _check_filtering(posterior, start, prior, precision)


def _check_filtering(posterior: Posterior, start: Belief, prior: Belief, precision: Tensor) -> None:
    after = _condition_all(posterior, prior, [precision])
    held = posterior.variance(prior, None, STATIC)
    _law(bool((after <= held).all()), "conditioning never adds variance")
    halves = _condition_all(posterior, prior, [precision / 2, precision / 2])
    _law(_near(halves, after), "two observations of precision Λ/2 equal one of Λ")
    other = precision.flip(0)
    one_way = _condition_all(posterior, prior, [precision, other])
    _law(_near(one_way, _condition_all(posterior, prior, [other, precision])),
         "independent observations commute")  # fmt: skip
    _, aged = posterior.propagate(start, STATIC)
    _law(_same(start.cov, aged.cov), "static dynamics leave a belief as it is")


def _condition_all(posterior: Posterior, belief: Belief, precisions: list[Tensor]) -> Tensor:
    """The variance after conditioning on one observation after the other."""
    for precision in precisions:
        obs = _obs(torch.zeros_like(precision), precision)
        _, belief = posterior.condition(0.0, belief, obs, STATIC)
    return posterior.variance(belief, None, STATIC)


def _obs(gradient: Tensor, precision: Tensor) -> Observation:
    return Observation(gradient, Diag(precision))


def _flat(transition: Transition) -> list[float]:
    numbers: list[float] = []
    tree_map(lambda x: numbers.append(float(x)), transition)
    return numbers


def _dense(transition: Transition) -> tuple[Tensor, Tensor]:
    """F and Q as k×k float64 matrices."""
    rows = [[float(x) for x in row] for row in transition.F]
    upper = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    i, j = torch.triu_indices(len(rows), len(rows))
    upper[i, j] = torch.tensor([float(x) for x in transition.Q], dtype=torch.float64)
    return torch.tensor(rows, dtype=torch.float64), upper + upper.triu(1).T


def _covariance(k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(k, k, dtype=torch.float64, generator=generator)
    return root @ root.T + 1e-3 * torch.eye(k, dtype=torch.float64)


def _same(xs: Iterable[Tensor], ys: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def _near(x: Tensor, y: Tensor) -> bool:
    return torch.allclose(x, y, rtol=1e-12 if x.dtype == torch.float64 else 1e-5, atol=0)


def _alike(xs: Iterable[Tensor], ys: Iterable[Tensor]) -> bool:
    return all(x.shape == y.shape and x.dtype == y.dtype for x, y in zip(xs, ys, strict=True))


def _law(holds: bool, law: str) -> None:
    if not holds:
        raise LawViolation(f"broken law: {law}")
