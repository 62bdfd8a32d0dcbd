"""Figure 4 and Table 1: nine optimizers on two networks and two data sets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from rich.console import Console

from experiments.config import hint, read_names
from experiments.errors import UserError
from experiments.fetch import default_data_dir, fetch, fingerprint
from experiments.keeper import Keeper
from experiments.plan import read_device
from experiments.progress import Meter
from experiments.reproduce.part import Part
from experiments.reproduce.protocol import BATCH, OPTIMIZERS, SCALES, Problem, choice
from experiments.reproduce.training import Trial, perform, rank
from experiments.store import Store

Found = Sequence[tuple[Trial, dict[str, Any]]]
_LARGEST_WORLD = 16


@dataclass(frozen=True)
class Benchmark(Part):
    """The options that Figure 4 and Table 1 share, and their runs."""

    scale: Literal["paper", "small"] = "paper"
    """paper: ResNet-34 and DenseNet-121 on CIFAR-10 and CIFAR-100, 200 epochs. small: scaled-down
    networks on MNIST-5k and digits, which need no network and minutes on two cores."""

    optimizers: Annotated[tuple[str, ...], hint("all")] = ()
    """Optimizers, of sgd, adam, adagrad, amsgrad, adabound, amsbound, adamw, adabayes-fp and
    adabayes."""

    problems: Annotated[tuple[str, ...], hint("all")] = ()
    """Problems, of cifar10-resnet, cifar10-densenet, cifar100-resnet and cifar100-densenet, or for
    the small scale mnist-5k-resnet, mnist-5k-densenet, digits-resnet and digits-densenet."""

    seeds: Annotated[int | None, hint("1, small 3")] = None
    """How many seeds: 2 means 0 and 1."""

    epochs: Annotated[int | None, hint("the scale's")] = None
    """Passes over the training images; rates fall after three quarters of them."""

    workers: int = 1
    """Processes, each training runs of its own on one thread (for the CPU)."""

    device: str = "auto"
    """cpu or cuda; auto takes cuda where there is one. For several, start with torchrun."""

    data_dir: Path | None = None
    """Folder that has CIFAR's files; by default they are downloaded to the cache."""

    fresh: bool = False
    """Train again even where a finished run or a checkpoint exists."""

    def run(self, console: Console) -> int:
        """Train and report.

        Args:
            console: Where to write.

        Returns:
            The exit code: 0, or 130 when interrupted.
        """
        shared = int(os.environ.get("WORLD_SIZE", 1)) > 1
        if shared and int(os.environ["RANK"]) > 0:
            return self._follow()
        trials = self.plan(console)
        if shared:
            _join(trials[0].device)
        keeper = Keeper(
            Store(self.out / "runs"), self.workers, _lead if shared else perform, fresh=self.fresh
        )
        if self.fresh:
            _forget(trials)
        try:
            with Meter(console, len(trials), sum(trial.cost for trial in trials)) as meter:
                results = keeper.results([(trial, trial.cost) for trial in trials], meter)
        except KeyboardInterrupt:
            console.print(
                f"Interrupted: {keeper.finished} of {len(trials)} runs are kept in {self.out}, "
                "others to their last epoch; the same command (without --fresh) resumes.",
                highlight=False,
            )
            return 130
        _forget(trials)
        if shared:
            _tell(None)
            dist.destroy_process_group()
        self.report(list(zip(trials, results, strict=True)), console)
        return 0

    def report(self, found: Found, console: Console) -> None:
        """Write what the study shows.

        Args:
            found: The runs and their results.
            console: Where to print.
        """
        raise NotImplementedError

    def plan(self, console: Console) -> list[Trial]:
        """Check the request and list the runs.

        Args:
            console: Where download bars are drawn.

        Returns:
            The runs.

        Raises:
            UserError: If something is unknown, absent or too small.
        """
        problems = SCALES[self.scale]
        problems = _named("problem", self.problems, {one.name: one for one in problems})
        optimizers = _named("optimizer", self.optimizers, dict.fromkeys(OPTIMIZERS))
        seeds = (3 if self.scale == "small" else 1) if self.seeds is None else self.seeds
        for name, value in (("seeds", seeds), ("epochs", self.epochs), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1")
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        read_device(device)
        world = int(os.environ.get("WORLD_SIZE", 1))
        if world > 1 and (BATCH % world or world > _LARGEST_WORLD or self.workers > 1):
            raise UserError(
                f"{world} processes with --workers {self.workers}; torchrun takes 2, 4, 8 or 16 "
                "processes with --workers 1"
            )
        self.begin()
        folder = find_data(list(problems.values()), self.data_dir, console)
        for name in optimizers:
            for problem in problems.values():
                choice(name, problem.network).settings(BATCH)
        return [
            Trial(
                problem.name, name, seed, self.epochs or problem.epochs, device,
                fingerprint(problem.source.files, folder), folder, self.out / "checkpoints",
            )
            for problem in problems.values()
            for seed in range(seeds)
            for name in optimizers
        ]  # fmt: skip

    def _follow(self) -> int:
        """Share the work of every run that the first process announces."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        _join(device)
        while (trial := _tell(None)) is not None:
            perform(trial)
        dist.destroy_process_group()
        return 0


def find_data(problems: Sequence[Problem], data_dir: Path | None, console: Console) -> Path:
    """Fetch the files that problems need.

    Args:
        problems: The problems.
        data_dir: Where the user keeps the files; None is the cache folder.
        console: Where download bars are drawn.

    Returns:
        The folder that holds the files.

    Raises:
        UserError: If a file is missing and cannot be downloaded.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir} is not a folder")
    folder = default_data_dir() if data_dir is None else data_dir
    try:
        for problem in problems:
            fetch(problem.source.files, folder, console)
    except UserError as fault:
        raise UserError(
            f"{fault}; give --data-dir a folder that has the files, or take --scale small, which "
            "needs none"
        ) from fault
    return folder


