"""Laws of a posterior family."""

from __future__ import annotations

import torch
from torch import Tensor

from filteropt.testing._laws import DTYPES, alike, law, near, same
from filteropt.testing._matrix_posterior import check_matrices
from filteropt.testing.dynamics import compose
from filteropt.types import (
    Belief,
    Diag,
    Flow,
    LowRank,
    Observation,
    Outer,
    Posterior,
    Transition,
)

__all__ = ["check_posterior"]

PULLED = Transition(F=((1.0,),), Q=(0.0,), c=1.25, pull=0.4)
STATIC = Transition(F=((1.0,),), Q=(0.0,))
DRIFT = Transition(F=((0.99,),), Q=(1e-4,), flow=Flow(rate=0.02, noise=1e-4))
FADING = Transition(F=((1.0,),), Q=(0.0,), c=1.25)
PRECISIONS = (0.0, 1e-30, 1e-3, 1.0, 1e3, 1e15, 1e30)


def check_posterior(posterior: Posterior) -> None:
    """Check the laws of a posterior family with one latent and diagonal curvature.

    Variances stay positive and finite for precisions from 0 to 1e30; more evidence never leaves
    more variance; the mean moves against the gradient, and only then; inputs are left alone.
    Families that filter also find that conditioning never adds variance, two observations of
    precision Λ/2 equal one of Λ, independent observations commute, static dynamics leave a belief
    as it is, two steps of ageing equal the composed one, and covariances stay symmetric and
    positive definite. Those that rest at a fixed point find that it is the recursion's. Those that
    take low-rank curvature turn with their coordinates, and with families that treat every weight
    on its own they are the scalar filter on separable problems. Those that are Bayes' rule to first
    order in the evidence only are held to that order. Families that take no drifting dynamics are
    shown dynamics that forget to a prior. Families of weight matrices, whose curvature is that of a
    layer's rows, have laws of their own: turning inputs and outputs turns both factors, draws have
    their covariance, conditioning lowers the volume, noise raises it, and a matrix of one weight is
    the scalar filter to first order in the evidence.

    Args:
        posterior: the part.

    Raises:
        LawViolation: the law that broke.

    Example:
        >>> from filteropt.approximations import Diagonal
        >>> check_posterior(Diagonal())
    """
    if posterior.accepts == (Outer,):
        check_matrices(posterior)
        return
    ageing = DRIFT if posterior.objection(DRIFT) is None else PULLED
    for dtype in DTYPES:
        precision = torch.tensor(PRECISIONS, dtype=dtype)
        start = posterior.init(torch.zeros_like(precision), 0.5, 1)
        _, prior = posterior.propagate(start, ageing)
        before = [x.clone() for x in prior.cov]
        gradient = torch.ones_like(precision)
        disp, belief = posterior.condition(0.0, prior, _obs(gradient, precision), ageing)
        law(same(before, prior.cov), "condition changes none of its inputs")
        law(alike(start.cov, belief.cov), "the belief keeps its shapes and dtypes")
        law(alike([precision], [disp]), "the displacement is like p")
        law(bool((disp < 0).all()), "the mean moves against the gradient")
        still, _ = posterior.condition(0.0, prior, _obs(0 * gradient, precision), ageing)
        law(bool((still == 0).all()), "no gradient, no motion")
        variance = posterior.variance(belief, Diag(precision), ageing)
        law(bool((variance > 0).all() and variance.isfinite().all()), "variances are in (0, ∞)")
        law(bool((variance.diff() <= 0).all()), "more evidence never leaves more variance")
        if posterior.stationary:
            _check_rest(posterior, dtype)
            continue
        if ageing is PULLED:
            continue
        if posterior.exact:
            _check_filtering(posterior, start, prior, precision)
        else:
            _check_first_order(posterior, dtype)
        _check_definite(posterior, dtype)
        if LowRank in posterior.accepts:
            _check_correlations(posterior, dtype)


def _check_first_order(posterior: Posterior, dtype: torch.dtype) -> None:
    """Small evidence changes the precision as Bayes' rule does, up to its square."""
    sizes = torch.tensor([1e-1, 1e-2, 1e-3], dtype=dtype)
    start = posterior.init(torch.zeros_like(sizes), 1.0, 1)
    _, prior = posterior.propagate(start, STATIC)
    for sign in (1.0, -1.0) if posterior.signed else (1.0,):
        _, belief = posterior.condition(0.0, prior, _obs(0 * sizes, sign * sizes), STATIC)
        error = (1 / posterior.variance(belief, None, STATIC) - (1 + sign * sizes)).abs()
        rounding = 8 * torch.finfo(dtype).eps
        law(bool((error <= sizes.square() + rounding).all()), "Bayes' rule to first order")


