"""Curvature from squared gradients at draws from the belief."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from filteropt.approximations._gathered_squares import GatheredSquares

__all__ = ["SampledSquaredGradient"]


@dataclass(frozen=True)
class SampledSquaredGradient(GatheredSquares):
    r"""The squared gradient, averaged over draws from the belief, is the precision.

    .. math:: \Lambda = \frac1S \sum_{s=1}^S g(w_s)^2, \qquad w_s \sim N(\mu, \Sigma)

    With one draw it is :class:`SquaredGradient`, linearised there instead of at the mean; with
    several, squares are averaged where that one would square the average. What is approximated: as
    there. Losses and gradients must be computed inside of ``with opt.sampled_params(train=True):``.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf).
        beta1: decay of the average that moves the mean; [0, 1). ``None`` keeps none and moves the
            mean by the gradient itself.
        bias_correction: whether that average is debiased.
        sync: whether gradients and squares are averaged over the processes that train together,
            each with its own draws.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch
        >>> from filteropt.approximations import SampledSquaredGradient
        >>> from filteropt.types import Raw
        >>> like, p = SampledSquaredGradient(beta1=None), torch.zeros(1)
        >>> obs, _ = like.observe((), Raw(p + 1, squares=p + 9), p, None, like.scalars(1))
        >>> obs.curvature.values
        tensor([9.])

    Source: Shen et al. (2024); see :eq:`eq-sampled-gradient`.
    """

    source: ClassVar[str] = "samples"

    sync: bool = False
