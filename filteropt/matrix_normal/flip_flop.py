"""Conditioning on rows together: each factor given the other, in turn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from filteropt.matrix_normal.factors import Factors, lower_of_tall, row_sizes
from filteropt.matrix_normal.members import identity, unless

__all__ = ["jointly"]


class Side(NamedTuple):
    """One factor of a white prior and rows: a multiple of I but where the rows reach.

    Attributes:
        rows: the rows in coordinates of what they span, ``(..., R, r)``, float64.
        size: N or M.
        outside: the factor's eigenvalue where no row reaches, ``(..., 1)``.
        inside: Cholesky factor of its block where they do, ``(..., r, r)``.
    """

    rows: Tensor
    size: int
    outside: Tensor
    inside: Tensor


def jointly(
    factors: Factors, inputs: Tensor, deltas: Tensor, rounds: int, *, reverse: bool
) -> tuple[Factors, Tensor]:
    """Flip-flop on all rows together, and where a difference of covariances failed, ``(...)``."""
    x_sizes, y_sizes = row_sizes(inputs), row_sizes(deltas)
    ways = [
        torch.geqrf((rows @ root).mT)
        for rows, root in zip((inputs / x_sizes, deltas / y_sizes), factors, strict=True)
    ]
    spans = [
        packed[..., : min(packed.shape[-2:]), :].triu().mT.double() for packed, _ in ways
    ]  # rows as triangles
    spans[1] = spans[1] * (x_sizes.double() * y_sizes.double())
    sides = [
        Side(rows, root.shape[-1], rows.new_ones((*rows.shape[:-2], 1)), identity(rows))
        for rows, root in zip(spans, factors, strict=True)
    ]
    kernel, failed = None, spans[0].new_zeros(spans[0].shape[:-2], dtype=torch.bool)
    if not reverse:
        gram = (spans[0] @ spans[0].mT) * (spans[1] @ spans[1].mT)
        gram.diagonal(dim1=-2, dim2=-1).add_(1)
        chol, info = torch.linalg.cholesky_ex(gram)
        failed = info > 0
        kernel = torch.cholesky_inverse(torch.where(failed[..., None, None], identity(chol), chol))
    done = failed
    for i in range(2 * rounds):
        if bool(done.all()):
            break
        old, other = sides[i % 2], sides[1 - i % 2]
        new, lost = _flip(old, other, kernel)
        if lost is not None:
            failed = failed | (lost & ~done)
        sides[i % 2] = old._replace(
            outside=unless(done, new.outside, old.outside),
            inside=unless(done, new.inside, old.inside),
        )
        done = done | failed if lost is not None else done
        done = done | _close(old, new) if i > 1 else done
    x, y = (
        _apply(root, way, side, reverse)
        for root, way, side in zip(factors, ways, sides, strict=True)
    )
    return Factors(x, y), failed


def _flip(side: Side, other: Side, kernel: Tensor | None) -> tuple[Side, Tensor | None]:
    """One factor given the other, and where a difference failed, if there is one."""
    n, r = other.size, other.rows.shape[-1]
    seen = torch.linalg.solve_triangular(
        other.inside, torch.cat([identity(other.inside), other.rows.mT], -1), upper=False
    )
    inverse, seen = seen[..., :r], seen[..., r:]
    trace = inverse.square().sum((-2, -1), keepdim=True).squeeze(-1)
    outside = (trace + (n - r) / other.outside) / n
    if kernel is None:
        weights = seen.square().sum(-2) / n
        block = (side.rows.mT * weights.unsqueeze(-2)) @ side.rows
    else:
        block = -(side.rows.mT @ (kernel * (seen.mT @ seen) / n) @ side.rows)
    block.diagonal(dim1=-2, dim2=-1).add_(outside)
    inside, info = torch.linalg.cholesky_ex(block)
    if kernel is not None:
        pivots = inside.diagonal(dim1=-2, dim2=-1).square()
        lost = (info > 0) | ~(pivots > 1e-9 * outside).all(-1)
        return side._replace(outside=outside, inside=inside), lost
    if bool(info.any()):
        tall = torch.cat([outside.sqrt().unsqueeze(-1) * identity(block),
                          weights.sqrt().unsqueeze(-1) * side.rows], -2)  # fmt: skip
        inside = unless(info == 0, lower_of_tall(tall), inside)
    return side._replace(outside=outside, inside=inside), None


def _close(old: Side, new: Side) -> Tensor:
    """Where a factor stopped changing, by its eigenvalue outside and its block's diagonal."""
    before, after = (
        torch.cat([side.outside, side.inside.square().sum(-1)], -1) for side in (old, new)
    )
    return ((after - before).abs() <= 1e-9 * after).all(-1)


def _apply(root: Tensor, way: tuple[Tensor, Tensor], side: Side, reverse: bool) -> Tensor:
    """The new root: the rows' span turned to the front and scaled by its block's root."""
    turned = torch.ormqr(*way, root, left=False)
    r = side.rows.shape[-1]
    inside, outside = side.inside, side.outside.sqrt().unsqueeze(-1)
    if reverse:
        inside = torch.linalg.solve_triangular(inside, identity(inside), upper=False).mT
        outside = 1 / outside
    seen = turned[..., :r] @ inside.to(root.dtype)
    return torch.cat([seen, turned[..., r:] * outside.to(root.dtype)], -1)
