"""The pair of roots, and how it is kept in range."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from filteropt.dtypes import squarable

__all__ = ["Factors", "balance", "lower_of_tall", "row_sizes"]


class Factors(NamedTuple):
    r"""Square roots of the factors of :math:`\Sigma = S_xS_x^\top \otimes S_\delta S_\delta^\top`.

    Attributes:
        input_root: :math:`S_x`, ``(..., N, N)``.
        output_root: :math:`S_\delta`, ``(..., M, M)``; the two roots' product is in weight units.
    """

    input_root: Tensor
    output_root: Tensor


def balance(factors: Factors) -> Factors:
    r"""The same covariance, its scale shared out so that neither factor over- or underflows.

    The roots' largest entries are made equal up to a power of two, so that the product does not
    change by a single bit. Where it would overflow, as under dynamics whose variance grows without
    evidence, it is stopped.

    Args:
        factors: any roots.

    Returns:
        Roots of the same covariance.

    Example:
        >>> pair = balance(Factors(torch.eye(2) * 2.0**20, torch.eye(3) * 2.0**-20))
        >>> pair.input_root[0, 0], pair.output_root[0, 0]
        (tensor(1.), tensor(1.))
    """
    x, y = factors
    if not (x.numel() and y.numel()):
        return factors
    tiny = torch.finfo(x.dtype).tiny
    a, b = (root.abs().amax((-2, -1), keepdim=True).clamp_min(tiny) for root in (x, y))
    share = torch.exp2(((b.log2() - a.log2()) / 2).round())
    ceiling = squarable(x.dtype) ** 0.25
    cap = (ceiling / (a.sqrt() * b.sqrt())).clamp_max(1)
    return Factors(x * share * cap, y / share * cap)


def lower_of_tall(tall: Tensor) -> Tensor:
    """The lower triangular root L with LLᵀ = TᵀT, by QR.

    Args:
        tall: T, ``(..., m, n)`` with m ≥ n.

    Returns:
        L, ``(..., n, n)``, whose diagonal is not negative.
    """
    upper = torch.linalg.qr(tall, mode="r").R
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper)
    triangle: Tensor = (upper * signs.unsqueeze(-1)).mT
    return triangle


def row_sizes(rows: Tensor) -> Tensor:
    """Every row's largest magnitude, 1 where that is 0.

    Args:
        rows: ``(..., R, n)``.

    Returns:
        ``(..., R, 1)``.
    """
    sizes = rows.abs().amax(-1, keepdim=True)
    return torch.where(sizes > 0, sizes, 1.0)
