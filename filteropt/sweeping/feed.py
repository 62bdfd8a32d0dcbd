"""The minibatches of a sweep: one for all members, or every seed's own, put side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Minibatches", "again", "feed", "length", "mapped", "tensors_of"]

Minibatches: TypeAlias = Iterable[Any] | Callable[[int], Iterable[Any]]
"""Minibatches, or from a seed to its minibatches."""


def length(batches: Minibatches, seed: int) -> int:
    """How many minibatches one pass has.

    Args:
        batches: the minibatches.
        seed: any of the seeds.

    Returns:
        Their number.

    Raises:
        ValueError: it is not known beforehand.
    """
    source = batches(seed) if callable(batches) else batches
    if not isinstance(source, Sized):
        raise ValueError(
            f"sweep: how many minibatches {type(source).__name__} has is not known: give steps"
        )
    return len(source)


def again(batches: Minibatches, steps: int) -> Minibatches:
    """Minibatches that can be read again and again.

    Args:
        batches: the minibatches.
        steps: how many are needed.

    Returns:
        The same, or a list of what an iterator has.

    Raises:
        ValueError: an iterator has too few.
    """
    if callable(batches) or iter(batches) is not batches:
        return batches
    read = list(itertools.islice(batches, steps))
    if len(read) < steps:
        raise ValueError(
            f"sweep: {type(batches).__name__} had no more minibatches after {len(read)} of "
            f"{steps}; give a list or a DataLoader, which can be read again, or fewer steps"
        )
    return read


def feed(
    batches: Minibatches, seeds: Sequence[int], device: torch.device
) -> Iterator[tuple[Any, Any]]:
    """Minibatches without end, pass after pass.

    Args:
        batches: the minibatches.
        seeds: every different seed.
        device: where they go.

    Yields:
        A minibatch and its ``in_dims`` for ``vmap``: ``None`` where all members share it, else it
        has a dimension of the seeds in front.

    Raises:
        ValueError: the minibatches are used up, or those of two seeds differ in shape.
    """
    if not callable(batches):
        for batch in _passes(batches):
            yield mapped(lambda x: x.to(device), batch), None
        return
    streams = [_passes(batches(seed)) for seed in seeds]
    for several in zip(*streams, strict=True):
        moved = [mapped(lambda x: x.to(device), batch) for batch in several]
        yield (moved[0], None) if len(moved) == 1 else (_stacked(moved), 0)


def _passes(batches: Iterable[Any]) -> Iterator[Any]:
    """Passes over the minibatches, one after the other."""
    total = 0
    while True:
        before = total
        for batch in batches:
            total += 1
            yield batch
        if total == before:
            raise ValueError(
                f"sweep: {type(batches).__name__} had no more minibatches after {total}; let the "
                f"function of the seed return a list or a DataLoader, which can be read again"
            )


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A tree of tuples, lists and dictionaries, its tensors replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(function, x) for x in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(mapped(function, x) for x in tree)
    if isinstance(tree, dict):
        return {key: mapped(function, x) for key, x in tree.items()}
    return tree


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    mapped(note, tree)
    return found


def _stacked(trees: list[Any]) -> Any:
    """Trees of one form as one, their tensors stacked."""
    columns = [tensors_of(tree) for tree in trees]
    shapes = [[x.shape for x in column] for column in columns]
    if any(other != shapes[0] for other in shapes):
        raise ValueError(
            "sweep: the minibatches of two seeds differ in shape; leave an incomplete last one out "
            "(drop_last=True), or let all seeds share the order"
        )
    rest = iter([torch.stack(xs) for xs in zip(*columns, strict=True)])
    return mapped(lambda _: next(rest), trees[0])
