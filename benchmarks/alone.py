"""One measurement in a process of its own: memory and compilers begin anew, and it can be ended."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.contenders import contenders
from benchmarks.measure import Effort, TooSlowError, Weights, measure
from benchmarks.shapes import shapes_of
from experiments.workers import children_ignore_interrupts
from filteropt import engine
from filteropt.engine import Filter, Scalars
from filteropt.execute import Item, loop

Found = dict[str, Any]

GRACE = 5.0
"""Seconds that a process has to end by itself."""


def measure_alone(name: str, shapes: str, size: float, device: str, effort: Effort) -> Found:
    """Measure an optimizer on a list of tensors.

    Args:
        name: the optimizer's.
        shapes: the list's name.
        size: about how many weights it has.
        device: where they are.
        effort: how long to measure; what is not done by its patience is ended.

    Returns:
        What :func:`benchmarks.measure.measure` found; or ``left_out``, why there is nothing, and
        ``final``, whether that would be so another time.
    """
    context = multiprocessing.get_context("forkserver")  # imports are done once, nothing else
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        work = (name, shapes, size, device, effort)
        process = context.Process(
            target=_work, args=(sender, cache, torch.get_num_threads(), *work), daemon=True
        )
        with children_ignore_interrupts():
            process.start()
        sender.close()
        try:
            if receiver.poll(effort.patience):
                found = dict(receiver.recv())
                process.join(GRACE)  # it gives back what compilers share with their workers
                return found
            seconds = f"{effort.patience:.0f}"
            return {"left_out": f"not done after {seconds} s (see --patience)", "final": True}
        except EOFError:
            return {"left_out": "its process died (out of memory?)", "final": False}
        finally:
            process.kill()
            process.join()
            receiver.close()


def step_by_the_loop() -> None:
    """Let this process step everything by the reference executor, which no optimizer chooses."""
    update: Any = importlib.import_module("filteropt.execute.update")  # a function has its name
    if not hasattr(update, "choose"):
        raise RuntimeError("steps are no longer chosen by choose(): benchmarks.alone is behind")
    update.choose = lambda *_: loop
    update.bucketed = _turning_loop


def _turning_loop(
    filter: Filter, scalars: Scalars, items: Iterable[Item], gain: float, t: float | None = None
) -> None:
    """The loop, in coordinates that turn."""

    def turned(item: Item) -> Item:
        if t is None:
            return item
        return item._replace(state=engine.refresh(filter, t, item.state, item.raw))

    loop(filter, scalars, map(turned, items), gain)


def _work(
    sender: Connection,
    cache: str,
    threads: int,
    name: str,
    shapes: str,
    size: float,
    device: str,
    effort: Effort,
) -> None:
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
    torch.set_num_threads(threads)
    found: Found
    try:
        contender = contenders()[name]
        if contender.looped:
            step_by_the_loop()
        weights = Weights(shapes_of(shapes, size), torch.device(device))
        found = measure(contender, weights, effort).asdict()
    except TooSlowError as slow:
        found = {"left_out": str(slow), "final": True}
    except Exception as fault:  # whatever an optimizer may raise is told, and is not the end
        text = (str(fault).splitlines() or [""])[0]
        found = {"left_out": f"{type(fault).__name__}: {text}", "final": False}
    sender.send(found)
    sender.close()
