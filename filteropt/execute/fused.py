"""Elementwise steps by recorded programs: one kernel for all the weights of a group."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterable

from torch import Tensor
from torch.autograd.graph import increment_version
from torch.autograd.profiler import record_function

from filteropt import measure
from filteropt.engine import Filter, Scalars
from filteropt.execute.chunked import step_pieces
from filteropt.execute.flat import Run, pieces
from filteropt.execute.items import Ahead, Item
from filteropt.execute.layout import Layout
from filteropt.execute.loop import loop
from filteropt.execute.numbers import kind_of, numbers_of, structure_of
from filteropt.execute.program import Program, build, inputs_of
from filteropt.trees import tree_map

__all__ = ["captured", "fused", "replayed"]

Kernel = Callable[[list[Tensor]], object]

_PROGRAMS: dict[object, Program | None] = {}
"""Everything recorded in this process; ``None`` for what could not be."""
_BUILDING = threading.Lock()


def fused(
    filter: Filter,
    scalars: Scalars,
    items: Iterable[Item],
    gain: float,
    ahead: Ahead | None = None,
) -> None:
    """Step elementwise compositions by a compiled program.

    One program serves a composition, whatever its numbers and however many weights there are. Where
    it cannot be compiled, :func:`replayed` takes its place, with one warning.

    Args:
        filter: an elementwise composition, whose parts are dataclasses.
        scalars: the step's numbers.
        items: the parameters.
        gain: factor on the displacement.
        ahead: how the mean then moves, where gradients are taken at the prediction.
    """
    _by_programs(filter, scalars, items, gain, ahead, compiled=True)


def replayed(
    filter: Filter,
    scalars: Scalars,
    items: Iterable[Item],
    gain: float,
    ahead: Ahead | None = None,
) -> None:
    """Step elementwise compositions piece by piece by a program that is not compiled.

    Its operations are those of the engine's step, in little memory, which stays in the cache. Where
    they cannot be recorded, :func:`chunked` takes its place.

    Args:
        filter: an elementwise composition, whose parts are dataclasses.
        scalars: the step's numbers.
        items: the parameters.
        gain: factor on the displacement.
        ahead: how the mean then moves, where gradients are taken at the prediction.
    """
    _by_programs(filter, scalars, items, gain, ahead, compiled=False)


def captured(
    filter: Filter,
    scalars: Scalars,
    items: Iterable[Item],
    gain: float,
    ahead: Ahead | None = None,
) -> None:
    """Step as :func:`fused` does, and read no number: what is done can be captured and done again.

    Args:
        filter: an elementwise composition, whose parts are dataclasses.
        scalars: the step's numbers, on the weights' device where they depend on the step.
        items: the parameters.
        gain: factor on the displacement.
        ahead: how the mean then moves, where gradients are taken at the prediction.
    """
    _by_programs(filter, scalars, items, gain, ahead, compiled=True, read=False)


def _by_programs(
    filter: Filter,
    scalars: Scalars,
    items: Iterable[Item],
    gain: float,
    ahead: Ahead | None,
    *,
    compiled: bool,
    read: bool = True,
) -> None:
    numbers: Scalars = tree_map(float, scalars) if read else scalars
    given = numbers_of(filter, numbers, gain, ahead, float if read else lambda x: x)
    structure = structure_of(filter, scalars, ahead)
    ready: dict[object, tuple[Program, Tensor]] = {}

    def advance(runs: list[Run]) -> None:
        calls: list[tuple[Kernel, list[Tensor]]] = []
        for run in runs:
            kind, size = kind_of(run), run.p.numel()
            if kind not in ready:
                key = compiled, structure, kind
                program = _program(filter, scalars, ahead, run, key, compiled=compiled)
                if program is not None:
                    work_out = program.values if read else program.values_there
                    ready[kind] = program, work_out(given, run)
            found = ready.get(kind) if size > 1 else None
            if found is None:
                step_pieces(filter, numbers, gain, ahead, [run])
                continue
            ours, values = found
            for x in (run,) if size <= ours.longest else pieces(run, ours.longest):
                calls.append((ours.kernel, inputs_of(values, x)))
        with record_function(f"filteropt.execute.{'fused' if compiled else 'replayed'}"):
            for kernel, inputs in calls:  # each of which leaves nothing else in the cache
                kernel(inputs)
        increment_version([x for run in runs for x in (run.p, *run.kept)])

    rest = [item for item in Layout.of(items).each(advance) if item.p.numel()]
    if rest and measure.capturing():
        raise RuntimeError(
            "parameters that overlap in memory, or are of a tensor type of their own, cannot be "
            "stepped in a CUDA graph; leave their optimizer's step out of it"
        )
    if rest:
        loop(filter, numbers, rest, gain, ahead)


def _program(
    filter: Filter,
    scalars: Scalars,
    ahead: Ahead | None,
    run: Run,
    key: object,
    *,
    compiled: bool,
) -> Program | None:
    """The program for such runs, built when it is first needed; ``None`` if that failed."""
    with _BUILDING:  # compilers are not for several threads
        if key not in _PROGRAMS:
            made, reason = _attempt(filter, scalars, ahead, run, compiled=compiled)
            if compiled and reason:
                _warn(reason)
                made, _ = _attempt(filter, scalars, ahead, run, compiled=False)
            _PROGRAMS[key] = made
        return _PROGRAMS[key]


def _attempt(
    filter: Filter, scalars: Scalars, ahead: Ahead | None, run: Run, *, compiled: bool
) -> tuple[Program | None, str]:
    """A program, or none and the reason. What torch warns its own developers of is no news."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build(filter, scalars, ahead, run, compiled=compiled), ""
    except Exception as error:  # whatever a compiler may raise
        cause = getattr(error, "inner_exception", error)
        return None, f"{type(cause).__name__}: {cause}".splitlines()[0]


@functools.cache
def _warn(reason: str) -> None:
    """Say once why a step is not compiled."""
    warnings.warn(
        f"the step could not be compiled ({reason}); it is replayed instead, with the same "
        f"results. Pass fused=False to ask for that",
        stacklevel=2,
    )
