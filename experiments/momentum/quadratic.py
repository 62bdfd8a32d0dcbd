"""The ill-conditioned quadratic: least squares whose Hessian, and so whose optimum, is known.

The eigenvalues run from 1 down to 1e-4, evenly in the logarithm, and the eigenvectors are drawn at
random, so that no weight is an eigenvector: a diagonal curvature is nearly the same for all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.momentum.arms import Arm, Values
from experiments.momentum.split import PROTOCOL as SPLIT_PROTOCOL
from experiments.momentum.split import Splitter
from experiments.optimizers import Choice

CONDITION = 1e4
DIMENSIONS = 200
TARGET = 1e-6
PROTOCOL = 1
"""Raise this when what a run computes changes: older files are then not reused."""
_DIVERGED = 1e6
_POINTS = 250  # of a curve that are kept


@dataclass(frozen=True)
class Quadratic:
    """A least-squares problem, drawn anew by every seed.

    Attributes:
        name: The name used on the command line.
        description: One line for the user.
        rows: Examples.
        noise: Variance of the targets about the best weights' predictions.
        batch: Examples per step; None is all of them, so that gradients are exact.
        steps: How long to train.
    """

    name: str
    description: str
    rows: int
    noise: float
    batch: int | None
    steps: int

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        return self.rows if self.batch is None else self.batch


QUADRATICS = {
    problem.name: problem
    for problem in (
        Quadratic(
            "quadratic",
            f"{DIMENSIONS} weights, condition {CONDITION:g}, exact gradients",
            rows=DIMENSIONS,
            noise=0.0,
            batch=None,
            steps=1500,
        ),
        Quadratic(
            "noisy-quadratic",
            f"{DIMENSIONS} weights, condition {CONDITION:g}, batches of 32 of 800 examples whose "
            "targets have noise variance 1",
            rows=800,
            noise=1.0,
            batch=32,
            steps=1500,
        ),
    )
}


class Drawn(NamedTuple):
    """One draw: inputs ``(n, d)``, targets ``(n, 1)``, the optimum ``(d,)``, the Hessian."""

    inputs: Tensor
    targets: Tensor
    optimum: Tensor
    hessian: Tensor

    def excess(self, weights: Tensor) -> float:
        """How far the loss is above its minimum.

        Args:
            weights: Where.

        Returns:
            Half the squared distance from the optimum in the Hessian's metric.
        """
        error = weights.flatten() - self.optimum
        return (error @ self.hessian @ error).item() / 2


def draw(problem: Quadratic, seed: int) -> Drawn:
    """Draw a problem: random eigenvectors, and best weights of variance 1.

    Args:
        problem: The problem.
        seed: Decides both.

    Returns:
        The draw, in double precision.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    eigenvalues = torch.logspace(-math.log10(CONDITION), 0, DIMENSIONS, dtype=torch.float64)
    left = torch.linalg.qr(normal(problem.rows, DIMENSIONS))[0]
    right = torch.linalg.qr(normal(DIMENSIONS, DIMENSIONS))[0]
    inputs = (left * (problem.rows * eigenvalues).sqrt()) @ right.T
    optimum = normal(DIMENSIONS)
    targets = inputs @ optimum
    if problem.noise:
        residual = normal(problem.rows)
        residual = residual - left @ (left.T @ residual)  # so that the optimum stays the optimum
        scale = math.sqrt(problem.noise * problem.rows) / residual.norm()
        targets = targets + scale * residual
    return Drawn(inputs, targets[:, None], optimum, (right * eigenvalues) @ right.T)


@dataclass(frozen=True)
class Descent:
    """One run on a quadratic: everything that decides its numbers.

    Attributes:
        task: The problem.
        arm: The optimizer.
        values: Its tuned numbers.
        seed: Decides the problem and the batches.
        traced: Whether the filter's step is split.
    """

    task: Quadratic
    arm: Arm
    values: Values
    seed: int
    traced: bool = False

    @property
    def choice(self) -> Choice:
        """The optimizer with its settings."""
        return self.arm.choice(self.values, self.task.batch_size)

    def identity(self) -> dict[str, Any]:
        """Describe the run by plain values: two runs with the same ones give the same numbers.

        Returns:
            The description, ready for JSON.
        """
        import filteropt

        return {
            "task": self.task.name,
            "problem": [self.task.rows, self.task.noise, self.task.batch, self.task.steps],
            "quadratic_protocol": PROTOCOL,
            "optimizer": self.choice.entry.name,
            "settings": dict(self.choice.overrides),
            "seed": self.seed,
            "traced": SPLIT_PROTOCOL if self.traced else False,
            "versions": {"torch": torch.__version__, "filteropt": filteropt.__version__},
        }


def descend(run: Descent) -> dict[str, Any]:
    """Minimise from zero, until the target is reached where gradients are exact.

    Args:
        run: What to run.

    Returns:
        ``metrics`` (steps to the target, if it was reached, and the final loss: that of the last
        step, or with noise the mean over the last tenth of the steps), ``curves`` (the loss at some
        of the steps) and ``diverged``. Losses are what is above the minimum, relative to the start.
    """
    problem = draw(run.task, run.seed)
    model = nn.Linear(DIMENSIONS, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    size, more = run.task.batch_size, {"model": model} if run.arm.model else {}
    settings = dict(run.choice.overrides) | more
    optimizer = run.choice.entry.build(model.parameters(), size, **settings)
    splitter = Splitter(optimizer, run.task.steps, size) if run.traced else None
    losses = [1.0]
    start = problem.excess(model.weight.detach())
    for batch in _batches(run):
        optimizer.zero_grad()
        error = model(problem.inputs[batch]) - problem.targets[batch]
        (error.square().mean() / 2).backward()
        try:
            optimizer.step()
        except FloatingPointError:
            losses.append(math.inf)
        else:
            losses.append(problem.excess(model.weight.detach()) / start)
        if not losses[-1] < _DIVERGED or (run.task.batch is None and losses[-1] <= TARGET):
            break
    return _result(run, losses) if splitter is None else splitter.result()


def _batches(run: Descent) -> Iterator[Any]:
    """The examples of every step: all, or a batch of a pass in random order."""
    order = torch.Generator().manual_seed(run.seed)
    rows, batch = run.task.rows, run.task.batch
    step = 0
    while step < run.task.steps:
        parts = [slice(None)] if batch is None else torch.randperm(rows, generator=order)
        if batch is not None:
            parts = parts[: rows // batch * batch].split(batch)
        for part in parts[: run.task.steps - step]:
            yield part
            step += 1


def _result(run: Descent, losses: list[float]) -> dict[str, Any]:
    diverged = not losses[-1] < _DIVERGED
    last = losses[-1:] if run.task.batch is None else losses[-max(1, run.task.steps // 10) :]
    every = max(1, run.task.steps // _POINTS)
    steps = sorted({*range(0, len(losses), every), len(losses) - 1})
    reached = losses[-1] <= TARGET
    return {
        "metrics": {
            "steps": len(losses) - 1 if reached else None,
            "loss": None if diverged else math.fsum(last) / len(last),
        },
        "curves": {
            "step": steps,
            "loss": [losses[k] if math.isfinite(losses[k]) else None for k in steps],
        },
        "diverged": diverged,
    }
