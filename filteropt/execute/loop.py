"""One tensor after the other: the reference for every other executor."""

from __future__ import annotations

from collections.abc import Iterable

from filteropt.engine import Filter, Scalars, step
from filteropt.execute.items import Ahead, Item, write
from filteropt.trees import tree_map

__all__ = ["loop"]


def loop(
    filter: Filter,
    scalars: Scalars,
    items: Iterable[Item],
    gain: float,
    ahead: Ahead | None = None,
) -> None:
    """Step one tensor after the other.

    Args:
        filter: the composition.
        scalars: the step's numbers, turned into Python floats here: they are the fastest on an
            eager tensor of any device, and keep a 0-d parameter in its own dtype.
        items: the parameters.
        gain: factor on the displacement.
        ahead: how the mean then moves, where gradients are taken at the prediction.
    """
    numbers = tree_map(float, scalars)
    for item in items:
        disp, state = step(filter, numbers, item.state, item.raw, item.mean)
        write(item, disp, state, gain, numbers.t, ahead)
