"""The Kronecker product nearest to a sum of Kronecker products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from filteropt.linalg import scalar
from filteropt.matrix_normal.factors import Factors, lower_of_tall
from filteropt.matrix_normal.members import identity, unless
from filteropt.types import Scalar

__all__ = ["Spread", "combined", "gram", "project_sum", "relative_trace", "stacked"]


class Spread(NamedTuple):
    r"""What a step adds to the covariance, :math:`w\,R_xR_x^\top \otimes R_\delta R_\delta^\top`.

    Attributes:
        weight: w, ≥ 0.
        input_root: :math:`R_x`, ``(..., N, ·)``, or ``None`` for the identity.
        output_root: :math:`R_\delta`, ``(..., M, ·)``, or ``None`` for the identity.
    """

    weight: Scalar
    input_root: Tensor | None
    output_root: Tensor | None


def project_sum(terms: Sequence[Spread], rounds: int = 20) -> Factors:
    r"""The Kronecker product nearest to a sum of Kronecker products, by KL(P‖Q).

    For a covariance :math:`\sum_i w_i X_i \otimes Y_i` it solves

    .. math::
        A = \tfrac1M \sum_i w_i\,\mathrm{tr}(B^{-1}Y_i)\,X_i, \qquad
        B = \tfrac1N \sum_i w_i\,\mathrm{tr}(A^{-1}X_i)\,Y_i

    in turn, from the first term's Y on. With precisions in the place of covariances the same
    iteration minimises KL(Q‖P). Traces are squared norms of triangular solves, so that nothing is
    subtracted: positive by form. O(N³ + M³) per round.

    Args:
        terms: weights and roots of X and Y, whose sums are positive definite.
        rounds: the most rounds; they stop where nothing changes any more. ≥ 1.

    Returns:
        Triangular roots of A and B.

    Raises:
        ValueError: no terms, or the first without roots.

    Example:
        >>> eye = torch.eye(2)
        >>> sum_of_two = project_sum([Spread(1.0, eye, eye), Spread(3.0, None, None)])
        >>> (sum_of_two.input_root[0, 0] * sum_of_two.output_root[0, 0]) ** 2
        tensor(4.)

    Source: U (Aitchison 2018) Sec. 4.3.
    """
    if not terms or terms[0].input_root is None or terms[0].output_root is None:
        raise ValueError("project_sum: the first of the terms must have two roots")
    first = Factors(terms[0].input_root, terms[0].output_root)
    sides = [[t.input_root for t in terms], [t.output_root for t in terms]]
    grams = [[gram(root) for root in side] for side in sides]
    sizes = first.output_root.shape[-1], first.input_root.shape[-1]
    weights = stacked([t.weight for t in terms], first[0])
    triangles = [first.input_root, combined([1.0], sides[1][:1], grams[1][:1], first[1])]
    enough = torch.finfo(weights.dtype).eps ** 0.5
    shares = [torch.zeros_like(weights)] * 2
    done = weights.new_zeros(weights.shape[:-1], dtype=torch.bool)
    for step in range(2 * rounds):
        i = step % 2
        traces = [relative_trace(triangles[1 - i], root) for root in sides[1 - i]]
        before, shares[i] = shares[i], weights * torch.stack(traces, -1) / sizes[i]
        if step > 1:
            done = done | ((shares[i] - before).abs() <= enough * shares[i]).all(-1)
            if bool(done.all()):
                break
        new = combined(shares[i].unbind(-1), sides[i], grams[i], first[i])
        triangles[i] = unless(done, new, triangles[i])
    return Factors(*triangles)


def stacked(weights: Sequence[Scalar], like: Tensor) -> Tensor:
    """Numbers side by side.

    Args:
        weights: floats, or tensors of the members' shape.
        like: a matrix of every member, ``(..., n, m)``.

    Returns:
        ``(..., len(weights))``, in ``like``'s dtype.
    """
    return torch.stack([scalar(w).to(like).expand(like.shape[:-2]) for w in weights], -1)


def gram(root: Tensor | None) -> Tensor | None:
    """RRᵀ.

    Args:
        root: R, ``(..., n, ·)``, or ``None`` for the identity.

    Returns:
        ``(..., n, n)``, or ``None`` for the identity.
    """
    return None if root is None else root @ root.mT


def combined(
    shares: Sequence[Scalar],
    roots: Sequence[Tensor | None],
    grams: Sequence[Tensor | None],
    like: Tensor,
) -> Tensor:
    """The lower triangular root of Σᵢ sᵢ RᵢRᵢᵀ: by Cholesky, or by QR where that fails.

    Args:
        shares: sᵢ ≥ 0, floats or tensors of the members' shape.
        roots: Rᵢ, whose sum of squares is positive definite.
        grams: RᵢRᵢᵀ.
        like: ``(..., n, n)``.

    Returns:
        L, ``(..., n, n)``.
    """
    parts = [scalar(share).to(like)[..., None, None] for share in shares]
    total = torch.zeros_like(like)
    for part, square in zip(parts, grams, strict=True):
        if square is None:
            total.diagonal(dim1=-2, dim2=-1).add_(part.squeeze(-1))
        else:
            total += part * square
    triangle, info = torch.linalg.cholesky_ex(total)
    failed = torch.as_tensor(info > 0)
    if not bool(failed.any()):
        return torch.as_tensor(triangle)
    scaled = [
        p.sqrt() * (identity(like) if r is None else r) for p, r in zip(parts, roots, strict=True)
    ]
    return unless(~failed, lower_of_tall(torch.cat([x.mT for x in scaled], -2)), triangle)


def relative_trace(triangle: Tensor, root: Tensor | None) -> Tensor:
    """tr((LLᵀ)⁻¹RRᵀ), the squared norm of L⁻¹R.

    Args:
        triangle: L, ``(..., n, n)``, lower triangular.
        root: R, ``(..., n, ·)``, or ``None`` for the identity.

    Returns:
        The trace, ``(...)``.
    """
    if root is None:
        return torch.cholesky_inverse(triangle).diagonal(dim1=-2, dim2=-1).sum(-1)
    solved: Tensor = torch.linalg.solve_triangular(triangle, root, upper=False)
    return solved.square().sum((-2, -1))
