"""Running many training runs, in this process or in several, and surviving interruption."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.train import Run, train

_SECONDS_BETWEEN_LOOKS = 0.1


def run_all(
    runs: list[Run], data_dir: Path, workers: int, on_epoch: Callable[[Run], None]
) -> Generator[tuple[Run, dict[str, Any]], None, None]:
    """Train every run, each on one thread.

    Args:
        runs: The runs.
        data_dir: Where data files are.
        workers: Number of processes; 1 stays in this one.
        on_epoch: Called as epochs finish.

    Yields:
        Each run with its result, in the order in which they finish.
    """
    if min(workers, len(runs)) > 1:
        yield from _in_processes(runs, data_dir, min(workers, len(runs)), on_epoch)
        return
    for run in runs:
        yield run, train(run, data_dir, on_epoch=partial(on_epoch, run))


def _in_processes(
    runs: list[Run], data_dir: Path, workers: int, on_epoch: Callable[[Run], None]
) -> Generator[tuple[Run, dict[str, Any]], None, None]:
    context = multiprocessing.get_context("spawn")
    epochs: Any = context.Queue()
    pool = ProcessPoolExecutor(workers, context, start_worker, (epochs,))
    try:
        with children_ignore_interrupts():
            pending = {
                pool.submit(_train_reporting, index, run, data_dir): run
                for index, run in enumerate(runs)
            }
        while pending:
            done, _ = wait(pending, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            with suppress(queue.Empty):
                while True:
                    on_epoch(runs[epochs.get_nowait()])
            for future in done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool as fault:
        raise UserError(
            "a worker process died (out of memory?); finished runs are kept, so the same command "
            "resumes; --workers 1 needs the least memory"
        ) from fault
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        epochs.cancel_join_thread()


@contextmanager
def children_ignore_interrupts() -> Generator[None, None, None]:
    """Let children inherit an ignored Ctrl-C: the parent alone decides what it means."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_epochs: Any = None


def start_worker(epochs: Any) -> None:
    """Prepare a worker: remember where to report, and end when the parent is gone.

    Args:
        epochs: Queue of the indices of runs, one entry per finished epoch.
    """
    global _epochs
    _epochs = epochs
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train_reporting(index: int, run: Run, data_dir: Path) -> dict[str, Any]:
    return train(run, data_dir, on_epoch=lambda: _epochs.put(index))
