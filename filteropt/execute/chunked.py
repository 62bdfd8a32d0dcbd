"""Elementwise steps in pieces that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from filteropt.engine import Filter, Scalars
from filteropt.execute.flat import Run, advance, pieces
from filteropt.execute.items import Ahead, Item
from filteropt.execute.layout import Layout
from filteropt.execute.loop import loop
from filteropt.trees import tree_map

__all__ = ["chunked"]

PIECE = 2**18
"""Numbers that are stepped at a time on a CPU."""


def chunked(
    filter: Filter,
    scalars: Scalars,
    items: Iterable[Item],
    gain: float,
    ahead: Ahead | None = None,
) -> None:
    """Step elementwise compositions piece by piece, so that what is worked out stays in the cache.

    Args:
        filter: an elementwise composition.
        scalars: the step's numbers, turned into Python floats here.
        items: the parameters.
        gain: factor on the displacement.
        ahead: how the mean then moves, where gradients are taken at the prediction.
    """
    numbers = tree_map(float, scalars)
    rest = Layout.of(items).each(partial(step_pieces, filter, numbers, gain, ahead))
    loop(filter, numbers, rest, gain, ahead)


def step_pieces(
    filter: Filter, numbers: Scalars, gain: float, ahead: Ahead | None, run: Run
) -> None:
    """Step a run of vectors.

    Args:
        filter: an elementwise composition.
        numbers: the step's numbers, as floats.
        gain: factor on the displacement.
        ahead: how the mean then moves, where gradients are taken at the prediction.
        run: the weights.
    """
    size = PIECE if run.p.device.type == "cpu" else run.p.numel()
    for piece in pieces(run, size):
        advance(filter, numbers, piece, gain, ahead)
