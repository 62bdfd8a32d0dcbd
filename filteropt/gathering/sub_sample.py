"""Which of many rows to keep: a sub-sample that draws no random numbers."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["positions"]

GOLDEN, NEAR = (math.sqrt(5) - 1) / 2, 32


def positions(total: int, kept: int, start: int) -> Tensor:
    r"""Which of several rows to keep: a sub-sample that is spread out, and moves on.

    .. math:: (s + i)\,a \bmod T, \qquad i = 0, \dots, K - 1,

    with a near the golden section of T and without common divisor, so that the rows of a sample
    differ, and all rows are kept equally often as s goes on by K from sample to sample. No random
    numbers are drawn.

    Args:
        total: how many rows there are, T ≥ 1.
        kept: how many to keep, K; (0, T].
        start: how many were kept before, s ≥ 0.

    Returns:
        K positions in [0, T).

    Example:
        >>> positions(8, 3, 0), positions(8, 3, 3)
        (tensor([0, 3, 6]), tensor([1, 4, 7]))
    """
    return (torch.arange(start % total, start % total + kept) * _step(total)) % total


@functools.lru_cache(1024)
def _step(total: int) -> int:
    """The number near the golden section whose multiples are spread out best.

    It is the one with the least quotients in Euclid's algorithm.

    Args:
        total: the modulus.

    Returns:
        A number without common divisor.
    """
    middle = round(GOLDEN * total)
    near = range(max(1, middle - NEAR), min(middle + NEAR, total - 1) + 1)
    return min(near, key=lambda a: _largest_quotient(total, a), default=1)


def _largest_quotient(a: int, b: int) -> float:
    largest = 0
    while b:
        largest, a, b = max(largest, a // b), b, a % b
    return largest if a == 1 else math.inf
