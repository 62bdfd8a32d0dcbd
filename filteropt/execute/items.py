"""What an executor is given for each parameter, and how it stores what a step returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from filteropt.blocks import Block
from filteropt.engine import Filter, Scalars
from filteropt.measure import local
from filteropt.rounding import Dither, round_at_random
from filteropt.trees import leaves
from filteropt.types import Raw, Scalar, State

__all__ = ["Ahead", "Executor", "Item", "add", "foresee", "store", "write"]


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


class Ahead(NamedTuple):
    """How a posterior mean moves to the next step's prediction.

    Attributes:
        decay: the fraction of it that is lost.
        drift: what each of the other latents' means adds to it, per unit.
    """

    decay: Scalar
    drift: tuple[Scalar, ...]


Executor: TypeAlias = Callable[[Filter, Scalars, Iterable[Item], float, Ahead | None], None]
"""Steps items in place.

It is given the composition, the step's numbers, a factor on displacements and, where gradients are
taken at the prediction, how the mean then moves ahead.
"""


def foresee(p: Tensor, means: Sequence[Tensor], ahead: Ahead) -> None:
    """Move weights from their posterior mean to their prediction.

    Args:
        p: the weights.
        means: the other latents' posterior means.
        ahead: how the mean moves.
    """
    p.mul_(1 - ahead.decay)
    for mean, factor in zip(means, ahead.drift, strict=True):
        add(p, mean, factor)


def add(p: Tensor, x: Tensor, factor: Scalar) -> None:
    """Add a multiple in place, in one pass where the factor is a float."""
    if isinstance(factor, Tensor):
        p.add_(factor * x)
    else:
        p.add_(x, alpha=factor)


def write(
    item: Item,
    disp: Tensor,
    state: State,
    gain: float,
    t: Scalar = 1.0,
    ahead: Ahead | None = None,
) -> None:
    """Move a block and store its new state.

    Args:
        item: the block.
        disp: its displacement.
        state: its new state.
        gain: factor on the displacement. A bias without a gradient stays where it is.
        t: the step.
        ahead: how the mean then moves, where gradients are taken at the prediction.
    """
    rounds = any(x.dtype is torch.bfloat16 for x in item.kept)
    store(item.kept, state, Dither(item.mean, item.raw.grad, t) if rounds else None)
    means = [item.block.split(mean) for mean in state.belief.aux]
    for i, (p, moved) in enumerate(item.block.split(disp)):
        p = item.p if i == 0 else p
        if i and p.grad is None:
            continue
        p.add_(moved, alpha=gain)
        if ahead is not None:
            foresee(p, [parts[i][1] for parts in means], ahead)


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
