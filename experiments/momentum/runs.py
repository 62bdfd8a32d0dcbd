"""The runs of the study: what they are, how they are carried out, how they are ranked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.momentum.arms import QUADRATIC_ARMS, TASK_ARMS, Arm, Values
from experiments.momentum.quadratic import Descent, Quadratic, descend
from experiments.momentum.split import PROTOCOL, Splitter
from experiments.optimizers import Choice
from experiments.plan import plan_runs
from experiments.tasks import Task
from experiments.train import Run, train

SELECTION_SEED = 0
_FILTER_COST = 4.0  # a filter's step, in steps of the others
_GAUSS_NEWTON_COST = 10.0
_STEP_SECONDS = 2e-4


@dataclass(frozen=True)
class Traced:
    """A training run whose steps are split.

    Attributes:
        run: The run.
    """

    run: Run

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.run.task

    @property
    def choice(self) -> Choice:
        """The optimizer."""
        return self.run.choice

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.seed

    def identity(self) -> dict[str, Any]:
        """Describe the run by plain values.

        Returns:
            The description, ready for JSON.
        """
        return {**self.run.identity(), "traced": PROTOCOL}


Job = Run | Descent | Traced
Problem = Task | Quadratic


class Candidate(NamedTuple):
    """An optimizer on a problem, at certain settings."""

    problem: Problem
    arm: Arm
    values: Values

    def job(self, seed: int, *, held_out: bool = False, traced: bool = False) -> Job:
        """Make it a run.

        Args:
            seed: The seed.
            held_out: Whether a task is evaluated on validation images, to choose settings.
            traced: Whether the step is split.

        Returns:
            The run.
        """
        if isinstance(self.problem, Quadratic):
            return Descent(self.problem, self.arm, self.values, seed, traced)
        (run,) = plan_runs(
            [self.problem],
            [self.arm.choice(self.values, self.problem.batch_size)],
            [seed],
            {self.problem.name: self.problem.quick_epochs},
            schedule="cosine",
            device="cpu",
            evaluate_on="validation" if held_out else "test",
            data_dir=Path(),
        )
        return Traced(run) if traced else run

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly."""
        factor = _GAUSS_NEWTON_COST if self.arm.model else _FILTER_COST
        factor = factor if is_filter(self.arm) else 1.0
        if isinstance(self.problem, Quadratic):
            return self.problem.steps * _STEP_SECONDS * factor
        return self.problem.cost * self.problem.quick_epochs * (1 + factor) / 2


def arms_of(problem: Problem) -> Sequence[Arm]:
    """The optimizers that run on a problem.

    Args:
        problem: The problem.

    Returns:
        The optimizers, with the ranges that they are tuned over there.
    """
    return QUADRATIC_ARMS if isinstance(problem, Quadratic) else TASK_ARMS


def is_filter(arm: Arm) -> bool:
    """Whether an optimizer is a momentum filter, whose step can be split.

    Args:
        arm: The optimizer.

    Returns:
        Whether it is.
    """
    return arm.entry.name.startswith("momentum")


def score(problem: Problem, result: dict[str, Any]) -> tuple[float, ...]:
    """Rank a run.

    Args:
        problem: The problem.
        result: What the run returned.

    Returns:
        Numbers of which less is better, the first that differs deciding: steps to the target and
        the loss on a quadratic, the NLL on a task.
    """
    if isinstance(problem, Quadratic):
        names = ("steps", "loss") if problem.batch is None else ("loss",)
    else:
        names = ("test_nll",)
    numbers = (result["metrics"][name] for name in names)
    return tuple(math.inf if number is None else number for number in numbers)


def perform(job: Job) -> dict[str, Any]:
    """Carry one run out, on one thread.

    Args:
        job: The run.

    Returns:
        Its ``metrics``, ``curves`` and whether it ``diverged``.
    """
    if isinstance(job, Run):
        return train(job, Path())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return descend(job) if isinstance(job, Descent) else _trace(job.run)
    finally:
        torch.set_num_threads(threads)


def _trace(run: Run) -> dict[str, Any]:
    """Train with a filter that is watched."""
    seen: list[Splitter] = []
    images = len(run.task.source.load(Path()).train_labels)
    steps = images // run.task.batch_size * run.epochs

    def build(params: list[Tensor], batch_size: int, **settings: Any) -> torch.optim.Optimizer:
        optimizer = run.choice.entry.build(params, batch_size, **settings)
        seen.append(Splitter(optimizer, steps, batch_size))
        return optimizer

    watched = Choice(replace(run.choice.entry, build=build), run.choice.overrides)
    train(replace(run, choice=watched), Path())
    return seen[0].result()
