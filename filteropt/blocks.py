"""What is believed of together: a parameter, or a weight matrix with its bias as a column."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Block", "blocks_of"]


class Block(NamedTuple):
    r"""A parameter, or the matrix :math:`(W\;b)` of a weight W, M×N, and a bias b of its M rows.

    Attributes:
        weight: the parameter, by which the optimizer keeps the block's state.
        bias: the column, if there is one.
    """

    weight: Tensor
    bias: Tensor | None = None

    @property
    def members(self) -> tuple[Tensor, ...]:
        """The block's parameters."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def shape(self) -> torch.Size:
        """The shape of the block as one tensor."""
        if self.bias is None:
            return self.weight.shape
        return torch.Size((len(self.weight), self.weight[0].numel() + 1))

    def whole(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Tensors like the members as one; a lone weight's as it is."""
        if self.bias is None:
            return weight
        assert bias is not None, "a block with a bias has two parts"
        return torch.cat([weight.flatten(1), bias[:, None]], 1)

    def split(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Every member with its part of a tensor like the block, shaped like itself."""
        if self.bias is None:
            return [(self.weight, x)]
        return [(self.weight, x[:, :-1].reshape(self.weight.shape)), (self.bias, x[:, -1])]


def blocks_of(params: list[Tensor], part: Any) -> list[Block]:
    """A group's parameters, in order, with biases put to the weights that they follow.

    Args:
        params: the parameters. Where the part says ``joint``, a vector that directly follows a
            matrix (or a convolution's weight) of as many rows is its column.
        part: the group's likelihood.

    Returns:
        The blocks.

    Example:
        >>> from filteropt.approximations import LayerGradients
        >>> params = [torch.zeros(2, 3), torch.ones(2), torch.zeros(4, 2)]
        >>> [block.shape for block in blocks_of(params, LayerGradients(joint=True))]
        [torch.Size([2, 4]), torch.Size([4, 2])]
        >>> [block.shape for block in blocks_of(params, LayerGradients())]
        [torch.Size([2, 3]), torch.Size([2]), torch.Size([4, 2])]
    """
    if not getattr(getattr(part, "core", part), "joint", False):
        return [Block(p) for p in params]
    found: list[Block] = []
    for p in params:
        last = found[-1] if found else None
        if last is not None and _column(last, p):
            found[-1] = Block(last.weight, p)
        else:
            found.append(Block(p))
    return found


def _column(block: Block, p: Tensor) -> bool:
    """Whether a parameter after a block is its column."""
    matrix = block.bias is None and block.weight.dim() > 1
    return matrix and p.dim() == 1 and len(p) == len(block.weight) and block.weight.numel() > 0
