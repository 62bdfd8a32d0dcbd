"""Many matrices at once: what has leading dimensions, and members that stop by themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from filteropt.linalg import scalar
from filteropt.types import Scalar

__all__ = ["identity", "present", "unless", "wide"]


def identity(like: Tensor) -> Tensor:
    """Every member's identity matrix.

    Args:
        like: ``(..., m, n)``.

    Returns:
        ``(..., n, n)``, of which there is one in memory.
    """
    n = like.shape[-1]
    return torch.eye(n, dtype=like.dtype, device=like.device).expand(*like.shape[:-2], n, n)


def present(x: Scalar) -> bool:
    """Whether a number is not 0, for any member."""
    return bool(x.any()) if isinstance(x, Tensor) else bool(x)


def unless(done: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """New numbers for members that are not done.

    Args:
        done: which members are; ``()`` for one that is not.
        new: what they would have next, with the members' dimensions first.
        old: what they have.

    Returns:
        A tensor like ``new``.
    """
    if not done.dim():
        return new
    apart = done.reshape(done.shape + (1,) * (new.dim() - done.dim()))
    return torch.where(apart, old, new)


def wide(x: Scalar, like: Tensor) -> Scalar:
    """A number per member, to multiply matrices with; a float as it is."""
    return scalar(x).to(like)[..., None, None] if isinstance(x, Tensor) else x
