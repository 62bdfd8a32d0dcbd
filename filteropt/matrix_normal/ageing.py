"""How a Kronecker-factored belief ages: drift, mixing and a pull."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from filteropt.linalg import scalar
from filteropt.matrix_normal.factors import Factors
from filteropt.matrix_normal.members import present, unless, wide
from filteropt.matrix_normal.sums import (
    Spread,
    combined,
    gram,
    project_sum,
    relative_trace,
    stacked,
)
from filteropt.types import Scalar

__all__ = [
    "drift_first_order",
    "drift_forward",
    "drift_reverse",
    "drifted",
    "mixed",
]


def drift_first_order(
    factors: Factors, carried: Scalar, noise: Scalar, added: Sequence[Spread] = ()
) -> Factors:
    r"""Isotropic drift, projected to first order (U Eq. 28).

    .. math::
        \Sigma_x^- = f\,\Sigma_x + q\Lambda_\delta I, \quad
        \Sigma_\delta^- = f\,\Sigma_\delta + q\Lambda_x I, \quad
        f = \sqrt a - \tfrac12 q\Lambda_x\Lambda_\delta,

    with :math:`\Lambda_x = \mathrm{tr}\,\Sigma_x^{-1}/N` and :math:`\Lambda_\delta =
    \mathrm{tr}\,\Sigma_\delta^{-1}/M`, each the squared norm of a triangular root's inverse. Any
    other spread enters as the noise does. What is approximated: :func:`drift_forward`, to first
    order in what is added. Where that is far from small f would be negative, and is 0.

    Args:
        factors: roots of the posterior.
        carried: a, factor on the carried covariance, ≥ 0.
        noise: q, variance that every weight gains, squared weight units, ≥ 0.
        added: what else the step adds.

    Returns:
        Roots of the next prior, triangular; for no noise and a = 1 the given ones.

    Example:
        >>> one = Factors(torch.eye(2), torch.eye(2))
        >>> aged = drift_first_order(one, 1.0, 0.01)
        >>> (aged.input_root[0, 0] * aged.output_root[0, 0]) ** 2
        tensor(1.0100)

    Source: U (Aitchison 2018) Eq. 28, 31 and 32.
    """
    added = _with_noise(noise, added)
    if not added:
        return _scaled(factors, carried)
    squares = [root @ root.mT for root in factors]
    triangles = [combined([1.0], [r], [s], r) for r, s in zip(factors, squares, strict=True)]
    sides = [[spread.input_root for spread in added], [spread.output_root for spread in added]]
    x_traces, y_traces = (
        torch.stack([relative_trace(triangle, root) for root in side], -1) / triangle.shape[-1]
        for triangle, side in zip(triangles, sides, strict=True)
    )
    weights = stacked([spread.weight for spread in added], factors[0])
    lost = (weights * x_traces * y_traces).sum(-1) / 2
    kept = (scalar(carried).sqrt().to(lost) - lost).clamp_min(0)
    x, y = (
        combined(
            [kept, *(weights * others).unbind(-1)], [root, *side], [square, *map(gram, side)], root
        )
        for others, side, root, square in zip(
            (y_traces, x_traces), sides, factors, squares, strict=True
        )
    )
    return Factors(x, y)


def drift_forward(
    factors: Factors,
    carried: Scalar,
    noise: Scalar,
    added: Sequence[Spread] = (),
    rounds: int = 20,
) -> Factors:
    r"""The Kronecker product that minimises KL(P‖Q) to the drifted belief P.

    P has the covariance :math:`a\,\Sigma_x \otimes \Sigma_\delta + q I` and what else is added;
    :func:`~filteropt.matrix_normal.sums.project_sum` solves for the optimum from the given factors
    on. What is approximated: nothing.

    Args:
        factors: roots of the posterior.
        carried: a, factor on the carried covariance, ≥ 0.
        noise: q, variance that every weight gains, squared weight units, ≥ 0.
        added: what else the step adds.
        rounds: the most rounds; they stop where nothing changes any more. ≥ 1.

    Returns:
        Roots of the next prior, triangular; for no noise and a = 1 the given ones.

    Example:
        >>> one = Factors(torch.eye(2), torch.eye(2))
        >>> aged = drift_forward(one, 1.0, 0.5)
        >>> (aged.input_root[0, 0] * aged.output_root[0, 0]) ** 2
        tensor(1.5000)

    Source: the objective is U (Aitchison 2018) Sec. 4.3.
    """
    added = _with_noise(noise, added)
    if not added:
        return _scaled(factors, carried)
    return project_sum([Spread(carried, *factors), *added], rounds)


def drift_reverse(factors: Factors, carried: Scalar, noise: Scalar, rounds: int = 20) -> Factors:
    r"""The Kronecker product that minimises KL(Q‖P) to the drifted belief P.

    P has the covariance :math:`a\,\Sigma_x \otimes \Sigma_\delta + q I`; see :func:`drifted`.

    Args:
        factors: roots of the posterior.
        carried: a, factor on the carried covariance, ≥ 0.
        noise: q, variance that every weight gains, squared weight units, ≥ 0.
        rounds: the most rounds; they stop where nothing changes any more. ≥ 1.

    Returns:
        Roots of the next prior; for no noise and a = 1 the given ones.

    Example:
        >>> one = Factors(torch.eye(2), torch.eye(2))
        >>> aged = drift_reverse(one, 1.0, 0.5)
        >>> (aged.input_root @ aged.input_root.T)[0, 0] * (aged.output_root[0] ** 2).sum()
        tensor(1.5000)
    """
    return drifted(factors, carried, noise, rounds=rounds, reverse=True)


def drifted(
    factors: Factors,
    carried: Scalar,
    noise: Scalar,
    pull: Scalar = 0.0,
    rounds: int = 20,
    *,
    reverse: bool = False,
) -> Factors:
    r"""Isotropic ageing and one observation of every weight, projected in the eigenbasis.

    The eigenvectors of both factors diagonalise :math:`((a\Sigma + qI)^{-1} + RI)^{-1}`, whose
    eigenvalues :math:`V_{ij}` are those of no product. Either projection keeps the eigenvectors,
    and its eigenvalues solve

    .. math::
        A_i = \tfrac1M\sum_j V_{ij}/B_j,\; B_j = \tfrac1N\sum_i V_{ij}/A_i \quad (P\Vert Q),
        \qquad \tfrac1{A_i} = \tfrac1M\sum_j B_j/V_{ij},\;
        \tfrac1{B_j} = \tfrac1N\sum_i A_i/V_{ij} \quad (Q\Vert P),

    in turn, in float64: O(N³ + M³) once, and O(NM) per round. What is approximated: nothing.

    Args:
        factors: roots of the posterior.
        carried: a, factor on the carried covariance, > 0.
        noise: q, variance that every weight gains, squared weight units, ≥ 0.
        pull: R, precision of the observation of every weight, ≥ 0.
        rounds: the most rounds; they stop where nothing changes any more. ≥ 1.
        reverse: minimise KL(Q‖P) instead of KL(P‖Q).

    Returns:
        Roots of the next prior; for no noise, no pull and a = 1 the given ones.

    Example:
        >>> one = Factors(torch.eye(1), torch.eye(1))
        >>> x, y = drifted(one, 1.0, 0.0, pull=1.0)
        >>> (x * y) ** 2    # a variance of 1 is observed with precision 1
        tensor([[0.5000]])
    """
    if not present(noise) and not present(pull):
        return _scaled(factors, carried)
    squares = (root.double() @ root.mT.double() for root in factors)
    (x, x_vectors), (y, y_vectors) = (torch.linalg.eigh(square) for square in squares)
    eps = torch.finfo(x.dtype).eps
    x, y = (torch.maximum(values, eps * values.amax(-1, keepdim=True)) for values in (x, y))
    spread = wide(carried, x) * (x.unsqueeze(-1) * y.unsqueeze(-2)) + wide(noise, x)
    spread = spread / (1 + wide(pull, x) * spread)
    y, done = torch.ones_like(y), y.new_zeros(y.shape[:-1], dtype=torch.bool)
    for _ in range(rounds):
        before, y = y, unless(done, _average(spread.mT, x, reverse), y)
        x = unless(done, _average(spread, y, reverse), x)
        done = done | ((y - before).abs() <= 1e-9 * y).all(-1)
        if bool(done.all()):
            break
    x_root, y_root = x_vectors * x.sqrt().unsqueeze(-2), y_vectors * y.sqrt().unsqueeze(-2)
    return Factors(x_root.to(factors.input_root), y_root.to(factors.output_root))


def _average(spread: Tensor, other: Tensor, reverse: bool) -> Tensor:
    """One factor's eigenvalues given the other's."""
    other = other.unsqueeze(-2)
    return 1 / (other / spread).mean(-1) if reverse else (spread / other).mean(-1)


def mixed(factors: Factors, mean: Tensor, left: Scalar, right: Scalar) -> tuple[Spread, ...]:
    r"""What multiplying by small random matrices adds, :math:`W' = (1 + A) W (1 + B)^\top`.

    A and B have independent entries of mean 0 and variances a and b. With :math:`E[W^\top W] =
    \mu^\top\mu + \mathrm{tr}(\Sigma_\delta)\Sigma_x` and :math:`E[WW^\top] = \mu\mu^\top +
    \mathrm{tr}(\Sigma_x)\Sigma_\delta`,

    .. math::
        E[\Delta W \Delta W^\top] = a\,E[W^\top W] \otimes I + b\,I \otimes E[WW^\top]
            + ab\,\mathrm{tr}\,E[W^\top W]\; I \otimes I ,

    the last being that of :math:`AWB^\top`. Nothing is approximated: the mean does not change, and
    these are the second moments.

    Args:
        factors: roots of the posterior.
        mean: μ, ``(..., M, N)``.
        left: a, variance of A's entries per step, ≥ 0.
        right: b, variance of B's entries per step, ≥ 0.

    Returns:
        Spreads, to be added to the covariance.

    Example:
        >>> one = Factors(torch.eye(1), torch.eye(1))
        >>> [float(s.weight) for s in mixed(one, torch.ones(1, 1), 0.5, 0.0)]
        [0.5, 0.5]
    """
    spreads = []
    traces = [root.square().sum((-2, -1)) for root in factors]
    mean = mean.to(factors.input_root.dtype)
    if present(left):
        spreads += [Spread(left, mean.mT, None), Spread(left * traces[1], factors[0], None)]
    if present(right):
        spreads += [Spread(right, None, mean), Spread(right * traces[0], None, factors[1])]
    if present(left) and present(right):
        second = mean.square().sum((-2, -1)) + traces[0] * traces[1]
        spreads.append(Spread(left * right * second, None, None))
    return tuple(spreads)


def _with_noise(noise: Scalar, added: Sequence[Spread]) -> list[Spread]:
    """The spreads, isotropic noise among them if there is any."""
    return [*([Spread(noise, None, None)] if present(noise) else []), *added]


def _scaled(factors: Factors, carried: Scalar) -> Factors:
    """Both roots times a^¼, themselves for a = 1."""
    if not present(carried - 1):
        return factors
    return Factors(*(root * wide(carried**0.25, root) for root in factors))
