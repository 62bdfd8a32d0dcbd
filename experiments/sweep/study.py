"""The study: sweep every optimizer over its learning rates, and over both rates at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console

from experiments.config import Resumable, at_least, hint
from experiments.errors import UserError
from experiments.keeper import Keeper
from experiments.progress import Meter
from experiments.store import Store
from experiments.sweep import runs
from experiments.sweep.arms import Arm, read_arms
from experiments.sweep.runs import Trial
from experiments.tasks import OFFLINE_TASKS


@dataclass(frozen=True)
class Sensitivity(Resumable):
    """Draw how the result depends on the learning rates, each curve from whole sweeps.

    Curves over lr for every optimizer, and maps over lr and lr_sgd for the filters that have both,
    on held-out examples, with uncertainty over seeds. Sweeps are kept one by one: interrupted, the
    same command resumes.
    """

    task: str = "digits-mlp"
    """digits-mlp or mnist5k-lenet."""

    arms: Annotated[tuple[str, ...], hint("all")] = ()
    """Optimizers: adabayes, adabayes-fp, adamw, bayes-rmsprop and sgd."""

    seeds: Annotated[int | None, hint("5, quick 2")] = None
    """Seeds of the curves and of the maps: 2 means 0 and 1."""

    epochs: Annotated[int | None, hint("30, quick 2")] = None
    """Passes over the training examples."""

    points: Annotated[int | None, hint("17, quick 5")] = None
    """Learning rates from 1e-5 to 0.1; a map has about half as many of either rate."""

    quick: bool = False
    """A few settings and steps: whether it works, not what is found."""

    out: Path = Path("results/sweep")
    """Folder for the finished sweeps, the tables and the figures."""

    def run(self, console: Console) -> int:
        """Sweep and report.

        Args:
            console: Where to write.

        Returns:
            The exit code: 0, or 130 when interrupted.

        Raises:
            UserError: If the task is unknown, or a number is too small.
        """
        if self.task not in OFFLINE_TASKS:
            names = " and ".join(OFFLINE_TASKS)
            raise UserError(f"unknown task {self.task!r}; the tasks of this study are {names}")
        arms = read_arms(self.arms)
        seeds = at_least("seeds", self.seeds, 2 if self.quick else 5, 2)
        epochs = at_least("epochs", self.epochs, 2 if self.quick else 30)
        points = at_least("points", self.points, 5 if self.quick else 17, 3)
        self.begin()
        trials = plan(self.task, arms, seeds, epochs, points)
        keeper = Keeper(Store(self.out / "runs"), 1, runs.perform, fresh=self.fresh)
        try:
            with Meter(console, len(trials), sum(trial.cost for trial in trials)) as meter:
                results = keeper.results([(trial, trial.cost) for trial in trials], meter)
        except KeyboardInterrupt:
            return self.interrupted(f"{keeper.finished} of {len(trials)} sweeps", console)
        from experiments.sweep.report import write_report

        write_report(list(zip(trials, results, strict=True)), self.out, console)
        return 0


def plan(task: str, arms: Sequence[Arm], seeds: int, epochs: int, points: int) -> list[Trial]:
    """The sweeps of the study.

    Args:
        task: What is learned.
        arms: The optimizers.
        seeds: How many seeds.
        epochs: Passes over the training examples.
        points: Learning rates of a curve.

    Returns:
        One sweep over lr per optimizer and seed, and one over both rates where there are both.
    """
    numbers = range(seeds)
    curves = [Trial(task, arm.name, seed, epochs, points) for arm in arms for seed in numbers]
    side = (points + 1) // 2
    maps = [
        Trial(task, arm.name, seed, epochs, side, side)
        for arm in arms
        if arm.map
        for seed in numbers
    ]
    return [*curves, *maps]
