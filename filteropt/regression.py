r"""Covariances of k latents per weight as regressions, :math:`\Sigma = LDL^\top`, weight first.

Latent i is :math:`\sum_{j<i} L_{ij} u_j + u_i` with independent :math:`u_j` of variance
:math:`D_j`, so a covariance is positive by form as long as its variances are. A gradient speaks of
the weight alone, which is :math:`u_0`: conditioning changes one number.
"""

from __future__ import annotations

import functools
import operator
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from filteropt.dtypes import squarable
from filteropt.linalg import factor_noise, predict_variance
from filteropt.types import (
    Belief,
    Diag,
    Leaves,
    Observation,
    Rows,
    Scalar,
    Transition,
)

__all__ = [
    "carry",
    "condition",
    "covariance",
    "drift",
    "feels_weight",
    "independent",
    "move",
    "observed",
    "pack",
    "predict",
    "transport",
]


@functools.cache
def form(k: int) -> Any:
    """The NamedTuple of L's entries below the diagonal and of D, row by row, for k latents."""
    rows = [[*(f"slope_{i}{j}" for j in range(i)), f"residual_{i}"] for i in range(k)]
    rows[0] = ["variance"]
    return namedtuple("Regression", [name for row in rows for name in row])


def feels_weight(transition: Transition) -> str | None:
    """Why dynamics whose other latents depend on the weight's mean, the parameter, do not fit."""
    if any(float(row[0]) for row in transition.F[1:]):
        return "its other latents depend on the weight itself, whose mean is the parameter"
    return None


