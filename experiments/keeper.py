"""Carrying a study's runs out, in this process or in several, and keeping every result at once."""

import multiprocessing
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any, Protocol

from experiments.errors import UserError
from experiments.progress import Meter
from experiments.workers import children_ignore_interrupts, start_worker

Result = dict[str, Any]
Perform = Callable[[Any], Result]
Results = Generator[tuple[Any, Result], None, None]
Spread = Callable[[Perform, Sequence[Any], int], Results]
"""Carries runs out by so many workers, and yields each with its result as they finish."""


class Kept(Protocol):
    """Where results are kept."""

    def name(self, run: Any) -> str:
        """What decides a run's numbers."""

    def load(self, run: Any) -> Result | None:
        """The result of a run that has finished."""

    def save(self, run: Any, result: Result) -> None:
        """Keep a result, in one indivisible step."""

    def clean(self) -> None:
        """Remove what a killed process left half-written."""


class Keeper:
    """Carries out what has not been, and keeps every result as soon as it is there.

    Attributes:
        finished: How many results there are.
    """

    def __init__(
        self,
        store: Kept,
        workers: int,
        perform: Perform,
        *,
        fresh: bool,
        spread: Spread | None = None,
    ) -> None:
        """Look after a store of runs.

        Args:
            store: The store.
            workers: Number of processes; 1 stays in this one.
            perform: Carries a run out; a function of a module, for other processes to find.
            fresh: Whether runs that are there are run again.
            spread: Carries runs out; by default in processes of this machine.
        """
        self.finished = 0
        self._spread = spread or perform_all
        self._store, self._workers, self._perform, self._fresh = store, workers, perform, fresh
        store.clean()

    def results(self, wanted: Sequence[tuple[Any, float]], meter: Meter) -> list[Result]:
        """The results of runs.

        Args:
            wanted: The runs, each with its cost.
            meter: Counts them.

        Returns:
            Their results, in the same order.
        """
        costs = {self._store.name(run): (run, cost) for run, cost in wanted}
        found: dict[str, Result] = {}
        for name, (run, _) in costs.items():
            if not self._fresh and (kept := self._store.load(run)) is not None:
                found[name] = kept
        if found:  # at once: the meter takes its speed from what comes after
            meter.advance(sum(costs[name][1] for name in found))
            self._count(meter, len(found))
        missing = sorted((c for n, c in costs.items() if n not in found), key=lambda c: -c[1])
        runs = [run for run, _ in missing]
        with closing(self._spread(self._perform, runs, self._workers)) as finished:
            for run, result in finished:
                self._store.save(run, result)
                name = self._store.name(run)
                found[name] = result
                meter.advance(costs[name][1])
                self._count(meter, 1)
        return [found[self._store.name(run)] for run, _ in wanted]

    def _count(self, meter: Meter, runs: int) -> None:
        self.finished += runs
        for _ in range(runs):
            meter.finish_run()


def perform_all(perform: Perform, runs: Sequence[Any], workers: int) -> Results:
    """Carry runs out, in this process or in several.

    Args:
        perform: Carries a run out.
        runs: The runs.
        workers: Number of processes; 1 stays in this one.

    Yields:
        Each run with its result, in the order in which they finish.

    Raises:
        UserError: If a worker process dies.
    """  # ruff: ignore[docstring-missing-returns] - Results is what yields
    if min(workers, len(runs)) <= 1:
        for run in runs:
            yield run, perform(run)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(runs)), context, start_worker, (None,))
    try:
        with children_ignore_interrupts():
            pending = {pool.submit(perform, run): run for run in runs}
        for future in as_completed(pending):
            yield pending[future], future.result()
    except BrokenProcessPool as fault:
        raise UserError(
            "a worker process died (out of memory?); finished runs are kept, so the same command "
            "resumes"
        ) from fault
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
