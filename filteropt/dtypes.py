"""In which precision a belief is kept, and how large its numbers may get."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["belief_dtype", "squarable"]


HALVES = frozenset({torch.bfloat16, torch.float16})


def belief_dtype(p: Tensor) -> torch.dtype:
    """Beliefs about half-precision weights are kept in float32, others in the weights' dtype."""
    dtype = p.dtype
    return torch.float32 if dtype in HALVES else dtype


def squarable(dtype: torch.dtype) -> float:
    """The largest magnitude whose square is finite in ``dtype``."""
    return math.sqrt(torch.finfo(dtype).max) * (1 - 1e-6)
