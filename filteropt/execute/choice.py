"""Which executor steps what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from filteropt.engine import Filter
from filteropt.execute.chunked import chunked
from filteropt.execute.fused import fused, replayed
from filteropt.execute.items import Executor
from filteropt.execute.loop import loop
from filteropt.execute.numbers import structures
from filteropt.execute.once import once

__all__ = ["capture_objection", "choose", "is_elementwise", "objection"]

MANY = 10**7
"""Weights of one group from which on compiling pays by itself."""
SEVERAL = 2**18
"""Weights of one group from which on recording a step does, which takes a fraction of a second."""
PROGRAMS = frozenset({"observe", "propagate", "condition", "__call__", "forward", "backward"})
"""What an element program is made of."""


def choose(filter: Filter, weights: int, wanted: bool | None) -> Executor:
    """The executor of a group's step.

    Args:
        filter: the composition.
        weights: how many weights are stepped.
        wanted: whether the step is to be compiled; ``None`` leaves that to their number.

    Returns:
        :func:`fused`, :func:`replayed` or :func:`chunked` for elementwise compositions, else
        :func:`loop`.
    """
    if not is_elementwise(filter):
        return loop
    if objection(filter) is not None:
        return chunked
    if wanted or (wanted is None and weights >= MANY):
        return fused
    return replayed if weights >= SEVERAL else chunked


@once
def is_elementwise(filter: Filter) -> bool:
    """Whether every part of a composition says that it treats every weight on its own."""
    return all(map(_elementwise, _parts(filter)))


@once
def objection(filter: Filter) -> str | None:
    """Why a composition's step cannot be compiled, as a clause; ``None`` if it can."""
    for part in _parts(filter):
        name = type(part).__name__
        if not _elementwise(part):
            return (
                f"{name} does not say that it treats every weight on its own (elementwise = True "
                f"in the class that defines its program)"
            )
        if not is_dataclass(part):
            return f"{name} is no dataclass, whose fields would tell what is compiled"
    try:
        hash(structures(filter))
    except TypeError as error:
        return f"a field of its parts is no key to what is compiled ({error})"
    return None


def capture_objection(filter: Filter, *, strict: bool) -> str | None:
    """Why a composition's step cannot be captured, as a clause; ``None`` if it can.

    Args:
        filter: the composition.
        strict: whether gradients are taken at the prediction.

    Returns:
        The clause.
    """
    if strict:
        return "linearize_at='prediction' keeps numbers on the CPU"
    more = ", ".join(sorted(filter.likelihood.needs - {"grad"}))
    if more:
        return f"{type(filter.likelihood).__name__} needs {more}, gathered outside of a step"
    return objection(filter)


def _parts(owner: Any) -> Iterator[Any]:
    """The parts of a filter that work on weights, and the parts that these wrap."""
    if isinstance(owner, Filter):
        found = [owner.likelihood, owner.posterior, owner.basis, *owner.projections]
    else:
        found = [getattr(owner, f.name) for f in fields(owner)] if is_dataclass(owner) else []
        found = [x for x in found if not PROGRAMS.isdisjoint(dir(x)) and not isinstance(x, type)]
    for part in found:
        yield part
        yield from _parts(part)


def _elementwise(part: Any) -> bool:
    """Whether a part is elementwise by the word of the class that defines its program."""
    for cls in type(part).__mro__:
        if "elementwise" in vars(cls):
            return bool(part.elementwise)
        if PROGRAMS & vars(cls).keys():
            return False
    return False
