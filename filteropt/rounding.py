r"""Rounding to bfloat16 at random, so that what is too small to be kept is kept on average.

A bfloat16 is a float32 without its last 16 bits. Half a unit in its last place is 0.2 to 0.4 % of
it: a belief that moves by less per step would never move. Rounded up or down at random,

.. math:: \Pr(\text{up}) = \frac{x - \lfloor x\rfloor}{\lceil x\rceil - \lfloor x\rfloor},
    \qquad \mathbb E[\operatorname{round}(x)] = x .

The random numbers are a hash of the weight, its gradient and the step: no generator is advanced, a
run that was resumed goes on bit for bit, and copies of a model on several devices stay alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from filteropt.types import Scalar

__all__ = ["Dither", "held", "round_at_random"]

MIXERS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Odd multipliers that mix 32 bits well (C. Wellons' lowbias32), as int32."""
OF_WEIGHT, OF_STEP, OF_COLUMN = (0x9E3779B1 - 2**32, 0x85EBCA77 - 2**32, 0x27D4EB2F)
"""Odd multipliers that keep what is hashed apart."""


def held(x: Tensor) -> Tensor:
    """A tensor of the state as it is calculated with: what is kept in bfloat16 in float32."""
    return x.float() if x.dtype is torch.bfloat16 else x


class Dither(NamedTuple):
    """Where random numbers of one step come from.

    Attributes:
        mean: float32, the weights before the step.
        grad: float32, their gradients.
        t: the step.
    """

    mean: Tensor
    grad: Tensor
    t: Scalar

    def __call__(self, column: int) -> Tensor:
        """For every weight a whole number in [0, 2¹⁶), as int32; other ones for each column."""
        t = self.t if isinstance(self.t, Tensor) else torch.tensor(self.t, dtype=torch.float64)
        seed = t.to(torch.int32) * OF_STEP + OF_COLUMN * (column + 1)
        mixed = _mix(self.mean.view(torch.int32) * OF_WEIGHT ^ seed)
        return (_mix(mixed ^ self.grad.view(torch.int32)) >> 16) & 0xFFFF


def _mix(x: Tensor) -> Tensor:
    """Hash 32 bits."""
    for mixer, shift in zip(MIXERS, (16, 15), strict=True):
        x = (x ^ ((x >> shift) & ((1 << (32 - shift)) - 1))) * mixer
    return x ^ ((x >> 16) & 0xFFFF)


def round_at_random(x: Tensor, noise: Tensor) -> Tensor:
    r"""Round numbers up or down at random, right on average.

    What is approximated: probabilities are multiples of :math:`2^{-16}`.

    Args:
        x: finite float32 numbers.
        noise: a whole number in [0, 2¹⁶) for each of them, int32; see :class:`Dither`.

    Returns:
        The numbers in bfloat16.

    Example:
        >>> x, noise = torch.full((4096,), 1 + 2**-9), torch.arange(0, 2**16, 16).int()
        >>> rounded = round_at_random(x, noise).float()    # a quarter goes up
        >>> rounded.unique().tolist(), float(rounded.mean() - 1)
        ([1.0, 1.0078125], 0.001953125)

    Source: stochastic rounding is old; for weights in bfloat16 see Zamirai et al. (2020),
    arXiv 2010.06192.
    """
    bits = (x.view(torch.int32) + noise) & -0x10000
    return bits.view(torch.float32).to(torch.bfloat16)
