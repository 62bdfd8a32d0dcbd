"""The study: tune every optimizer alike, run the best settings on fresh seeds, split the steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from experiments.config import Parallel, at_least, hint, read_names
from experiments.keeper import Keeper
from experiments.momentum import runs
from experiments.momentum.quadratic import QUADRATICS
from experiments.momentum.runs import (
    SELECTION_SEED,
    Candidate,
    Problem,
    arms_of,
    is_filter,
    score,
)
from experiments.progress import Meter
from experiments.store import Store
from experiments.tasks import OFFLINE_TASKS, TASKS

_PROBLEMS = {**QUADRATICS, **{name: TASKS[name] for name in OFFLINE_TASKS}}
QUICK_STEPS, QUICK_EPOCHS = 30, 2


@dataclass
class Outcome:
    """What was found of one optimizer on one problem.

    Attributes:
        best: The optimizer at the settings that were selected.
        trials: Result of every setting that was tried.
        results: Results of the best setting, one for each fresh seed.
        split: How a filter's step is made up, on the first fresh seed.
    """

    best: Candidate
    trials: list[dict[str, Any]]
    results: list[dict[str, Any]] = field(default_factory=list)
    split: dict[str, Any] | None = None


@dataclass(frozen=True)
class Momentum(Parallel):
    """Compare the momentum filter with NAdam, Adam and Nesterov's SGD, all tuned by one budget.

    On an ill-conditioned quadratic, with exact and with noisy gradients, and on a task. Every
    optimizer is tried at the same number of settings, half of them about the best of the others.
    The best (on validation images, or by the steps it needs) runs on fresh seeds, and the filters'
    steps are split into the gradient's part and the momentum's. Finished runs are kept one by one:
    interrupted, the same command resumes.
    """

    problems: tuple[str, ...] = ("quadratic", "noisy-quadratic", "digits-mlp")
    """quadratic, noisy-quadratic, digits-mlp and mnist5k-lenet; the last takes half an hour."""

    settings: Annotated[int | None, hint("16, quick 2")] = None
    """Settings that every optimizer is tried at on every problem."""

    seeds: Annotated[int | None, hint("3, quick 2")] = None
    """Fresh seeds that the best setting runs on."""

    quick: bool = False
    """Two settings and a few steps: whether it works, not what is found."""

    out: Path = Path("results/momentum")
    """Folder for the finished runs, the tables, the figures and the rows."""

    def run(self, console: Console) -> int:
        """Tune, run, split, report.

        Args:
            console: Where to write.

        Returns:
            The exit code: 0, or 130 when interrupted.
        """
        problems = [self._shortened(problem) for problem in read_problems(self.problems)]
        count = at_least("settings", self.settings, 2 if self.quick else 16)
        seeds = at_least("seeds", self.seeds, 2 if self.quick else 3)
        workers = self.processes()
        self.begin()
        keeper = Keeper(Store(self.out / "runs"), workers, runs.perform, fresh=self.fresh)
        trials = [
            Candidate(problem, arm, values)
            for problem in problems
            for arm in arms_of(problem)
            for values in arm.settings((count + 1) // 2)
        ]
        places = [(problem, arm) for problem in problems for arm in arms_of(problem)]
        traced = sum(is_filter(arm) for _, arm in places)
        total = count * len(places) + seeds * len(places) + traced
        work = sum(trial.cost for trial in trials) * total / len(trials)
        try:
            with Meter(console, total, work) as meter:
                outcomes = study(trials, count // 2, range(1, seeds + 1), keeper, meter)
        except KeyboardInterrupt:
            return self.interrupted(f"{keeper.finished} of {total} runs", console)
        from experiments.momentum.report import write_report

        write_report(outcomes, self.out, console)
        return 0

    def _shortened(self, problem: Problem) -> Problem:
        if not self.quick:
            return problem
        if problem.name in QUADRATICS:
            return replace(problem, steps=QUICK_STEPS)
        return replace(problem, quick_epochs=QUICK_EPOCHS)


def read_problems(words: Sequence[str]) -> list[Problem]:
    """Look the problems up, each once.

    Args:
        words: Names, also comma-separated.

    Returns:
        The problems.

    Raises:
        UserError: If a name is unknown or none is given.
    """
    return [_PROBLEMS[name] for name in read_names("problems", "problem", words, _PROBLEMS)]


def study(
    trials: Sequence[Candidate], more: int, seeds: Sequence[int], keeper: Keeper, meter: Meter
) -> list[Outcome]:
    """Try settings, more of them about the best, then run the best on fresh seeds.

    Args:
        trials: What to try at first.
        more: Further settings of every optimizer, about the best of its first.
        seeds: The fresh seeds.
        keeper: Carries runs out.
        meter: Counts them.

    Returns:
        What was found of every optimizer on every problem.
    """
    tried: dict[tuple[str, str], list[tuple[Candidate, dict[str, Any]]]] = {}
    for _ in range(2):
        jobs = [(trial.job(SELECTION_SEED, held_out=True), trial.cost) for trial in trials]
        for trial, result in zip(trials, keeper.results(jobs, meter), strict=True):
            tried.setdefault((trial.problem.name, trial.arm.entry.name), []).append((trial, result))
        best = [min(runs, key=lambda r: score(r[0].problem, r[1]))[0] for runs in tried.values()]
        trials = [
            found._replace(values=values)
            for found in best
            for values in found.arm.settings(more, about=found.values)
        ]
    outcomes = [
        Outcome(found, [result for _, result in runs])
        for found, runs in zip(best, tried.values(), strict=True)
    ]
    filters = [outcome for outcome in outcomes if is_filter(outcome.best.arm)]
    again = [(o.best.job(seed), o.best.cost) for o in outcomes for seed in seeds]
    again += [(o.best.job(seeds[0], traced=True), o.best.cost) for o in filters]
    results = iter(keeper.results(again, meter))
    for outcome in outcomes:
        outcome.results = [next(results) for _ in seeds]
    for outcome in filters:
        outcome.split = next(results)
    return outcomes
