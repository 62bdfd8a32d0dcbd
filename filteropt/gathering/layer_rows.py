r"""What passes through a layer whose weight is a matrix, row by row.

A weight W, M×N, as ``p.flatten(1)`` shows it, meets in every place (time, pixel) of every example
an input x, and the loss' gradient δ comes back to its output. Row r of what is gathered is one of
these meetings, and adds :math:`\delta_r x_r^\top` to the gradient of W. In a convolution of G
groups each place makes G rows, whose δ is zero outside of the group's channels. In an embedding's
table, whose rows are looked up, δ is the token, one-hot, and x the gradient at the output.

The functions are pure; a new layer is one row of :data:`MATRICES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from filteropt.gathering.convolutions import by_group
from filteropt.gathering.layer_uses import Use
from filteropt.gathering.layers import kind_of
from filteropt.gathering.sub_sample import positions
from filteropt.types import LayerRows

__all__ = ["LIMIT", "MATRICES", "Matrix", "Sharing", "matrix_of", "rows_of"]

LIMIT = 4096
"""The largest table of an embedding whose tokens are written out, as so many numbers per row."""

Sharing: TypeAlias = Literal["expand", "reduce"]
"""Whether places of an example are rows of their own, or one."""


class Matrix(NamedTuple):
    """A kind of layer whose weight is a matrix.

    The first dimension of the input x and of the gradient δ at the output are examples. Rows lie
    in the order of examples, places, groups, and can be had singly, by their positions.

    Attributes:
        places: at how many places a layer meets an example, given δ.
        expand: every place's rows, or those of some positions.
        reduce: the rows of x averaged and δ summed over places, or those of some positions.
        groups: how many rows a place makes.
        covers: whether a layer's size is covered.
    """

    places: Callable[[Any, Tensor], int]
    expand: Callable[[Any, Tensor, Tensor, Tensor | None], LayerRows]
    reduce: Callable[[Any, Tensor, Tensor, Tensor | None], LayerRows]
    groups: Callable[[Any], int] = lambda layer: 1
    covers: Callable[[Any], bool] = lambda layer: True


def matrix_of(layer: nn.Module) -> Matrix | None:
    """How a layer's weight is a matrix; ``None`` for other layers.

    Args:
        layer: the layer; a subclass counts as long as it does not override ``forward``.

    Returns:
        The row of :data:`MATRICES`, if the layer's options and size are covered.

    Example:
        >>> matrix_of(nn.Linear(2, 2)) is not None, matrix_of(nn.LayerNorm(2))
        (True, None)
    """
    matrix = None if kind_of(layer) is None else MATRICES.get(type(layer).forward)
    return matrix if matrix is not None and matrix.covers(layer) else None


def rows_of(
    uses: list[Use], sharing: Sharing, limit: int | None, start: int, ones: list[float] | None
) -> tuple[LayerRows, int]:
    r"""The rows of all uses of a weight in one backward pass.

    .. math:: \sum_i g_i g_i^\top \approx \sum_r x_r x_r^\top \otimes \delta_r \delta_r^\top .

    What is approximated: with ``"expand"`` the places of an example are taken for examples of
    their own, which drops the products of different places. With ``"reduce"`` an example's
    gradient :math:`\sum_s \delta_s x_s^\top` is taken to be
    :math:`(\sum_s \delta_s)(\tfrac1S \sum_s x_s)^\top`, as if inputs and gradients of its places
    were not correlated; both are exact where there is one place. The uses of a shared weight are
    taken for examples of their own in either, and so are the groups of a convolution, which is
    exact for the blocks of the groups.

    Args:
        uses: the uses, whose first dimension is examples.
        sharing: what to do with the places of an example.
        limit: the most rows to keep; the δ of a sub-sample of K out of T rows (see
            :func:`~filteropt.gathering.sub_sample.positions`) are multiplied by
            :math:`\sqrt{T/K}`, so that the sum above is that of all rows on average. ``None``
            keeps all.
        start: where the sub-sample begins.
        ones: each use's input to the bias, which follows the others as the last one; ``None`` for
            no such input.

    Returns:
        The rows, in memory of their own, and how many were sub-sampled; 0 if all were kept.

    Source: Eschenhagen et al. (2023), K-FAC-expand and K-FAC-reduce.
    """
    sizes = [_size(use, sharing) for use in uses]
    total, chosen = sum(sizes), None
    if limit is not None and total > limit:
        chosen = positions(total, limit, start)
    found, before = [], 0
    for i, (use, size) in enumerate(zip(uses, sizes, strict=True)):
        where = None
        if chosen is not None:
            mine = chosen[(chosen >= before) & (chosen < before + size)] - before
            where, before = mine.to(use.delta.device), before + size
        inputs, deltas = getattr(_matrix(use), sharing)(use.layer, use.x, use.delta, where)
        if ones is not None:
            inputs = torch.cat([inputs, inputs.new_full((len(inputs), 1), ones[i])], 1)
        found.append((inputs, deltas))
    inputs = _own([inputs for inputs, _ in found], uses)
    deltas = _own([deltas for _, deltas in found], uses)
    if chosen is None:
        return LayerRows(inputs, deltas), 0
    return LayerRows(inputs, deltas * math.sqrt(total / len(chosen))), len(chosen)


def _own(parts: list[Tensor], uses: list[Use]) -> Tensor:
    """All parts in one tensor, which shares no memory with what a model may write to."""
    if len(parts) > 1:
        return torch.cat(parts)
    theirs = {x.untyped_storage().data_ptr() for use in uses for x in (use.x, use.delta)}
    return parts[0].clone() if parts[0].untyped_storage().data_ptr() in theirs else parts[0]


def _matrix(use: Use) -> Matrix:
    matrix = matrix_of(use.layer)
    assert matrix is not None, "only weights that are matrices are watched"
    return matrix


def _size(use: Use, sharing: Sharing) -> int:
    """How many rows a use makes."""
    matrix = _matrix(use)
    places = matrix.places(use.layer, use.delta) if sharing == "expand" else 1
    return len(use.delta) * places * matrix.groups(use.layer)


def _some(x: Tensor, where: Tensor | None) -> Tensor:
    return x if where is None else x[where]


# Linear -----------------------------------------------------------------------------------------


def _times(layer: Any, delta: Tensor) -> int:
    return math.prod(delta.shape[1:-1])


def _linear_expand(layer: Any, x: Tensor, delta: Tensor, where: Tensor | None) -> LayerRows:
    inputs, deltas = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
    return LayerRows(_some(inputs, where), _some(deltas, where))


def _linear_reduce(layer: Any, x: Tensor, delta: Tensor, where: Tensor | None) -> LayerRows:
    x, delta = _some(x, where), _some(delta, where)
    if x.dim() == 2:
        return LayerRows(x, delta)
    places = max(1, _times(layer, delta))
    return LayerRows(x.flatten(1, -2).sum(1) / places, delta.flatten(1, -2).sum(1))


# Convolutions -----------------------------------------------------------------------------------


def _pixels(layer: Any, delta: Tensor) -> int:
    return math.prod(delta.shape[2:])


def _conv_expand(layer: Any, x: Tensor, delta: Tensor, where: Tensor | None) -> LayerRows:
    if not delta.numel():
        return LayerRows(
            x.new_zeros(0, layer.weight[0].numel()), delta.new_zeros(0, len(layer.weight))
        )
    seen, back = by_group(layer, x, delta)
    n, groups = len(layer.kernel_size), layer.groups
    if where is None:
        order = (0, *range(3 + n, 3 + 2 * n), 1, *range(2, 3 + n))
        inputs = seen.permute(order).reshape(-1, layer.weight[0].numel())
        deltas = back.permute(0, 3, 1, 2)  # examples, places, groups, channels
        if groups == 1:
            return LayerRows(inputs, deltas.reshape(-1, len(layer.weight)))
        return LayerRows(inputs, _apart(deltas).reshape(-1, len(layer.weight)))
    example, place, group = torch.unravel_index(where, (len(x), back.shape[-1], groups))
    chosen: tuple[Any, ...] = (example, group, *[slice(None)] * (1 + n))
    inputs = seen[chosen + torch.unravel_index(place, delta.shape[2:])].flatten(1)
    return LayerRows(inputs, _put(back[example, group, :, place], group, groups))


def _conv_reduce(layer: Any, x: Tensor, delta: Tensor, where: Tensor | None) -> LayerRows:
    groups, group = layer.groups, None
    if where is not None:
        example, group = torch.unravel_index(where, (len(x), groups))
        some, place = torch.unique(example, return_inverse=True)
        x, delta = x[some], delta[some]
    if not delta.numel():
        size = len(delta) * groups if group is None else len(group)
        return LayerRows(
            x.new_zeros(size, layer.weight[0].numel()), delta.new_zeros(size, len(layer.weight))
        )
    seen, back = by_group(layer, x, delta)
    n = len(layer.kernel_size)
    inputs, deltas = seen.mean(tuple(range(3 + n, 3 + 2 * n))).flatten(2), back.sum(-1)
    if group is not None:
        return LayerRows(inputs[place, group], _put(deltas[place, group], group, groups))
    return LayerRows(inputs.flatten(0, 1), _apart(deltas).reshape(-1, len(layer.weight)))


def _apart(deltas: Tensor) -> Tensor:
    """From ``(…, groups, channels)``, each group's channels in a row of their own."""
    return torch.diag_embed(deltas.mT, dim1=-3, dim2=-2) if deltas.shape[-2] > 1 else deltas


