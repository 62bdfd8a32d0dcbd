"""What an executor is given for each parameter, and how it stores what a step returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from filteropt.blocks import Block
from filteropt.engine import Filter, Scalars
from filteropt.measure import local
from filteropt.rounding import Dither, round_at_random
from filteropt.trees import leaves
from filteropt.types import Raw, Scalar, State

__all__ = ["Executor", "Item", "store", "write"]


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


def write(item: Item, disp: Tensor, state: State, gain: float, t: Scalar = 1.0) -> None:
    """Move a block and store its new state.

    Args:
        item: the block.
        disp: its displacement.
        state: its new state.
        gain: factor on the displacement. A bias without a gradient stays where it is.
        t: the step.
    """
    rounds = any(x.dtype is torch.bfloat16 for x in item.kept)
    store(item.kept, state, Dither(item.mean, item.raw.grad, t) if rounds else None)
    (_, moved), *columns = item.block.split(disp)
    item.p.add_(moved, alpha=gain)
    for bias, column in columns:
        if bias.grad is not None:
            bias.add_(column, alpha=gain)


def store(kept: list[Tensor], state: State, dither: Dither | None) -> None:
    """Keep a new state, before weights move of which it may hold a view.

    Args:
        kept: where its tensors go, in order; to those in bfloat16 they are rounded at random.
        state: the new state, which may hold these tensors in other places.
        dither: random numbers, if any is rounded.
    """
    found = leaves(state)
    for i, (place, leaf) in enumerate(zip(kept, found, strict=True)):
        if leaf is place:
            continue
        for j in range(i + 1, len(found)):
            if found[j] is place:  # it moves, too: as it was
                found[j] = place.clone()
        if dither is not None and place.dtype is torch.bfloat16:
            leaf = round_at_random(leaf, dither(i))
        place.copy_(leaf)
