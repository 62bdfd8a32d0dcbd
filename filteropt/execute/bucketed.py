"""Equal blocks at once: stacked, turned and stepped by one batched program, and written back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from filteropt.engine import Filter, Scalars, refresh, step
from filteropt.execute.items import Item, write
from filteropt.execute.overlaps import tied
from filteropt.trees import restore, tree_map
from filteropt.types import State

__all__ = ["bucketed"]

SMALL = 2**17
"""Numbers of a block and all that is kept of it, up to which a processor gains by stacking it."""
FEWEST = 4
"""Blocks that a stack on a processor has at least."""
TOGETHER = {"cpu": 2**22, "cuda": 2**26}
"""Numbers that are stacked at most, by kind of device."""

Program: TypeAlias = Callable[[Tensor, Any, State], tuple[Tensor, State]]


def bucketed(
    filter: Filter, scalars: Scalars, items: Iterable[Item], gain: float, *, t: float | None = None
) -> None:
    """Step blocks of equal shapes together: one program, mapped over their stack.

    What is stacked has the shapes, dtypes and device of everything gathered and kept in common, and
    so the number of its layer's rows. Products, factorisations, eigenvectors and triangular solves
    are then batched. Blocks without equals are stepped by themselves; so are, on a processor, fewer
    than 4 and those that have more than 2¹⁷ numbers with all that is kept of them: a matrix in its
    eigenbasis above about 128×128. The results are those of :func:`~filteropt.execute.loop`.

    A stack is a copy of its blocks' numbers, of 2²² at most on a processor and 2²⁶ on another
    device. With its results and what is between, a few times as many are held for a moment.

    Args:
        filter: the composition. What looks at numbers in its program and is not
            :func:`~filteropt.leading.leading` is not stacked, with a warning.
        scalars: the step's numbers.
        items: the blocks.
        gain: factor on the displacement.
        t: the step about to be taken, if the items' bases have not learned from it; they do here.
    """
    numbers = tree_map(float, scalars)

    def program(mean: Tensor, raw: Any, state: State) -> tuple[Tensor, State]:
        if t is not None and t > 1:
            state = refresh(filter, t, state, raw)
        return step(filter, numbers, state, raw, mean)

    for stack in _stacks(items):
        if t == 1:  # whether a basis has seen anything, numbers tell
            stack = [x._replace(state=refresh(filter, t, x.state, x.raw)) for x in stack]
        if len(stack) > 1 and _together(program, stack, gain):
            continue
        for item in stack:
            disp, state = program(item.mean, item.raw, item.state)
            write(item, disp, state, gain)


def _stacks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items, those together that are stepped together."""
    items, alike = list(items), dict[Hashable, list[Item]]()
    overlapping = tied([item.p for item in items])
    for i, item in enumerate(items):
        form = tree_map(lambda x: (x.shape, x.dtype, x.device), (item.p, item.raw, item.state))
        alike.setdefault(i if i in overlapping else (item.block.shape, form), []).append(item)
    for members in alike.values():
        parts = -(-len(members) // _most(members[0], len(members)))
        size = -(-len(members) // parts)
        for i in range(0, len(members), size):
            yield members[i : i + size]


def _most(item: Item, count: int) -> int:
    """How many of so many blocks like this one are stacked at most."""
    numbers = item.raw.grad.numel() + sum(x.numel() for x in _flat((item.raw, item.state)))
    device = item.p.device.type
    if device == "cpu" and (numbers > SMALL or count < FEWEST):
        return 1
    return max(1, TOGETHER.get(device, TOGETHER["cuda"]) // max(1, numbers))


def _together(program: Program, items: list[Item], gain: float) -> bool:
    """Step a stack, if its program can be mapped over it."""
    trees = [(item.mean, item.raw, item.state) for item in items]

    def flat(*members: Tensor) -> tuple[Tensor, ...]:
        rest = iter(members)
        return tuple(_flat(program(*tree_map(lambda _: next(rest), trees[0]))))

    columns = zip(*map(_flat, trees), strict=True)
    try:
        found = torch.func.vmap(flat)(*map(torch.stack, columns))
    except RuntimeError as error:
        if "vmap" not in str(error) and "atching rule" not in str(error):
            raise
        warnings.warn(
            f"a part of the filter cannot be mapped over blocks, which are stepped one by one: "
            f"{str(error).strip().splitlines()[0]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    results = zip(*(x.unbind() for x in found), strict=True)
    for item, (disp, *new) in zip(items, results, strict=True):
        write(item, disp, restore(item.state, new), gain)
    return True


def _flat(tree: Any) -> list[Tensor]:
    """The tensors of nested tuples, in order."""
    found: list[Tensor] = []
    tree_map(found.append, tree)
    return found
