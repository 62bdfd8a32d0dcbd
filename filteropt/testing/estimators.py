"""Whether a likelihood's curvature is an unbiased estimate of what it stands for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from filteropt.linalg import scalar
from filteropt.testing._laws import diagonal, law, raw
from filteropt.trees import tree_map
from filteropt.types import Belief, Likelihood

__all__ = ["check_unbiased"]

SAMPLES = 20_000
STANDARD_ERRORS = 6.0


def check_unbiased(
    likelihood: Likelihood, expected: Callable[[float, float], float], *, first: int = 1
) -> None:
    r"""Check that gradient and curvature are unbiased for gradients drawn from one distribution.

    Weights serve as samples: :math:`n` of them are given independent gradients
    :math:`g \sim N(m, s^2)` at each of eight steps. At each step from ``first`` on, the mean over
    weights of what is reported must lie within six standard errors,
    :math:`6\,\hat\sigma/\sqrt n`, of what is expected: by Chebyshev's inequality an unbiased
    estimate fails with probability below 1/36 each, by the central limit theorem below 2e-9.

    Args:
        likelihood: the part, with ``scale=1``.
        expected: the curvature's expectation given m and s.
        first: the first step at which it is due (2 for one that needs two gradients).

    Raises:
        LawViolation: the estimate is biased.

    Example:
        >>> from filteropt.approximations import CentredGradient, SquaredGradient
        >>> check_unbiased(SquaredGradient(), lambda mean, std: mean**2 + std**2)
        >>> check_unbiased(CentredGradient(), lambda mean, std: std**2, first=2)
    """
    generator = torch.Generator().manual_seed(0)
    for mean, std in ((0.0, 1.0), (2.0, 0.5), (-1.0, 3.0)):
        p = torch.zeros(SAMPLES, dtype=torch.float64)
        like = likelihood.init(p)
        for t in range(1, 9):
            drawn = torch.randn(SAMPLES, dtype=torch.float64, generator=generator)
            numbers = tree_map(float, likelihood.scalars(scalar(t)))
            gathered = raw(likelihood, mean + std * drawn)
            obs, like = likelihood.observe(like, gathered, p, Belief((), ()), numbers)
            found = {"gradient": (obs.grad, mean)}
            if t >= first:
                found["curvature"] = (diagonal(obs), expected(mean, std))
            for name, (values, target) in found.items():
                error = STANDARD_ERRORS * float(values.std()) / SAMPLES**0.5
                close = abs(float(values.mean()) - target) <= error + 1e-12 * abs(target)
                law(close, f"the {name} is unbiased at step {t} for g ~ N({mean:g}, {std:g}²)")
