"""What the study does, and what it finds of every arm on every task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.ablate.arms import Arm, Values
from experiments.ablate.jobs import Job
from experiments.ablate.plan import SELECTION_SEED, Plan
from experiments.ablate.tuning import best, rates, tuner
from experiments.keeper import Keeper
from experiments.progress import Meter
from experiments.tasks import Task

Run = dict[str, Any]


@dataclass
class Outcome:
    """What was found of one arm on one task.

    Attributes:
        task: What was learned.
        arm: What was compared.
        settings: What it was tried at.
        trials: A run per setting, on held-out training examples.
        best: The setting that was selected; None if all diverged.
        rates: The best setting with other rates.
        sensitivity: For every fresh seed, a run per rate, on held-out training examples.
        tests: For every fresh seed a run of the best setting, on the test examples.
        seconds: Seconds per run, and of how many, of every purpose; never compared.
    """

    task: Task
    arm: Arm
    settings: list[Values] = field(default_factory=list)
    trials: list[Run] = field(default_factory=list)
    best: Values | None = None
    rates: list[Values] = field(default_factory=list)
    sensitivity: list[list[Run]] = field(default_factory=list)
    tests: list[Run] = field(default_factory=list)
    seconds: list[tuple[str, int, float]] = field(default_factory=list)

    def test(self, metric: str) -> list[float]:
        """A metric of every fresh seed, NaN where the run diverged."""
        return [float("nan") if run[metric] is None else run[metric] for run in self.tests]


def tune_and_test(plan: Plan, asked: Sequence[int], keeper: Keeper, meter: Meter) -> list[Outcome]:
    """Try settings, then run the best on fresh seeds, and its other rates.

    Args:
        plan: What is done.
        asked: How many settings are tried in each round.
        keeper: Carries jobs out.
        meter: Counts them.

    Returns:
        What was found, task by task and arm by arm.
    """
    outcomes = [Outcome(task, arm) for task in plan.tasks for arm in plan.arms]
    tuners = [tuner(plan.asked.tuner, outcome.arm, SELECTION_SEED) for outcome in outcomes]
    for count in asked:
        draws = [one.ask(count) for one in tuners]
        jobs = [
            plan.jobs_of("tune", outcome.task, outcome.arm, settings, SELECTION_SEED)
            for outcome, settings in zip(outcomes, draws, strict=True)
        ]
        results = _carry_out(jobs, outcomes, keeper, meter)
        for outcome, one, settings, runs in zip(outcomes, tuners, draws, results, strict=True):
            one.tell([run["nll"] for run in runs])
            outcome.settings += settings
            outcome.trials += runs
    for outcome in outcomes:
        outcome.best = best(outcome.settings, [run["nll"] for run in outcome.trials])
        if outcome.best is not None and outcome.arm.rate and plan.asked.rates:
            outcome.rates = rates(outcome.arm, outcome.best, plan.asked.rates)
    found = [outcome for outcome in outcomes if outcome.best is not None]
    jobs = []
    for purpose in ("rate", "test"):
        for outcome in found:
            settings = outcome.rates if purpose == "rate" else [outcome.best or ()]
            for seed in plan.seeds:
                jobs.append(plan.jobs_of(purpose, outcome.task, outcome.arm, settings, seed))
    owners = [outcome for _ in range(2) for outcome in found for _ in plan.seeds]
    results = _carry_out(jobs, owners, keeper, meter)
    half = len(results) // 2
    for k, (outcome, runs) in enumerate(zip(owners, results, strict=True)):
        if k >= half:
            outcome.tests += runs
        elif runs:
            outcome.sensitivity.append(runs)
    return outcomes


def _carry_out(
    jobs: Sequence[Sequence[Job]], owners: Sequence[Outcome], keeper: Keeper, meter: Meter
) -> list[list[Run]]:
    """The runs of each group of jobs."""
    results = iter(keeper.results([(job, job.cost) for group in jobs for job in group], meter))
    found = []
    for group, owner in zip(jobs, owners, strict=True):
        kept = [next(results) for _ in group]
        pairs = zip(group, kept, strict=True)
        owner.seconds += [(job.purpose, len(job.settings), r["seconds"]) for job, r in pairs]
        found.append([run for result in kept for run in result["runs"]])
    return found
