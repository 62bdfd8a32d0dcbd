"""Curvature from labels that the model draws itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from filteropt.approximations._gathered_squares import GatheredSquares

__all__ = ["SampledFisher"]


@dataclass(frozen=True)
class SampledFisher(GatheredSquares):
    r"""The squared gradient for labels drawn from the model's own prediction is the precision.

    With :math:`e` the gradient of the summed loss of labels :math:`\tilde y_i \sim p(y \mid x_i)`,

    .. math:: \Lambda = e^2, \qquad
        E[\Lambda] = \sum_i \operatorname{diag} F(x_i) ,

    the minibatch's Fisher information: scores have mean zero under the model, so the examples'
    cross terms vanish in expectation. Unlike the squared gradient of the observed labels, it does
    not count the mean gradient as curvature, and it is right however badly the model fits. What is
    approximated: the expectation, by one draw, whose relative variance is about 2 for each weight.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf). It holds for both losses.
        beta1: decay of the average that moves the mean; [0, 1). ``None`` keeps none and moves the
            mean by the gradient itself.
        bias_correction: whether that average is debiased.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch
        >>> from filteropt.approximations import SampledFisher
        >>> from filteropt.types import Raw
        >>> like, p = SampledFisher(scale=2.0, beta1=None), torch.zeros(1)
        >>> obs, _ = like.observe((), Raw(p + 1, squares=p + 9), p, None, like.scalars(1))
        >>> obs.grad, obs.curvature.values
        (tensor([2.]), tensor([36.]))

    Source: U (Aitchison 2018) Sec. 2.1; derived in :eq:`eq-sampled-fisher`.
    """

    source: ClassVar[str] = "labels"