def pack(variance: Tensor, slope: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
    """The form of two latents."""
    return _pack([[], [slope]], [variance, residual])


def independent(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The form of independent latents with these variances."""
    k = len(variances)
    slopes = [[torch.zeros_like(variances[0]) for _ in range(i)] for i in range(k)]
    return _pack(slopes, list(variances))


def _size(cov: Sequence[Tensor]) -> int:
    return int((2 * len(cov)) ** 0.5)


def _unpack(cov: Sequence[Tensor]) -> tuple[list[list[Tensor]], list[Tensor]]:
    """L's rows below the diagonal, and D."""
    rest, slopes, variances = iter(cov), [], []
    for i in range(_size(cov)):
        slopes.append([next(rest) for _ in range(i)])
        variances.append(next(rest))
    return slopes, variances


def _pack(slopes: list[list[Tensor]], variances: list[Tensor]) -> tuple[Tensor, ...]:
    numbers = [x for row, d in zip(slopes, variances, strict=True) for x in (*row, d)]
    made: tuple[Tensor, ...] = form(len(variances))(*numbers)
    return made


def predict(cov: Sequence[Tensor], transition: Transition) -> tuple[Tensor, ...]:
    r"""The prior of the next step, :math:`((cFLDL^\top F^\top + Q)^{-1} + R\,e_0e_0^\top)^{-1}`.

    The rows of :math:`(FL,\ G)`, with weights :math:`(cD,\ q)` and :math:`Q = G\,\mathrm{diag}(q)
    G^\top`, are made orthogonal from the first on by square-root-free rotations. Each is a scalar
    Kalman update in which nothing is subtracted from a variance, so that every new one is a sum of
    non-negative terms.

    Derived in :eq:`eq-regression-predict`.

    Args:
        cov: the form of k latents.
        transition: the dynamics.

    Returns:
        The form of the prior.
    """
    if len(cov) == 1:
        return _pack([[]], [predict_variance(cov[0], transition)])
    slopes, variances = _unpack(cov)
    weights, k = [transition.c * x for x in variances], len(variances)
    info, most = torch.finfo(variances[0].dtype), squarable(variances[0].dtype)
    noise_slopes, noise = factor_noise(transition.Q, k)
    columns = [[_entry(transition.F, slopes, i, j) for i in range(k)] for j in range(k)]
    new_slopes: list[list[Tensor]] = [[] for _ in range(k)]
    new_variances = []
    for i in range(k):
        pivot: Any = noise[i]
        below: list[Any] = [noise_slopes[m][i] for m in range(i + 1, k)]
        for j, column in enumerate(columns):
            y = column[i]
            weighted = y * weights[j]
            total = pivot + weighted * y
            if j == 0:  # what is added later is not negative
                total = total.clamp_min(info.tiny)
            if i + 1 < k:
                total = total.clamp_max(info.max)  # whose inverse and itself are numbers
                inverse = total.reciprocal()
                for n, m in enumerate(range(i + 1, k)):
                    column[m] = column[m] - y * below[n]
                    below[n] = below[n] + weighted * inverse * column[m]
                weights[j] = weights[j] * (pivot * inverse)
            pivot = total
        pivot = pivot.clamp_max(most)
        new_variances.append(pivot)
        for n, m in enumerate(range(i + 1, k)):
            new_slopes[m].append(below[n])
    if transition.pull is not None:
        new_variances[0] = new_variances[0] / (1 + transition.pull * new_variances[0])
    return _pack(new_slopes, new_variances)


def _entry(rows: Rows, slopes: list[list[Tensor]], i: int, j: int) -> Any:
    """Entry (i, j) of F L."""
    entry: Any = rows[i][j]
    for m in range(j + 1, len(slopes)):
        entry = entry + rows[i][m] * slopes[m][j]
    return entry


def condition(
    cov: Sequence[Tensor], precision: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    r"""The posterior after the weight was observed, and Σ⁺'s first column.

    Args:
        cov: the form of the prior.
        precision: Λ, shaped like the weights.

    Returns:
        The form of the posterior, which differs in :math:`D_0^+ = D_0/(1 + D_0\Lambda)` alone, and
        the factors by which every latent's mean follows the gradient.
    """
    variance = cov[0]
    posterior = variance / (variance * precision).add_(1)
    return observed(cov, posterior.clamp_min_(torch.finfo(posterior.dtype).tiny))


def observed(
    cov: Sequence[Tensor], variance: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The form after an observation that left the weight this variance, and its first column.

    Args:
        cov: the form of the prior.
        variance: the weight's posterior variance.

    Returns:
        The form of the posterior, and its covariance's first column.
    """
    slopes, (_, *residuals) = _unpack(cov)
    column = (variance, *(row[0] * variance for row in slopes[1:]))
    return _pack(slopes, [variance, *residuals]), column


def move(
    disp: Any, aux: Sequence[Tensor], obs: Observation, column: Sequence[Tensor], cov: Leaves
) -> tuple[Tensor, Belief]:
    r"""The means after the weight was observed, :math:`\mu^- - \Sigma^+_{:w}(g + \Lambda\delta)`.

    Args:
        disp: δ, how far the weight's mean has moved from where the gradient was taken.
        aux: the other latents' means.
        obs: the observation, of diagonal curvature.
        column: the posterior covariance's first column.
        cov: the posterior covariance's own form.

    Returns:
        The weight's displacement, and the belief.
    """
    assert isinstance(obs.curvature, Diag), "engine.check admits only diagonal curvature"
    grad = obs.grad + obs.curvature.values * disp if aux else obs.grad
    means = tuple(mean - gain * grad for mean, gain in zip(aux, column[1:], strict=True))
    weight = column[0] * grad
    return (disp - weight if aux else weight.neg_()), Belief(means, cov)


def drift(aux: Sequence[Tensor], row: Sequence[Scalar]) -> Scalar | Tensor:
    """What the other latents' means add to the one whose row of F this is; 0 without any."""
    terms = [f * m for f, m in zip(row[1:], aux, strict=True)]
    return functools.reduce(operator.add, terms) if terms else 0.0


def carry(aux: Sequence[Tensor], transition: Transition) -> tuple[Tensor, ...]:
    """The predicted means of latents 1 … k−1."""
    carried: tuple[Any, ...] = tuple(drift(aux, row) for row in transition.F[1:])
    return carried


def transport(cov: Sequence[Tensor], variances: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    r"""The form where every entry of the covariances is replaced by averages over the weights.

    A new coordinate's covariance is :math:`\sum_j w_{ij}\,\Sigma_j` with weights
    :math:`w_{ij} \ge 0`. So is the part of it that the latents before do not tell, and what an
    average adds to that is held at 0 from below: it stays positive by form.

    Derived in :eq:`eq-transport`.

    Args:
        cov: the form of k latents.
        variances: the averages, :math:`d_i' = \sum_j w_{ij} d_j`.

    Returns:
        The form of the averaged covariances.
    """
    slopes, residuals = _unpack(cov)
    k, tiny = len(residuals), torch.finfo(residuals[0].dtype).tiny
    rows: list[list[Any]] = [[*slopes[i], 1.0] for i in range(k)]
    new_slopes: list[list[Tensor]] = [[] for _ in range(k)]
    new_residuals: list[Tensor] = []
    for i in range(k):
        for j in range(i + 1):
            before = range(j if i == j else j + 1)
            shared: Any = sum((rows[i][m] * rows[j][m] * residuals[m] for m in before), 0.0)
            told = (new_slopes[i][m] * new_slopes[j][m] * new_residuals[m] for m in range(j))
            mapped = variances(shared) if isinstance(shared, Tensor) else 0.0
            extra: Any = mapped - sum(told, 0.0)
            if i > j:
                new_slopes[i].append(extra / new_residuals[j])
                continue
            own = variances(residuals[i])
            total = own + extra.clamp_min(0) if isinstance(extra, Tensor) else own
            new_residuals.append(total.clamp_min(tiny))
    return _pack(new_slopes, new_residuals)


def covariance(cov: Sequence[Tensor]) -> Tensor:
    """Every weight's own k×k covariance, ``(*p.shape, k, k)``."""
    slopes, variances = _unpack(cov)
    k = len(variances)
    rows = [[*row, torch.ones_like(variances[0]), *[torch.zeros_like(variances[0])] * (k - 1 - i)]
            for i, row in enumerate(slopes)]  # fmt: skip
    lower = torch.stack([torch.stack(row, -1) for row in rows], -2)
    return (lower * torch.stack(variances, -1).unsqueeze(-2)) @ lower.mT
