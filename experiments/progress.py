"""Progress of many runs: a live bar on a terminal, a few plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

_LINES = 4


class Meter:
    """Counts finished runs and estimates the time left from the work done so far."""

    def __init__(self, console: Console, runs: int, work: float) -> None:
        """Start counting.

        Args:
            console: Where to draw.
            runs: Number of runs.
            work: Work of all of them, in any unit.
        """
        self._console = console
        self._runs = runs
        self._finished = 0
        self._work = max(work, 1e-12)
        self._done = 0.0
        self._first: tuple[float, float] | None = None
        self._lines = 0
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                _TimeLeft(self),
                console=console,
            )
            self._task = self._bar.add_task(self._count(), total=self._work)

    def __enter__(self) -> "Meter":
        """Draw the bar.

        Returns:
            The meter.
        """
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, work: float) -> None:
        """Count work done.

        Args:
            work: How much.
        """
        self._done += work
        if self._first is None:  # the time before is start-up, which says nothing about speed
            self._first = time.monotonic(), self._done
        if self._bar is not None:
            self._bar.update(self._task, completed=min(self._done, self._work))

    def finish_run(self) -> None:
        """Count a finished run."""
        self._finished += 1
        if self._bar is not None:
            self._bar.update(self._task, description=self._count())
        elif self._finished * _LINES // self._runs > self._lines:
            self._lines = self._finished * _LINES // self._runs
            self._console.print(f"{self._count()}, {self.time_left()}", highlight=False)

    def time_left(self) -> str:
        """Estimate the time left.

        Returns:
            The time in words.
        """
        since, done = self._first or (0.0, self._done)
        if self._done <= done:
            return "estimating the time left"
        elapsed = time.monotonic() - since
        seconds = round(elapsed * max(0.0, self._work - self._done) / (self._done - done))
        minutes, seconds = divmod(seconds, 60)
        return f"about {minutes} min {seconds:02d} s left" if minutes else f"about {seconds} s left"

    def _count(self) -> str:
        return f"{self._finished} of {self._runs} runs finished"


class _TimeLeft(ProgressColumn):
    """The estimate of the meter, which weighs runs by their cost."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def render(self, task: Task) -> Text:
        return Text(self._meter.time_left(), style="progress.remaining")
