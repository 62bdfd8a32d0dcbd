"""Curvature from squares that were gathered beside the gradient."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from filteropt.approximations._gradient_average import GradientLikelihood
from filteropt.dtypes import squarable
from filteropt.types import Belief, Diag, Memory, Observation, Packed, Raw

__all__ = ["GatheredSquares"]


class GatheredSquares(GradientLikelihood):
    """A likelihood whose precision is a sum of squared gradients of the loss as it was scaled."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad", "squares"})
    elementwise: ClassVar[bool] = True

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` whose scaled square is finite."""
        return squarable(dtype) / max(1.0, float(self.scale))

    def observe(
        self, like: Any, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Memory]:
        """Λ = the sum of squares, and the average gradient."""
        assert raw.squares is not None, "what a likelihood needs is gathered"
        scale, *numbers = scalars
        pull, like = self._pull(like, scale * raw.grad, tuple(numbers))
        return Observation(pull, Diag(scale * scale * raw.squares)), like
