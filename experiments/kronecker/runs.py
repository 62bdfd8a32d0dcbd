"""The runs of the study: what one is, and how it is carried out."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from experiments.kronecker.arms import CONTENDERS, Contender
from experiments.kronecker.tasks import TASKS, Examples, Task
from experiments.momentum.arms import Values
from experiments.optimizers import Choice
from experiments.plan import installed

PROTOCOL = 1
SELECTION_SEED = 0


@dataclass(frozen=True)
class Trial:
    """One run: an optimizer on a task, at certain settings.

    Attributes:
        task_name: What is learned.
        arm: The optimizer's name.
        values: What is tuned of it.
        seed: Fixes the initial weights and the order of the examples.
        steps: How many are made.
        until: A loss at which the run ends, if one does.
    """

    task_name: str
    arm: str
    values: Values
    seed: int
    steps: int
    until: float | None = None

    @property
    def task(self) -> Task:
        """What is learned."""
        return TASKS[self.task_name]

    @property
    def contender(self) -> Contender:
        """The optimizer."""
        return CONTENDERS[self.arm]

    @property
    def choice(self) -> Choice:
        """The optimizer with its settings."""
        return Choice(self.contender.arm.entry, tuple(self.values.items()))

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly."""
        return self.steps * self.task.cost * self.contender.slower

    def identity(self) -> dict[str, Any]:
        """Describe the run by plain values.

        Returns:
            The description, ready for JSON.
        """
        packages = ["torch", "filteropt"]
        if self.contender.package is not None:
            packages.append(self.contender.package)
        return {
            "study": f"kronecker-{PROTOCOL}",
            "task": self.task.name,
            "text": self.task.version(),
            "optimizer": self.arm,
            "values": self.values,
            "seed": self.seed,
            "steps": self.steps,
            "batch_size": self.task.batch_size,
            "every": self.task.every,
            **({} if self.until is None else {"until": self.until}),
            "versions": {name: installed(name) for name in packages},
        }


def perform(trial: Trial) -> dict[str, Any]:
    """Carry one run out, on one thread.

    Args:
        trial: The run.

    Returns:
        Its ``metrics`` (the last losses and the seconds per step), its ``curves`` (steps, seconds
        of processor time spent on training, loss on the watched training examples, loss on
        held-out examples) and whether it ``diverged``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            return _perform(trial)
    finally:
        torch.set_num_threads(threads)


def _perform(trial: Trial) -> dict[str, Any]:
    task, data = trial.task, trial.task.load()
    torch.manual_seed(trial.seed)
    model = task.network(data)
    optimizer = trial.contender.optimizer(model, task, trial.values)
    batches = _batches(len(data.inputs), task.batch_size, trial.seed)
    curves: dict[str, list[float]] = {"step": [], "seconds": [], "loss": [], "held_loss": []}
    seconds, reached = 0.0, False
    for step in range(trial.steps + 1):
        if step > 0:
            rows = next(batches)
            began = time.process_time()  # other programs do not count
            try:
                _step(model, optimizer, task, data, rows)
            except (ArithmeticError, torch.linalg.LinAlgError):
                break  # no longer finite: some optimizers notice it themselves
            seconds += time.process_time() - began
        if step % task.every == 0 or step == trial.steps:
            losses = look(model, task, data)
            if not all(map(math.isfinite, losses)):
                break
            for name, value in zip(curves, (step, seconds, *losses), strict=True):
                curves[name].append(value)
            if reached := trial.until is not None and losses[0] <= trial.until:
                break
    diverged = not reached and curves["step"][-1:] != [trial.steps]
    metrics = {
        "loss": None if diverged else curves["loss"][-1],
        "held_loss": None if diverged else curves["held_loss"][-1],
        "seconds_per_step": None if diverged else seconds / max(1, step),
    }
    return {"metrics": metrics, "curves": curves, "diverged": diverged}


def _step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    data: Examples,
    rows: torch.Tensor,
) -> None:
    optimizer.zero_grad()
    task.loss(model(data.inputs[rows]), data.targets[rows]).backward()
    optimizer.step()


def _batches(examples: int, size: int, seed: int) -> Any:
    """Rows of training examples, reshuffled when they run out; an incomplete batch is left out.

    Args:
        examples: How many there are.
        size: How many a step takes.
        seed: Fixes the order.

    Yields:
        The rows of one step.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(examples, generator=generator)
        yield from order[: examples // size * size].view(-1, size)


@torch.no_grad()
def look(model: torch.nn.Module, task: Task, data: Examples) -> tuple[float, float]:
    """Measure the loss.

    Args:
        model: The network.
        task: What is learned.
        data: Its examples.

    Returns:
        The mean loss on the watched training examples, and on the held-out ones.
    """
    model.eval()
    watched = task.loss(model(data.inputs[data.watched]), data.targets[data.watched])
    held = task.loss(model(data.held_inputs), data.held_targets)
    model.train()
    return watched.item(), held.item()
