"""Curvature of a layer's weight matrix from what passed through the layer, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from filteropt.approximations._gradient_average import PulledLikelihood
from filteropt.dtypes import squarable
from filteropt.hyperparameters import Count, Momentum, Positive
from filteropt.types import Belief, Memory, Observation, Outer, Packed, Raw

__all__ = ["LayerGradients"]


@dataclass(frozen=True)
class LayerGradients(PulledLikelihood):
    r"""The examples' own gradients, which are products of a layer's inputs and deltas, make Λ.

    With :math:`x_r` an input of the layer and :math:`\delta_r` the gradient of the summed loss at
    its output, for every example, or every place where an example met the layer,

    .. math::
        e_r = x_r \otimes \delta_r, \qquad
        \Lambda = \sum_r e_re_r^\top = \sum_r x_rx_r^\top \otimes \delta_r\delta_r^\top .

    What is approximated: the Hessian, by the examples' squared gradients. Where a layer is met at
    several places, ``"expand"`` takes these as examples of their own, which neglects that their
    gradients add up; ``"reduce"`` takes one row per example, of its mean input and its summed
    delta. The optimizer needs ``model=``.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf). The rows are scaled alike.
        beta1: decay of the average that moves the mean; [0, 1). ``None``, the filter proper, keeps
            none.
        bias_correction: whether that average is debiased.
        rows: the most rows per layer and backward pass; [1, inf). Of more, that many are taken,
            spread evenly, and scaled to keep the size of Λ. ``None`` takes all.
        sharing: ``"expand"`` or ``"reduce"``, for layers that an example meets at several places.
        joint: whether a layer's bias that directly follows its weight in the group is one more
            column of the weight, whose input is 1.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import LayerGradients
        >>> from filteropt.types import LayerRows
        >>> like, p = LayerGradients(scale=2.0, beta1=None), torch.zeros(1, 2)
        >>> raw = Raw(p + 1, layer=LayerRows(torch.ones(1, 2), torch.ones(1, 1)))
        >>> obs, _ = like.observe((), raw, p, None, like.scalars(1))
        >>> obs.grad, obs.curvature.deltas
        (tensor([[2., 2.]]), tensor([[2.]]))

    Source: U (Aitchison 2018) Sec. 2.1.3; derived in :eq:`eq-kronecker-minibatch`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"grad", "layer"})
    source: ClassVar[str] = "layers"
    gives: ClassVar[type] = Outer

    scale: Positive = 1.0
    beta1: Momentum | None = 0.9
    bias_correction: bool = True
    rows: Count | None = None
    sharing: Literal["expand", "reduce"] = "expand"
    joint: bool = False

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` whose scaled square is finite."""
        return squarable(dtype) / max(1.0, float(self.scale))

    def observe(
        self, like: Any, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Memory]:
        """Λ = the rows' squared gradients, and the gradient's average."""
        assert raw.layer is not None, "what a likelihood needs is gathered"
        scale, *numbers = scalars
        pull, like = self._pull(like, scale * raw.grad, tuple(numbers))
        return Observation(pull, Outer(raw.layer.inputs, scale * raw.layer.deltas)), like
