r"""Gradients of one example at a time, from what a layer saw of it.

Each layer's input x and the loss' gradient δ at its output determine the gradient of its parameters
for every example i, summed over the places s (times, pixels) where the layer was applied,

.. math:: g_i = \sum_s \delta_{is}\, \partial y_{is} / \partial w .

Examples are the first dimension of x and δ. A rule's functions are pure; a new layer is one row of
:data:`KINDS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase] - torch's own custom

from filteropt.gathering.convolutions import channel_grads, conv_grads, conv_squares, conv_work

__all__ = ["KINDS", "Kind", "Rule", "kind_of"]

Function: TypeAlias = Callable[[Any, Tensor, Tensor], Tensor]
"""Of the layer, its (prepared) input x and the gradient δ at its output."""


class Rule(NamedTuple):
    r"""How one parameter's gradients follow from the layer's input and output.

    Attributes:
        grads: every example's gradient, ``(examples, *p.shape)``.
        squares: :math:`\sum_i g_i^2`, where there is a cheaper way than ``grads``, perhaps in
            memory handed over; ``None`` or a result of ``None`` where there is not.
        total: :math:`\sum_i g_i`, likewise.
        work: how many numbers ``grads`` holds per example besides its result.
    """

    grads: Function
    squares: Callable[[Any, Tensor, Tensor, Tensor | None], Tensor | None] | None = None
    total: Function | None = None
    work: Callable[[Any, Tensor], int] = lambda layer, delta: 0


class Kind(NamedTuple):
    """What is known of one kind of layer.

    Attributes:
        rules: of its parameters, by name.
        dims: the fewest dimensions that an input with a dimension of examples has.
        prepare: what the rules of ``weight`` see of the input, given whether the layer was
            training.
        covers: whether a layer's options are covered.
    """

    rules: Mapping[str, Rule]
    dims: Callable[[Any], int] = lambda layer: 2
    prepare: Callable[[Any, Tensor, bool], Tensor] = lambda layer, x, training: x
    covers: Callable[[Any], bool] = lambda layer: True


def kind_of(layer: nn.Module) -> Kind | None:
    """What is known of a layer, by the ``forward`` that it runs; ``None`` for other layers.

    Args:
        layer: the layer; a subclass counts as long as it does not override ``forward``.

    Returns:
        The row of :data:`KINDS`, if its options are covered.

    Example:
        >>> kind_of(nn.Linear(2, 2)) is KINDS[nn.Linear.forward], kind_of(nn.LSTM(2, 2))
        (True, None)
    """
    kind = None if "forward" in vars(layer) else KINDS.get(type(layer).forward)
    return kind if kind is not None and kind.covers(layer) else None


# Linear -----------------------------------------------------------------------------------------


def _places(x: Tensor) -> Tensor:
    """``(examples, places, features)``, whatever the dimensions between the first and the last."""
    return x[:, None] if x.dim() == 2 else x.flatten(1, -2)


def linear_grads(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """δ xᵀ, summed over places."""
    return torch.bmm(_places(delta).mT, _places(x))


def linear_squares(layer: Any, x: Tensor, delta: Tensor, out: Tensor | None) -> Tensor | None:
    """Where there is one place, (δ²)ᵀ x²: no example's gradient is formed."""
    if x.dim() > 2:
        if math.prod(x.shape[1:-1]) != 1:
            return None
        x, delta = x.flatten(1), delta.flatten(1)
    return torch.mm((delta * delta).mT, x * x, out=out)