def _join(device: str) -> None:
    if device != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if device == "cpu" else "nccl")


def _tell(trial: Trial | None) -> Trial | None:
    """Send the next run from the first process to the others; None ends the work."""
    told = [trial]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _lead(trial: Trial) -> dict[str, Any]:
    assert rank() == 0
    _tell(trial)
    return perform(trial)


def _forget(trials: Sequence[Trial]) -> None:
    for trial in trials:
        trial.checkpoint.unlink(missing_ok=True)


def _named(kind: str, words: Sequence[str], known: dict[str, Any]) -> dict[str, Any]:
    names = read_names(f"{kind}s", kind, words or tuple(known), known)
    return {name: known[name] for name in names}


class Fig4(Benchmark):
    """Figure 4: test loss and error over the epochs.

    Runs are shared with table1: what one has trained, the other reads. Killed, the same command
    goes on from the last epoch. Several GPUs: torchrun --nproc-per-node 4 -m experiments reproduce
    fig4.
    """

    name = "fig4"

    def report(self, found: Found, console: Console) -> None:
        """Draw the curves.

        Args:
            found: The runs and their results.
            console: Where to print.
        """
        from experiments.reproduce.benchmark_report import report_fig4

        report_fig4(self, found, console)


class Table1(Benchmark):
    """Table 1: lowest test error and loss, with the paper's numbers beside ours.

    Runs are shared with fig4: what one has trained, the other reads. Killed, the same command goes
    on from the last epoch. Several GPUs: torchrun --nproc-per-node 4 -m experiments reproduce
    table1.
    """

    name = "table1"

    def report(self, found: Found, console: Console) -> None:
        """Print the table.

        Args:
            found: The runs and their results.
            console: Where to print.
        """
        from experiments.reproduce.benchmark_report import report_table1

        report_table1(self, found, console)
