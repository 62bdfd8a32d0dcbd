"""The parameters' own coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from filteropt.types import Basis

__all__ = ["Identity"]


@dataclass(frozen=True)
class Identity(Basis):
    """The posterior family holds in the parameters' own coordinates: nothing is rotated.

    Example:
        >>> import torch
        >>> from filteropt.approximations import Identity
        >>> Identity().forward((), torch.ones(2))
        tensor([1., 1.])
    """

    elementwise: ClassVar[bool] = True

    def init(self, p: Tensor) -> tuple[Tensor, ...]:
        """Nothing to remember."""
        return ()

    def forward(self, basis: Any, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x

    def backward(self, basis: Any, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x

    def variance(self, basis: Any, variance: Tensor) -> Tensor:
        """``variance`` itself."""
        return variance
