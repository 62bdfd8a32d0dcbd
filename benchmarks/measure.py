"""One optimizer against torch's fused AdamW: time in turns, memory, and the first step."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.contenders import REFERENCE, Contender
from benchmarks.shapes import Shape

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces its start and stop

MOST_ROUNDS, FEWEST_ROUNDS = 201, 9
FEWEST_PERIODS = 3  # of an optimizer whose costs repeat after several steps


class TooSlowError(Exception):
    """The optimizer takes longer than was allowed."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: what is spent on an optimizer's rounds, if that is enough for the fewest.
        patience: what all of it may take, in seconds.
    """

    seconds: float = 3.0
    patience: float = 120.0


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """How long something runs: on a GPU between two events of its stream."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()  # type: ignore[no-untyped-call]
    run()
    end.record()  # type: ignore[no-untyped-call]
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


class Weights:
    """Numbers and gradients that an optimizer shares with the one that it takes turns with."""

    def __init__(self, shapes: list[Shape], device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.values = [torch.empty(shape, device=device) for shape in shapes]
        self.grads = [torch.empty(shape, device=device) for shape in shapes]
        for value, grad in zip(self.values, self.grads, strict=True):
            value.normal_(0, 0.05, generator=generator)
            grad.normal_(0, 1e-2, generator=generator)
        self.device = device
        self.total = sum(value.numel() for value in self.values)

    def params(self) -> list[torch.nn.Parameter]:
        """Parameters of an optimizer's own, which hold the shared numbers."""
        return [torch.nn.Parameter(value) for value in self.values]

    @property
    def bytes(self) -> int:
        """What the numbers take."""
        return sum(value.nbytes for value in self.values)


class Runner:
    """An optimizer that can be stepped again and again."""

    def __init__(self, contender: Contender, weights: Weights) -> None:
        self.contender, self.grads = contender, weights.grads
        self.params = weights.params()
        self.give_gradients()
        self.optimizer = contender.make(self.params)
        self._step: Callable[[], Any] = self.optimizer.step
        self.device = weights.device

    def give_gradients(self) -> None:
        """Some optimizers take the gradients away."""
        for p, grad in zip(self.params, self.grads, strict=True):
            p.grad = grad

    def capture(self) -> None:
        """Record a step as a CUDA graph, and replay that from now on."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            self._step()
        self._step = graph.replay

    def step(self) -> float:
        """Take a step; the seconds that it took, without those of the backward pass at a draw."""
        if not self.contender.draws:
            self.give_gradients()
            return seconds(self._step, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        draw = self.optimizer.sampled_params(train=True)
        drawing = seconds(draw.__enter__, self.device)
        torch.autograd.backward(self.params, self.grads)
        drawing += seconds(lambda: draw.__exit__(None, None, None), self.device)
        return drawing + seconds(self._step, self.device)

    def kept(self) -> int:
        """The bytes of the optimizer's state, in its groups too."""
        groups = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]
        return bytes_in((dict(self.optimizer.state), groups))


def bytes_in(value: Any) -> int:
    """The bytes of the tensors in lists and dictionaries, memory that they share counted once."""
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for inner in value.values():
                visit(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                visit(inner)

    visit(value)
    return sum(storages.values())


@dataclass(frozen=True)
class Measured:
    """What was found of one optimizer on one list of tensors.

    Attributes:
        weights: how many numbers the tensors hold.
        tensors: how many tensors there are.
        seconds: per step, one for each round.
        reference: the same of torch's fused AdamW, taking turns with it.
        first: seconds of the first step, a compiler's included.
        kept: bytes of the state.
        least: bytes that a step moves at least.
        temporary: the most bytes that a step allocates on top of the state.
        warnings: what it said.
    """

    weights: int
    tensors: int
    seconds: list[float]
    reference: list[float]
    first: float
    kept: int
    least: int
    temporary: int
    warnings: list[str]

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def peak(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that are allocated at a time while something runs, above those before.

    It runs twice, and the second time counts: the profiler sees only those tensors go that it has
    seen come.
    """
    if device.type == "cuda":
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        run()
        with record_function("counted"):
            run()
    results: Any = profiler.profiler
    events = results.kineto_results.events()
    start = next(e.start_ns() for e in events if e.name() == "counted")
    events = [e for e in events if e.name() == "[memory]" and e.start_ns() >= start]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return int(most)


def measure(contender: Contender, weights: Weights, effort: Effort) -> Measured:
    """Time an optimizer in turns with torch's fused AdamW.

    Raises:
        TooSlowError: it takes longer than the effort's patience.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner, reference = (Runner(c, weights) for c in (contender, REFERENCE))
        synchronize(weights.device)
        start = time.perf_counter()
        runner.step()
        synchronize(weights.device)
        first = time.perf_counter() - start
        for _ in range(2):
            reference.step()
        if contender.captured:
            runner.capture()
        temporary = peak(lambda: _warm_up(runner, effort), weights.device)
        ours, theirs = _rounds(runner, reference, effort)
        kept = runner.kept()
    least = 8 * weights.total if contender.name == "copy" else 3 * weights.bytes + 2 * kept
    said = dict.fromkeys(str(w.message).splitlines()[0] for w in caught)
    found = (ours, theirs, first, kept, least, temporary, list(said))
    return Measured(weights.total, len(weights.values), *found)


def _warm_up(runner: Runner, effort: Effort) -> None:
    """Run a period, unless one can tell that the periods to come would take too long."""
    period, spent = runner.contender.period, 0.0
    for taken in range(1, period + 1):
        spent += runner.step()
        to_come = (1 + FEWEST_PERIODS) * period * spent / taken
        if period > 1 and taken > 2 and to_come > effort.patience:
            raise TooSlowError(f"{spent / taken:.1f} s per step are too many (see --patience)")


def _rounds(runner: Runner, reference: Runner, effort: Effort) -> tuple[list[float], list[float]]:
    """Seconds per step of both, which take turns step by step; a round is a period."""
    period = runner.contender.period
    fewest = FEWEST_ROUNDS if period == 1 else FEWEST_PERIODS
    ours: list[float] = []
    theirs: list[float] = []
    start = time.perf_counter()
    while len(ours) < MOST_ROUNDS:
        enough = time.perf_counter() - start > effort.seconds
        if enough and len(ours) >= fewest:
            break
        pairs = [(reference.step(), runner.step()) for _ in range(period)]
        theirs.append(statistics.fmean(pair[0] for pair in pairs))
        ours.append(statistics.fmean(pair[1] for pair in pairs))
    return ours, theirs


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
