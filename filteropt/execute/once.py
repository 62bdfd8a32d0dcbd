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
        found = known.get(id(filter))
        if found is None or found[0] is not filter:
            if len(known) >= FEW:
                known.clear()
            found = known[id(filter)] = filter, function(filter)
        return found[1]

    return remembered