def _check_filtering(posterior: Posterior, start: Belief, prior: Belief, precision: Tensor) -> None:
    after = _condition_all(posterior, prior, [precision])
    held = posterior.variance(prior, None, STATIC)
    rounding = 1 + 4 * torch.finfo(held.dtype).eps
    law(bool((after <= held * rounding).all()), "conditioning never adds variance")
    halves = _condition_all(posterior, prior, [precision / 2, precision / 2])
    law(near(halves, after), "two observations of precision Λ/2 equal one of Λ")
    other = precision.flip(0)
    one_way = _condition_all(posterior, prior, [precision, other])
    law(near(one_way, _condition_all(posterior, prior, [other, precision])),
         "independent observations commute")  # fmt: skip
    if posterior.elementwise or LowRank in posterior.accepts:
        law(near(after, 1 / (1 / held + precision)), "on separable problems, the scalar filter")
    _, aged = posterior.propagate(start, STATIC)
    law(same(start.cov, aged.cov), "static dynamics leave a belief as it is")
    for first, then in ((DRIFT, FADING), (FADING, DRIFT), (DRIFT, DRIFT)):
        _, halfway = posterior.propagate(start, first)
        _, twice = posterior.propagate(halfway, then)
        _, once = posterior.propagate(start, compose(first, then))
        law(near(posterior.variance(twice, None, STATIC), posterior.variance(once, None, STATIC)),
            "two steps of ageing equal the composed one")  # fmt: skip


def _condition_all(posterior: Posterior, belief: Belief, precisions: list[Tensor]) -> Tensor:
    """The variance after conditioning on one observation after the other."""
    for precision in precisions:
        obs = _obs(torch.zeros_like(precision), precision)
        _, belief = posterior.condition(0.0, belief, obs, STATIC)
    return posterior.variance(belief, None, STATIC)


def _obs(gradient: Tensor, precision: Tensor) -> Observation:
    return Observation(gradient, Diag(precision))


def _check_rest(posterior: Posterior, dtype: torch.dtype) -> None:
    """The fixed point is where the scalar recursion goes, up to the first order of a small step."""
    precision = torch.tensor([0.0, 1e-2, 1.0, 1e2], dtype=dtype)
    rest = posterior.variance(Belief((), ()), Diag(precision), DRIFT)
    ((factor,),), (noise,) = DRIFT.F, DRIFT.Q
    variance = torch.full_like(precision, 0.005)
    for _ in range(2000):
        prior = factor**2 * variance + noise
        variance = prior / (1 + precision * prior)
    order = 0.02 + (noise * precision).sqrt()
    law(
        bool(((rest / variance - 1).abs() <= order).all()), "a fixed point is the recursion's limit"
    )


def _check_definite(posterior: Posterior, dtype: torch.dtype) -> None:
    """A hundred steps of random precisions over twelve decades."""
    generator = torch.Generator().manual_seed(0)
    belief = posterior.init(torch.zeros(4, dtype=dtype), 0.5, 1)
    for _ in range(100):
        _, belief = posterior.propagate(belief, DRIFT)
        scales = 10 ** (12 * torch.rand(4, dtype=dtype, generator=generator) - 6)
        obs = _obs(scales.sqrt(), scales)
        if LowRank in posterior.accepts:
            row = torch.randn(1, 4, dtype=dtype, generator=generator) * scales.sqrt()
            obs = Observation(row[0], LowRank(row))
        _, belief = posterior.condition(0.0, belief, obs, DRIFT)
        covariance = posterior.covariance(belief, Diag(scales), DRIFT).double()
        law(near(covariance, covariance.mT), "covariances stay symmetric")
        lowest = torch.linalg.eigvalsh(covariance).min()
        law(bool(lowest > 0), "covariances stay positive definite")


def _check_correlations(posterior: Posterior, dtype: torch.dtype) -> None:
    """Turning the coordinates turns displacement and covariance."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(4, dtype=dtype, generator=generator)
    rows = torch.randn(2, 4, dtype=dtype, generator=generator)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=dtype, generator=generator)).Q
    start = posterior.init(grad, 0.5, 1)
    _, prior = posterior.propagate(start, DRIFT)
    disp, belief = posterior.condition(0.0, prior, Observation(grad, LowRank(rows)), DRIFT)
    turned = Observation(turn @ grad, LowRank(rows @ turn.T))
    disp_turned, belief_turned = posterior.condition(0.0, prior, turned, DRIFT)
    covariance = posterior.covariance(belief, None, DRIFT)
    found = posterior.covariance(belief_turned, None, DRIFT)
    rtol = 1e-10 if dtype == torch.float64 else 1e-4
    law(near(disp_turned, turn @ disp, rtol, rtol), "displacements turn with the coordinates")
    law(near(found, turn @ covariance @ turn.T, rtol, rtol), "covariances turn, too")
