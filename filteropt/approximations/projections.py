"""Projections: what happens to a displacement after conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from filteropt.hyperparameters import Interval, Nonnegative, check_fields
from filteropt.types import Belief, Projection

__all__ = ["Clipped", "Scaled"]


@dataclass(frozen=True)
class Clipped(Projection):
    r"""No weight moves further than ``radius`` in one step.

    .. math:: \Delta\mu \leftarrow \min(\max(\Delta\mu, -r), r)

    Args:
        radius: r, in weight units; (0, inf].

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch
        >>> from filteropt.approximations import Clipped
        >>> Clipped(0.5)(torch.tensor([0.1, -3.0]), None)[0]
        tensor([ 0.1000, -0.5000])

    Source: Shen et al. (2024), IVON's clipping radius.
    """

    elementwise: ClassVar[bool] = True

    radius: Annotated[float, Interval("(0, inf]")] = float("inf")

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, disp: Tensor, belief: Belief) -> tuple[Tensor, Belief]:
        """The clipped displacement; the belief stays."""
        return disp.clamp(-self.radius, self.radius), belief


@dataclass(frozen=True)
class Scaled(Projection):
    r"""The mean moves by a multiple of what Bayes' rule says; the covariance stays.

    .. math:: \Delta\mu \leftarrow \alpha\,\Delta\mu

    Args:
        factor: :math:`\alpha`; [0, inf). 1 is the filter.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch
        >>> from filteropt.approximations import Scaled
        >>> Scaled(0.5)(torch.tensor([0.1, -3.0]), None)[0]
        tensor([ 0.0500, -1.5000])

    Source: the learning rate of VOGN and IVON, which is not that of the covariance.
    """

    elementwise: ClassVar[bool] = True

    factor: Nonnegative = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, disp: Tensor, belief: Belief) -> tuple[Tensor, Belief]:
        """The scaled displacement; the belief stays."""
        return self.factor * disp, belief
