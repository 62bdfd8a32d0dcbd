"""Curvature from the squared gradients of single examples: VOGN's likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from filteropt.approximations._gathered_squares import GatheredSquares
from filteropt.hyperparameters import Positive

__all__ = ["PerExample"]


@dataclass(frozen=True)
class PerExample(GatheredSquares):
    r"""The sum of the examples' squared gradients is the minibatch's precision.

    With :math:`g_i` = ``scale`` · the gradient of the i-th example's term of the loss,

    .. math:: \Lambda = \operatorname{diag}\Bigl(\sum_i g_i g_i^\top\Bigr), \qquad
        g = \sum_i g_i,

    while the mean moves by g's debiased running average, as in
    :class:`~filteropt.approximations.SquaredGradient`. What is approximated: the Hessian of the
    loss by the empirical Fisher information, by the gradients at the observed targets, and that by
    its diagonal. At the optimum of a true model both agree in expectation; the squared gradient of
    the whole minibatch adds the products of different examples, which have mean 0 there and are
    of the same order in one draw.

    The optimizer needs ``model=``. The loss must be a sum or mean of one term per example, and the
    first dimension of what the model is given must be the examples. Gradients of Linear, Conv1d to
    Conv3d, Embedding, LayerNorm, RMSNorm, GroupNorm, InstanceNorm and BatchNorm layers are read off
    the backward pass itself; those of other parameters by running the model on one example at a
    time under ``torch.func.vmap``. Once, before training, the model is called on one example in
    eval mode, to tell examples from what else layers may see in their first dimension.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf).
        beta1: decay of the gradient's running average; [0, 1). ``None`` keeps no average and moves
            the mean by the gradient itself, as 0 does with an average.
        bias_correction: whether the average is debiased; without, :math:`\hat g = m`.
        uncovered: what to do for a parameter without gradients of single examples, such as a
            recurrent layer's: raise an ``"error"``, or take the squared gradient of the
            ``"batch"``.
        memory: bytes that gradients of the examples worked on at a time may take; (0, inf). At
            least one example is worked on.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch
        >>> from filteropt.approximations import PerExample
        >>> from filteropt.types import Raw
        >>> like, g = PerExample(beta1=None), torch.tensor([[3.0], [-3.0]])    # of two examples
        >>> raw = Raw(g.sum(0), squares=g.square().sum(0))
        >>> obs, _ = like.observe((), raw, g[0], None, like.scalars(1))
        >>> obs.grad, obs.curvature.values
        (tensor([0.]), tensor([18.]))

    Source: Khan et al. (2018), as VOGN; see :eq:`eq-per-example`.
    """

    source: ClassVar[str] = "examples"

    uncovered: Literal["error", "batch"] = "error"
    memory: Positive = 2**28