def linear_total(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """The gradient itself, δᵀ x."""
    return delta.reshape(-1, delta.shape[-1]).mT @ x.reshape(-1, x.shape[-1])


def last_grads(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """Of a bias of the last dimension: δ, summed over places."""
    return delta if delta.dim() == 2 else delta.flatten(1, -2).sum(1)


# Embeddings -------------------------------------------------------------------------------------


def _tokens(layer: Any, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the table, by example, and δ without padding, ``(tokens, features)``."""
    delta = delta.reshape(-1, delta.shape[-1])
    if layer.padding_idx is not None:
        delta = delta.masked_fill((x.reshape(-1) == layer.padding_idx)[:, None], 0.0)
    each = x[:1].numel()
    examples = torch.arange(len(x), device=x.device).repeat_interleave(each)
    return x.reshape(-1) + layer.num_embeddings * examples, delta


def embedding_grads(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """δ, added up in the rows that were looked up."""
    rows, delta = _tokens(layer, x, delta)
    grads = delta.new_zeros(len(x) * layer.num_embeddings, delta.shape[-1])
    return grads.index_add_(0, rows, delta).reshape(len(x), *layer.weight.shape)


def embedding_squares(layer: Any, x: Tensor, delta: Tensor, out: Tensor | None) -> Tensor:
    """The same, where only rows that were looked up are formed."""
    rows, delta = _tokens(layer, x, delta)
    if x.dim() > 1:
        rows, places = torch.unique(rows, return_inverse=True)
        delta = delta.new_zeros(len(rows), delta.shape[-1]).index_add_(0, places, delta)
    squares = delta.new_zeros(layer.weight.shape)
    return squares.index_add_(0, rows % layer.num_embeddings, delta.square())


def embedding_total(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """The gradient itself."""
    rows, delta = _tokens(layer, x, delta)
    return delta.new_zeros(layer.weight.shape).index_add_(0, rows % layer.num_embeddings, delta)


# Normalisations: their scale and shift, given the statistics of what they normalise --------------


def normalized_grads(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """Of a scale of the last dimensions: δ x̂, summed over places."""
    return shifted_grads(layer, x, delta * x)


def shifted_grads(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """Of a shift of the last dimensions."""
    shape = layer.normalized_shape
    places = math.prod(delta.shape[1 : delta.dim() - len(shape)])
    return delta.reshape(len(delta), places, *shape).sum(1)


def scaled_grads(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """Of a scale of every channel."""
    return channel_grads(layer, x, delta * x)


def _layer_norm(layer: Any, x: Tensor, training: bool) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, None, None, layer.eps)


def _rms_norm(layer: Any, x: Tensor, training: bool) -> Tensor:
    return F.rms_norm(x, layer.normalized_shape, None, layer.eps)


def _group_norm(layer: Any, x: Tensor, training: bool) -> Tensor:
    return F.group_norm(x, layer.num_groups, None, None, layer.eps)


def _batch_norm(layer: Any, x: Tensor, training: bool) -> Tensor:
    """By the batch's statistics while training or where no others are kept."""
    if training or layer.running_mean is None:
        return F.batch_norm(x, None, None, None, None, True, 0.0, layer.eps)
    mean, var = layer.running_mean.to(x.dtype), layer.running_var.to(x.dtype)
    return F.batch_norm(x, mean, var, None, None, False, 0.0, layer.eps)


def _instance_norm(layer: Any, x: Tensor, training: bool) -> Tensor:
    if training or layer.running_mean is None:
        return F.instance_norm(x, eps=layer.eps)
    return _batch_norm(layer, x, training)


LINEAR = Kind(
    {"weight": Rule(linear_grads, linear_squares, linear_total), "bias": Rule(last_grads)}
)
CONV = Kind(
    {"weight": Rule(conv_grads, conv_squares, work=conv_work), "bias": Rule(channel_grads)},
    lambda layer: len(layer.kernel_size) + 2,
)
EMBEDDING = Kind(
    {"weight": Rule(embedding_grads, embedding_squares, embedding_total)},
    lambda layer: 1,
    covers=lambda layer: not (layer.scale_grad_by_freq or layer.sparse),
)
LAST = {"weight": Rule(normalized_grads), "bias": Rule(shifted_grads)}
CHANNELS = {"weight": Rule(scaled_grads), "bias": Rule(channel_grads)}

KINDS: dict[Callable[..., Any], Kind] = {
    nn.Linear.forward: LINEAR,
    nn.Conv1d.forward: CONV,
    nn.Conv2d.forward: CONV,
    nn.Conv3d.forward: CONV,
    nn.Embedding.forward: EMBEDDING,
    nn.LayerNorm.forward: Kind(LAST, lambda layer: len(layer.normalized_shape) + 1, _layer_norm),
    nn.RMSNorm.forward: Kind(LAST, lambda layer: len(layer.normalized_shape) + 1, _rms_norm),
    nn.GroupNorm.forward: Kind(CHANNELS, prepare=_group_norm),
    nn.BatchNorm1d.forward: Kind(CHANNELS, prepare=_batch_norm),  # and of any dimension
    nn.InstanceNorm1d.forward: Kind(
        CHANNELS, lambda layer: layer._get_no_batch_dim() + 1, _instance_norm
    ),
}
"""What is known of each kind of layer, by its ``forward``."""
