"""Every shipped part, and every composition of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from filteropt.engine import Filter
from filteropt.engine.compatibility import SLOTS, shipped

__all__ = ["compositions", "parts"]


def parts(slot: str) -> dict[str, type[Any]]:
    """The shipped parts of one slot, each of which can be made without arguments.

    Args:
        slot: ``"dynamics"``, ``"likelihood"``, ``"posterior"`` or ``"basis"``.

    Returns:
        Classes by name, in alphabetical order.

    Raises:
        ValueError: another slot.

    Example:
        >>> parts("dynamics")["Static"]()
        Static()
    """
    return shipped(slot)


def compositions() -> Iterator[Filter]:
    """Every composition of the shipped parts with their defaults, whether or not they fit.

    Yields:
        Filters, which :func:`filteropt.engine.check` accepts or refuses.

    Example:
        >>> from filteropt.engine import IncompatibleComposition, check
        >>> fits = 0
        >>> for filter in compositions():
        ...     try: check(filter)
        ...     except IncompatibleComposition: continue
        ...     fits += 1
        >>> fits > 50
        True
    """
    for made in itertools.product(*(shipped(slot).values() for slot in SLOTS)):
        yield Filter(*(cls() for cls in made))