def _put(deltas: Tensor, group: Tensor, groups: int) -> Tensor:
    """Channels of one group each, among those of all groups."""
    if groups == 1:
        return deltas
    full = deltas.new_zeros(len(deltas), groups, deltas.shape[1])
    full[torch.arange(len(deltas), device=group.device), group] = deltas
    return full.flatten(1)


# Embeddings -------------------------------------------------------------------------------------


def _embedding_expand(layer: Any, x: Tensor, delta: Tensor, where: Tensor | None) -> LayerRows:
    tokens, back = _some(x.reshape(-1), where), delta.reshape(-1, delta.shape[-1])
    return LayerRows(_some(back, where), _one_hot(layer, tokens, delta))


def _embedding_reduce(layer: Any, x: Tensor, delta: Tensor, where: Tensor | None) -> LayerRows:
    """Padding, which has no gradient, is no place."""
    x, delta = _some(x, where), _some(delta, where)
    each = math.prod(x.shape[1:])
    real = torch.ones_like(x, dtype=delta.dtype).reshape(len(x), each)
    if layer.padding_idx is not None:
        real = real * (x.reshape(len(x), each) != layer.padding_idx)
    back = torch.einsum("es,esd->ed", real, delta.reshape(len(x), each, delta.shape[-1]))
    share = real / real.sum(1, keepdim=True).clamp_min(1)
    tokens = delta.new_zeros(len(x), layer.num_embeddings)
    return LayerRows(back, tokens.scatter_add_(1, x.reshape(len(x), each), share))


def _one_hot(layer: Any, tokens: Tensor, like: Tensor) -> Tensor:
    found = like.new_zeros(len(tokens), layer.num_embeddings)
    found.scatter_(1, tokens[:, None], 1.0)
    if layer.padding_idx is not None:
        found[:, layer.padding_idx] = 0
    return found


LINEAR = Matrix(_times, _linear_expand, _linear_reduce)
CONV = Matrix(_pixels, _conv_expand, _conv_reduce, lambda layer: int(layer.groups))
EMBEDDING = Matrix(
    *(_times, _embedding_expand, _embedding_reduce),
    covers=lambda layer: layer.num_embeddings <= LIMIT,
)

MATRICES: dict[Callable[..., Any], Matrix] = {
    nn.Linear.forward: LINEAR,
    nn.Conv1d.forward: CONV,
    nn.Conv2d.forward: CONV,
    nn.Conv3d.forward: CONV,
    nn.Embedding.forward: EMBEDDING,
}
"""The kinds of layers whose weight is a matrix, by their ``forward``."""
