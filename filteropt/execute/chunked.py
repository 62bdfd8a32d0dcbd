"""Elementwise steps in pieces that stay in the processor's cache."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from functools import partial

import torch

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
    filter: Filter, numbers: Scalars, gain: float, ahead: Ahead | None, runs: list[Run]
) -> None:
    """Step runs of vectors.

    Args:
        filter: an elementwise composition.
        numbers: the step's numbers, as floats.
        gain: factor on the displacement.
        ahead: how the mean then moves, where gradients are taken at the prediction.
        runs: the weights.
    """
    for run in runs:
        size = run.p.numel()
        if run.p.device.type == "cpu":
            size = PIECE
            _keep_memory()
        for piece in pieces(run, size):
            advance(filter, numbers, piece, gain, ahead)


@functools.cache
def _keep_memory() -> None:
    """Let the C library keep the memory of intermediate results, which the next piece needs again.

    glibc takes the largest block that was given back, up to 32 MiB, for the size from which blocks
    are worth returning to the system, piece after piece. That holds for the whole process.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")
