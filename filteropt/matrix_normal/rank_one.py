"""Conditioning on one row after the other, by rank-one changes of the roots."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from filteropt.matrix_normal.factors import Factors, row_sizes

__all__ = ["Gains", "first_order", "forward", "one_by_one", "reverse"]


class Gains(NamedTuple):
    """How one factor of a white prior changes: everywhere, and along the row by how much more.

    Attributes:
        everywhere: the covariance's eigenvalue away from the row.
        along: the ratio of the eigenvalue along the row to that.
    """

    everywhere: Tensor
    along: Tensor


def one_by_one(
    factors: Factors,
    inputs: Tensor,
    deltas: Tensor,
    gains: Callable[[Tensor, int, int], tuple[Gains, Gains]],
) -> Factors:
    """Condition on each row in turn, by rank-one changes of the roots."""
    x_root, y_root = factors
    x_sizes, y_sizes = row_sizes(inputs), row_sizes(deltas)
    n, m = x_root.shape[-1], y_root.shape[-1]
    evidence = (x_sizes.double() * y_sizes.double()).square()
    found = (inputs / x_sizes, deltas / y_sizes, evidence)  # of each row, a matrix of one row
    for x, delta, size in zip(*(rows.unsqueeze(-2).unbind(-3) for rows in found), strict=True):
        u, v = x @ x_root, delta @ y_root
        seen_x, seen_y = (z.double().square().sum((-2, -1), keepdim=True) for z in (u, v))
        along_x, along_y = gains((1 / (1 + seen_x * seen_y * size)).clamp_min(1e-150), n, m)
        x_root = _rank_one(x_root, u, along_x)
        y_root = _rank_one(y_root, v, along_y)
    return Factors(x_root, y_root)


def _rank_one(root: Tensor, u: Tensor, gains: Gains) -> Tensor:
    """S√g (I − (1 − √r) ûûᵀ)."""
    norm = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    unit = u / norm.clamp_min(torch.finfo(u.dtype).tiny)
    shrink = (1 - gains.along.sqrt()).to(root.dtype)
    shrunk: Tensor = root - (root @ (unit * shrink).mT) * unit
    return shrunk * gains.everywhere.sqrt().to(root.dtype)


def first_order(left: Tensor, n: int, m: int) -> tuple[Gains, Gains]:
    """Corrected Eq. 24 of a white prior, where ``left`` is 1 − s."""
    s = 1 - left
    everywhere = 1 + s / (2 * m * n)
    x, y = ((left + s * ((k - 1) / k + 1 / (2 * m * n))) / everywhere for k in (m, n))
    return Gains(everywhere, x), Gains(everywhere, y)


def forward(left: Tensor, n: int, m: int) -> tuple[Gains, Gains]:
    r"""The projection by KL(P‖Q) of a white prior and one row, where ``left`` is 1 − s.

    The ratios r and t of the factors' eigenvalues solve :math:`r = 1 - s/(1 + (M-1)t)` and
    :math:`t = 1 - s/(1 + (N-1)r)`: a quadratic with one positive root.

    Args:
        left: 1 − s, any shape, > 0.
        n: N.
        m: M.

    Returns:
        The gains of the inputs' and of the outputs' factor.
    """
    a, c = (n - 1) * m, left * m
    b = 1 - (n - 1) * left + (m - 1) * (left - (n - 1))
    root = torch.sqrt(b * b + 4 * a * c)
    r = torch.where(b > 0, 2 * c / (b + root), (root - b) / (2 * a) if a else c / b)
    t = ((n - 1) * r + left) / (1 + (n - 1) * r)
    everywhere = ((1 / t + (m - 1)) / m).sqrt()
    return Gains(everywhere, r), Gains(everywhere, t)


def reverse(left: Tensor, n: int, m: int) -> tuple[Gains, Gains]:
    """The projection by KL(Q‖P): on precisions, of which the row leaves 1/(1 − s) along itself."""
    x, y = forward(1 / left, n, m)
    return Gains(1 / x.everywhere, 1 / x.along), Gains(1 / y.everywhere, 1 / y.along)
