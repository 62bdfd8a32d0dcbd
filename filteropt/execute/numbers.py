"""What a composition's step is apart from its numbers, and these numbers in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args

from filteropt.engine import Filter, Scalars
from filteropt.execute.flat import Run
from filteropt.execute.items import Ahead
from filteropt.execute.once import once
from filteropt.hyperparameters import hints_of
from filteropt.trees import tree_map

__all__ = ["kind_of", "numbers_of", "structure_of", "structures", "with_numbers"]

Take = Callable[[float], Any]


def numbers_of(
    filter: Filter,
    scalars: Scalars,
    gain: float,
    ahead: Ahead | None = None,
    read: Callable[[Any], Any] = float,
) -> list[Any]:
    """All numbers that a step depends on, in order.

    Args:
        filter: the composition, whose parts' own numbers count.
        scalars: the step's.
        gain: the factor on displacements.
        ahead: how the mean then moves, if it does.
        read: what is done to each of the step's numbers.

    Returns:
        Floats, and what was made of the step's numbers.
    """
    found: list[Any] = []
    tree_map(lambda x: found.append(read(x)), scalars)
    found.append(gain)
    tree_map(lambda x: found.append(float(x)), ahead)
    for part, name in _numeric(filter):
        value = getattr(part, name)
        found.extend(map(float, value) if isinstance(value, tuple) else [float(value)])
    return found


def structure_of(
    filter: Filter, scalars: Scalars, ahead: Ahead | None = None
) -> tuple[object, ...]:
    """What a program is compiled for: a composition without its numbers.

    Args:
        filter: the composition.
        scalars: a step's numbers, of which it matters which there are.
        ahead: how the mean then moves, if it does.

    Returns:
        A key, the same for all compositions that a program can serve.
    """
    return tree_map(lambda _: 0, (scalars, ahead)), *structures(filter)


def kind_of(run: Run) -> tuple[object, ...]:
    """What a program is compiled for: vectors of these dtypes on this device.

    Args:
        run: vectors.

    Returns:
        A key, the same for all runs that a program can serve.
    """
    return run.kind or (run.p.device, run.names, *((x.dtype, x.dim()) for x in run.columns))


def _parts(filter: Filter) -> Iterator[Any]:
    """The parts that an element program is made of."""
    yield from (filter.likelihood, filter.posterior, filter.basis, *filter.projections)


def with_numbers(filter: Filter, take: Take) -> Filter:
    """A filter with other numbers.

    Args:
        filter: the composition.
        take: makes of each of its parts' numbers, in order, what takes its place.

    Returns:
        The composition, unchecked.
    """
    likelihood, posterior, basis, *projections = (_replaced(x, take) for x in _parts(filter))
    return replace(filter, likelihood=likelihood, posterior=posterior, basis=basis,
                   projections=tuple(projections))  # fmt: skip


@once
def _numeric(filter: Filter) -> list[tuple[Any, str]]:
    """Every field of a filter's parts that holds numbers, in the order of those above."""
    return [found for part in _parts(filter) for found in _numeric_fields(part)]


def _numeric_fields(part: Any) -> Iterator[tuple[Any, str]]:
    for name, value, numeric in _fields(part):
        if numeric:
            yield part, name
        elif is_dataclass(value):
            yield from _numeric_fields(value)


@once
def structures(filter: Filter) -> tuple[tuple[object, ...], ...]:
    """Every part without its numbers.

    Args:
        filter: the composition.

    Returns:
        A key, if what their fields hold is one.
    """
    return tuple(_structure(part) for part in _parts(filter))


def _replaced(part: Any, take: Take) -> Any:
    """A copy of a part, unchecked, with other numbers."""
    copy = object.__new__(type(part))
    for name, value, numeric in _fields(part):
        if numeric:
            value = tuple(map(take, value)) if isinstance(value, tuple) else take(value)
        elif is_dataclass(value):
            value = _replaced(value, take)
        object.__setattr__(copy, name, value)
    return copy


def _structure(part: Any) -> tuple[object, ...]:
    """A part without its numbers."""
    found: list[object] = [type(part)]
    for _, value, numeric in _fields(part):
        if numeric:
            found.append(len(value) if isinstance(value, tuple) else "number")
        else:
            found.append(_structure(value) if is_dataclass(value) else value)
    return tuple(found)


def _fields(part: Any) -> Iterator[tuple[str, Any, bool]]:
    """A part's fields by name, and whether they are numbers: floats by their annotation."""
    hints = hints_of(type(part), metadata=False)
    for field in fields(part):
        value, hint = getattr(part, field.name), hints.get(field.name)
        numeric = float in (hint, *get_args(hint)) and value is not None
        yield field.name, value, numeric
