"""Conditioning on rows together: each factor given the other, in turn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from filteropt.matrix_normal.factors import Factors, lower_of_tall, row_sizes

__all__ = ["jointly"]


class Side(NamedTuple):
    """One factor of a white prior and rows: a multiple of I but where the rows reach.

    Attributes:
        rows: the rows in coordinates of what they span, ``(R, r)``, float64.
        size: N or M.
        outside: the factor's eigenvalue where no row reaches.
        inside: Cholesky factor of its block where they do, ``(r, r)``.
    """

    rows: Tensor
    size: int
    outside: Tensor
    inside: Tensor


def jointly(
    factors: Factors, inputs: Tensor, deltas: Tensor, rounds: int, *, reverse: bool
) -> Factors | None:
    """Flip-flop on all rows together; ``None`` where a difference of covariances failed."""
    x_sizes, y_sizes = row_sizes(inputs), row_sizes(deltas)
    ways = [
        torch.geqrf((rows @ root).mT)
        for rows, root in zip((inputs / x_sizes, deltas / y_sizes), factors, strict=True)
    ]
    spans = [
        packed[: min(packed.shape)].triu().mT.double() for packed, _ in ways
    ]  # rows as triangles
    spans[1] = spans[1] * (x_sizes.double() * y_sizes.double())
    sides = [
        Side(rows, len(root), rows.new_ones(()), torch.eye(rows.shape[1]).to(rows))
        for rows, root in zip(spans, factors, strict=True)
    ]
    kernel = None
    if not reverse:
        gram = (spans[0] @ spans[0].mT) * (spans[1] @ spans[1].mT)
        gram.diagonal().add_(1)
        chol, info = torch.linalg.cholesky_ex(gram)
        if bool(info):
            return None
        kernel = torch.cholesky_inverse(chol)
    for i in range(2 * rounds):
        old, other = sides[i % 2], sides[1 - i % 2]
        new = _flip(old, other, kernel)
        if new is None:
            return None
        sides[i % 2] = new
        if i > 1 and _close(old, new):
            break
    x, y = (
        _apply(root, way, side, reverse)
        for root, way, side in zip(factors, ways, sides, strict=True)
    )
    return Factors(x, y)


def _flip(side: Side, other: Side, kernel: Tensor | None) -> Side | None:
    """One factor given the other."""
    n, r = other.size, other.rows.shape[1]
    eye = torch.eye(r).to(other.rows)
    seen = torch.linalg.solve_triangular(
        other.inside, torch.cat([eye, other.rows.mT], 1), upper=False
    )
    inverse, seen = seen[:, :r], seen[:, r:]
    outside = (inverse.square().sum() + (n - r) / other.outside) / n
    if kernel is None:
        weights = seen.square().sum(0) / n
        block = (side.rows.mT * weights) @ side.rows
    else:
        block = -(side.rows.mT @ (kernel * (seen.mT @ seen) / n) @ side.rows)
    block.diagonal().add_(outside)
    inside, info = torch.linalg.cholesky_ex(block)
    if not bool(info):
        if kernel is None or bool((inside.diagonal().square() > 1e-9 * outside).all()):
            return side._replace(outside=outside, inside=inside)
        return None
    if kernel is not None:
        return None
    tall = torch.cat([outside.sqrt() * torch.eye(len(block)).to(block),
                      weights.sqrt()[:, None] * side.rows])  # fmt: skip
    return side._replace(outside=outside, inside=lower_of_tall(tall))


def _close(old: Side, new: Side) -> bool:
    """Whether a factor stopped changing, by its eigenvalue outside and its block's diagonal."""
    before = torch.cat([old.outside[None], old.inside.square().sum(1)])
    after = torch.cat([new.outside[None], new.inside.square().sum(1)])
    return bool(((after - before).abs() <= 1e-9 * after).all())


def _apply(root: Tensor, way: tuple[Tensor, Tensor], side: Side, reverse: bool) -> Tensor:
    """The new root: the rows' span turned to the front and scaled by its block's root."""
    turned = torch.ormqr(*way, root, left=False)
    r = side.rows.shape[1]
    inside, outside = side.inside, side.outside.sqrt()
    if reverse:
        eye = torch.eye(r).to(inside)
        inside = torch.linalg.solve_triangular(inside, eye, upper=False).mT
        outside = 1 / outside
    seen = turned[:, :r] @ inside.to(root.dtype)
    return torch.cat([seen, turned[:, r:] * outside.to(root.dtype)], 1)
