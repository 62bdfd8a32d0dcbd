"""What an executor is given for each parameter, and how it stores what a step returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from filteropt.blocks import Block
from filteropt.engine import Filter, Scalars
from filteropt.measure import local
from filteropt.trees import leaves
from filteropt.types import Raw, State

__all__ = ["Executor", "Item", "write"]


class Item(NamedTuple):
    """A parameter, or a weight with its bias, about to be stepped.

    Attributes:
        block: the parameters.
        raw: what was gathered for them.
        state: what the filter remembers, in the coordinates of this step.
        kept: the tensors of the optimizer's state where the new state goes, in the order of
            :func:`filteropt.trees.leaves`; they are the state's own unless its basis turned.
    """

    block: Block
    raw: Raw
    state: State
    kept: list[Tensor]

    @property
    def p(self) -> Tensor:
        """This process' shard of the parameter, or of the weight."""
        return local(self.block.weight)

    @property
    def mean(self) -> Tensor:
        """The weights, in the belief's dtype."""
        return self.block.whole(self.p.to(self.raw.grad.dtype), self.block.bias)


Executor: TypeAlias = Callable[[Filter, Scalars, Iterable[Item], float], None]
"""Steps items in place, given the composition, the step's numbers and a factor on displacements."""


def write(item: Item, disp: Tensor, state: State, gain: float) -> None:
    """Move a block and store its new state.

    Args:
        item: the block.
        disp: its displacement.
        state: its new state.
        gain: factor on the displacement. A bias without a gradient stays where it is.
    """
    (_, moved), *columns = item.block.split(disp)
    item.p.add_(moved, alpha=gain)
    for bias, column in columns:
        if bias.grad is not None:
            bias.add_(column, alpha=gain)
    for kept, leaf in zip(item.kept, leaves(state), strict=True):
        if leaf is not kept:
            kept.copy_(leaf)
