"""Laws of a likelihood approximation."""

from __future__ import annotations

import torch
from torch import Tensor

from filteropt.linalg import scalar
from filteropt.testing._laws import DTYPES, alike, diagonal, law, near, raw, same
from filteropt.trees import leaves, tree_map
from filteropt.types import Belief, Likelihood, Memory, Observation, State

__all__ = ["check_likelihood"]


def check_likelihood(likelihood: Likelihood) -> None:
    """Check the laws of a likelihood approximation that reads the gradient.

    The state keeps its shapes and dtypes, and inputs are left alone; gradients keep their sign, and
    a constant one is reported without bias from the first step; precisions are finite and not
    negative (unless said to be signed) up to the stated gradient limit; weights do not mix; a
    remembered curvature is the one last reported.

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
                pull, precision = obs.grad, diagonal(obs)
                law(bool((pull * grad.sign() >= 0).all()), "gradients keep their sign")
                law(bool(pull.isfinite().all()), f"the mean's pull is finite at {size:g}")
                law(bool(precision.isfinite().all()), f"Λ is finite at a gradient of {size:g}")
                fine = likelihood.signed or bool((precision >= 0).all())
                law(fine, f"Λ ≥ 0 at a gradient of {size:g}, unless it is said to be signed")
                law(same([pull[:2]], [part.grad]), "weights do not mix")
                first = observed[0].grad
                law(near(pull, first, 1e-5), "a constant gradient has no bias")


def _observe_repeatedly(likelihood: Likelihood, grad: Tensor) -> list[Observation]:
    """Five observations of one gradient, checking the state on the way."""
    p = torch.zeros_like(grad)
    like, observed = likelihood.init(p), []
    for t in range(1, 6):
        numbers = tree_map(float, likelihood.scalars(scalar(t)))
        before = [x.clone() for x in (grad, *_tensors(like))]
        obs, new = likelihood.observe(like, raw(likelihood, grad), p, Belief((), ()), numbers)
        law(same(before, (grad, *_tensors(like))), "observe changes none of its inputs")
        law(alike(_tensors(like), _tensors(new)), "the state keeps its shapes and dtypes")
        law(alike([p, p], [obs.grad, diagonal(obs)]), "the observation is like p")
        kept = likelihood.curvature(new, p, numbers)
        law((kept is not None) == likelihood.averages, "`averages` says whether Λ is remembered")
        if kept is not None:
            law(same([kept.values], [diagonal(obs)]), "the Λ remembered is the last one")
        like = new
        observed.append(obs)
    return observed


def _tensors(like: Memory) -> list[Tensor]:
    return leaves(State(Belief((), ()), like, ()))
