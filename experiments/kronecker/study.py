"""The study: tune every optimizer alike, then run what was selected on fresh seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from experiments.config import Parallel, at_least, hint
from experiments.errors import UserError
from experiments.keeper import Keeper
from experiments.kronecker import runs
from experiments.kronecker.arms import REFERENCE, Contender, read_contenders
from experiments.kronecker.runs import SELECTION_SEED, Trial
from experiments.kronecker.targets import score, target_of
from experiments.kronecker.tasks import TASKS, Task, read_tasks
from experiments.momentum.arms import Values
from experiments.progress import Meter
from experiments.store import Store

QUICK_STEPS = 10
Tried = list[tuple[Values, dict[str, Any]]]


@dataclass
class Outcome:
    """What was found of one optimizer on one task.

    Attributes:
        task: The task.
        contender: The optimizer.
        values: Its settings, selected by the steps to the target.
        target: The target loss of the task.
        steps: Steps of every run.
        trials: Result of every setting that was tried.
        results: Results of the selected setting, one for each fresh seed.
    """

    task: Task
    contender: Contender
    values: Values
    target: float
    steps: int
    trials: list[dict[str, Any]]
    results: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Kronecker(Parallel):
    """Compare the Kronecker and eigenbasis filters with AdamW, SOAP, Shampoo and SINGD.

    Steps and seconds to a target loss, which tuned AdamW sets. Every optimizer is tried at as many
    settings of as many steps, half of them about the best of the others; the best runs on fresh
    seeds. Finished runs are kept one by one: interrupted, the same command resumes.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    """mnist5k-lenet, digits-mlp, mnist5k-autoencoder and text-transformer."""

    arms: Annotated[tuple[str, ...], hint("all")] = ()
    """Optimizers; `python -m experiments list` names them. AdamW always runs."""

    settings: Annotated[int | None, hint("6, quick 2")] = None
    """Settings that every optimizer is tried at on every task."""

    seeds: Annotated[int | None, hint("3, quick 2")] = None
    """Fresh seeds that the selected setting runs on."""

    quick: bool = False
    """Two settings and a few steps: whether it works, not what is found."""

    out: Path = Path("results/kronecker")
    """Folder for the finished runs, the tables, the figures and the rows."""

    def run(self, console: Console) -> int:
        """Tune, run, report.

        Args:
            console: Where to write.

        Returns:
            The exit code: 0, or 130 when interrupted.
        """
        tasks = read_tasks(self.tasks)
        contenders, notes = read_contenders(self.arms)
        count = at_least("settings", self.settings, 2 if self.quick else 6)
        seeds = at_least("seeds", self.seeds, 2 if self.quick else 3)
        workers = self.processes()
        self.begin()
        for note in notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        plan = Plan(tasks, contenders, count, seeds, QUICK_STEPS if self.quick else None)
        keeper = Keeper(Store(self.out / "runs"), workers, runs.perform, fresh=self.fresh)
        total, work = plan.work()
        try:
            with Meter(console, total, work) as meter:
                outcomes = plan.carry_out(keeper, meter)
        except KeyboardInterrupt:
            return self.interrupted(f"{keeper.finished} of {total} runs", console)
        from experiments.kronecker.report import write_report

        write_report(outcomes, notes, self.out, console)
        return 0


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        tasks: What is learned.
        contenders: The optimizers, the reference among them.
        count: Settings that every optimizer is tried at.
        seeds: Number of fresh seeds.
        steps: Steps of every run; None leaves each task its own.
    """

    tasks: Sequence[Task]
    contenders: Sequence[Contender]
    count: int
    seeds: int
    steps: int | None = None

    def work(self) -> tuple[int, float]:
        """Number of runs, and their cost.

        Returns:
            Both.
        """
        places = [(task.name, c.name) for task in self.tasks for c in self.contenders]
        each = self.count + self.seeds
        return each * len(places), each * sum(self._trial(*key, {}, 0).cost for key in places)

    def carry_out(self, keeper: Keeper, meter: Meter) -> list[Outcome]:
        """Tune the reference, fix the targets, tune the others, run what was selected.

        Args:
            keeper: Carries runs out.
            meter: Counts them.

        Returns:
            What was found of every optimizer on every task, task by task.

        Raises:
            UserError: If the reference diverged at every setting.
        """
        usual = [contender for contender in self.contenders if contender.name == REFERENCE]
        others = [contender for contender in self.contenders if contender.name != REFERENCE]
        tried = self._tune(usual, {}, keeper, meter)
        selected = {key: _best(found, None) for key, found in tried.items()}
        for (name, _), found in tried.items():
            if all(result["diverged"] for _, result in found):
                raise UserError(f"{REFERENCE} diverged at every setting on {name}")
        results = self._fresh(selected, keeper, meter)
        targets = {name: target_of(found) for (name, _), found in results.items()}
        tuned = self._tune(others, targets, keeper, meter)
        selected |= {key: _best(found, targets[key[0]]) for key, found in tuned.items()}
        results |= self._fresh({key: selected[key] for key in tuned}, keeper, meter)
        tried |= tuned
        outcomes = []
        for task in self.tasks:
            for contender in self.contenders:
                key = task.name, contender.name
                steps = self._trial(*key, {}, 0).steps
                trials = [result for _, result in tried[key]]
                outcomes.append(
                    Outcome(
                        task,
                        contender,
                        selected[key],
                        targets[task.name],
                        steps,
                        trials,
                        results[key],
                    )
                )
        return outcomes

    def _fresh(
        self, selected: dict[tuple[str, str], Values], keeper: Keeper, meter: Meter
    ) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Run settings on every fresh seed."""
        seeds = range(1, self.seeds + 1)
        trials = [self._trial(*key, selected[key], seed) for seed in seeds for key in selected]
        found = keeper.results([(trial, trial.cost) for trial in trials], meter)
        return {key: found[k :: len(selected)] for k, key in enumerate(selected)}

    def _tune(
        self,
        contenders: Sequence[Contender],
        targets: dict[str, float],
        keeper: Keeper,
        meter: Meter,
    ) -> dict[tuple[str, str], Tried]:
        """Try settings, then more of them about the best; a run ends where it is at the target."""
        arms = {(task.name, c.name): c.arm for task in self.tasks for c in contenders}
        tried: dict[tuple[str, str], Tried] = {key: [] for key in arms}
        points = {key: arm.settings((self.count + 1) // 2) for key, arm in arms.items()}
        for more in (self.count // 2, 0):
            jobs = [
                (key, self._trial(*key, values, SELECTION_SEED, targets.get(key[0])))
                for key in arms
                for values in points[key]
            ]
            results = keeper.results([(trial, trial.cost) for _, trial in jobs], meter)
            for (key, trial), result in zip(jobs, results, strict=True):
                tried[key].append((trial.values, result))
            points = {
                key: arm.settings(more, about=_best(tried[key], targets.get(key[0])))
                for key, arm in arms.items()
                if more
            }
            if not points:
                break
        return tried

    def _trial(
        self, task: str, arm: str, values: Values, seed: int, until: float | None = None
    ) -> Trial:
        return Trial(task, arm, values, seed, self.steps or TASKS[task].steps, until)


def _best(tried: Tried, target: float | None) -> Values:
    return min(tried, key=lambda run: score(run[1], target))[0]
