"""How far a sweep is: a bar where rich is installed, a few plain lines where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

__all__ = ["Report", "progress"]

Report = Callable[[int, int], None]
"""Told how many steps of members are done, and of how many."""

SECONDS = 0.1
LINES = 5


@contextmanager
def progress(
    shown: bool | Report | None, total: int, members: int
) -> Generator[Report, None, None]:
    """Show how far a sweep is.

    Args:
        shown: whether to; ``None`` where the standard error is a terminal. A function is called
            instead.
        total: steps of all members.
        members: how many there are.

    Yields:
        What is to be told.
    """
    if callable(shown):
        yield shown
    elif not (sys.stderr.isatty() if shown is None else shown):
        yield lambda done, total: None
    elif find_spec("rich") is not None and sys.stderr.isatty():
        with _bar(total, members) as report:
            yield report
    else:
        yield _lines(members)


@contextmanager
def _bar(total: int, members: int) -> Generator[Report, None, None]:
    """A live bar with the time left."""
    rich, console = import_module("rich.progress"), import_module("rich.console")
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console.Console(stderr=True), transient=True) as bar:
        task, last = bar.add_task(f"sweep of {members}", total=total), 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            if done == total or time.monotonic() - last > SECONDS:
                last = time.monotonic()
                bar.update(task, completed=done)

        yield report


def _lines(members: int) -> Report:
    """A line now and then, with the time left."""
    began, printed = time.monotonic(), 0

    def report(done: int, total: int) -> None:
        nonlocal printed
        if total and done * LINES // total > printed:
            printed = done * LINES // total
            left = (time.monotonic() - began) * (total - done) / done
            text = f"sweep of {members}: {done / total:.0%} done, about {left:.0f} s left"
            print(text, file=sys.stderr)

    return report
