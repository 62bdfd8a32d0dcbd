r"""Gradients of one example at a time of a convolution.

With windows X along the input and δ at the output, :math:`g_i = \sum_s \delta_{is} X_{is}^\top`
over places s. Windows overlap: writing them all out costs as much as the products.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase] - torch's own custom

__all__ = ["by_group", "channel_grads", "conv_grads", "conv_squares", "conv_work"]

BLOCK = 1 << 21
"""Bytes of windows to work on at a time on a processor: what its cache holds."""


def windows(layer: Any, x: Tensor) -> Tensor:
    """What each output place sees of the input, ``(examples, channels, *places, *kernel)``."""
    x = _padded(layer, x)
    for i in range(len(layer.kernel_size)):
        x = _windowed(layer, x, i, 2 + i)
    return x


def _padded(layer: Any, x: Tensor) -> Tensor:
    """The input with its padding around it."""
    if layer.padding == "same":
        spans = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        around = [(span // 2, span - span // 2) for span in spans]
    else:
        around = [(0, 0) if layer.padding == "valid" else (p, p) for p in layer.padding]
    if not any(map(any, around)):
        return x
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, [n for pair in reversed(around) for n in pair], mode=mode)


def _windowed(layer: Any, x: Tensor, i: int, dim: int) -> Tensor:
    """Windows along the i-th dimension of places, a view with their extent as its last one."""
    kernel, stride, dilation = layer.kernel_size[i], layer.stride[i], layer.dilation[i]
    return x.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]


def by_group(layer: Any, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution's windows and δ, by example and group.

    Args:
        layer: the layer.
        x: its input, ``(examples, channels, *places)``.
        delta: the gradient at its output.

    Returns:
        ``(examples, groups, channels, *kernel, *places)``, a view of the padded input, and
        ``(examples, groups, channels, places)``.
    """
    seen, n = windows(layer, x), len(layer.kernel_size)
    seen = seen.permute(0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))
    seen = seen.reshape(len(x), layer.groups, -1, *seen.shape[2:])
    return seen, delta.reshape(len(x), layer.groups, -1, math.prod(delta.shape[2:]))


def _by_row(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    r"""Every example's gradient, the kernel's first dimension before the examples.

    With windows laid out along all other dimensions of places, what the kernel's row k sees is one
    matrix for each k, and all of them lie in the same memory, shifted by k: it is written once, not
    once per row.

    .. math:: g_{ik} = \delta_i\, X_i[kd, kd + s, kd + 2s, \dots]^\top

    Returns:
        ``(kernel, examples, outputs, channels, *kernel)``.
    """
    n, stride, groups = len(layer.kernel_size), layer.stride[0], layer.groups
    seen = _padded(layer, x)
    for i in range(1, n):
        seen = _windowed(layer, seen, i, 2 + i)
    if short := -seen.shape[2] % stride:
        seen = F.pad(seen, [0, 0] * (seen.dim() - 3) + [0, short])
    seen = seen.reshape(*seen.shape[:2], -1, stride, *seen.shape[3:])
    # from (examples, channels, rows, phases, *places, *kernel)
    seen = seen.permute(0, 1, *range(3 + n, 2 + 2 * n), 3, 2, *range(4, 3 + n))
    back = delta.reshape(len(x) * groups, -1, math.prod(delta.shape[2:]))
    shape = -1, stride, seen.shape[2 + n :].numel()
    seen = seen.reshape(len(back), *shape)
    each, places = math.prod(delta.shape[3:]), back.shape[-1]
    grads = delta.new_empty(layer.kernel_size[0], *back.shape[:2], seen.shape[1])
    for k in range(len(grads)):
        shift, phase = divmod(k * layer.dilation[0], stride)
        rows = seen[:, :, phase, shift * each : shift * each + places]
        torch.bmm(back, rows.mT, out=grads[k])
    sizes = layer.out_channels, layer.in_channels // groups, *layer.kernel_size[1:]
    return grads.view(len(grads), len(x), *sizes)


def conv_grads(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """The products of δ and windows, summed over places, for each group of channels."""
    if not len(x):
        return x.new_zeros(0, *layer.weight.shape)
    return _by_row(layer, x, delta).movedim(0, 3)


def conv_squares(layer: Any, x: Tensor, delta: Tensor, out: Tensor | None) -> Tensor | None:
    """The same, squared and summed, block by block of what a processor's cache holds."""
    size = BLOCK // max(1, conv_work(layer, delta) * delta.element_size())
    if delta.device.type != "cpu" or not 0 < size < len(x):
        return None
    squares = delta.new_zeros(())
    for start in range(0, len(x), size):
        grads = _by_row(layer, x[start : start + size], delta[start : start + size])
        squares = squares + torch.linalg.vecdot(grads, grads, dim=1)
    return squares.movedim(0, 2)


def conv_work(layer: Any, delta: Tensor) -> int:
    """The windows that one example's gradient is made from."""
    stride = layer.stride[0]
    rows = delta.shape[2] - (-layer.dilation[0] * (layer.kernel_size[0] - 1) // stride)
    windows = layer.in_channels * math.prod(layer.kernel_size[1:]) * math.prod(delta.shape[3:])
    return int(windows * rows * stride)


def channel_grads(layer: Any, x: Tensor, delta: Tensor) -> Tensor:
    """Of a bias of every channel: δ, summed over places."""
    return delta if delta.dim() == 2 else delta.flatten(2).sum(2)
