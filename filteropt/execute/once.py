"""What is worked out once for every filter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from filteropt.engine import Filter

__all__ = ["once"]

T = TypeVar("T")

FEW = 64
"""Filters of which something is known at a time."""


def once(function: Callable[[Filter], T]) -> Callable[[Filter], T]:
    """Remember what a function found of the last filters, which do not change.

    Filters are told apart as objects: comparing them would take longer than most such functions.

    Args:
        function: of a filter alone.

    Returns:
        The same function, which works something out once.
    """
    known: dict[int, tuple[Filter, T]] = {}

    @functools.wraps(function)
    def remembered(filter: Filter) -> T:
        if id(filter) not in known:
            if len(known) >= FEW:
                known.clear()
            known[id(filter)] = filter, function(filter)  # which is held, so that its id is its own
        return known[id(filter)][1]

    return remembered
