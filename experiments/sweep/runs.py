"""The runs of the study: one whole sweep of an optimizer under one seed each."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import filteropt
from experiments.data import hold_out_validation
from experiments.optimizers import Choice
from experiments.plan import installed
from experiments.sweep.arms import ARMS, Arm
from experiments.tasks import TASKS, Task
from experiments.train import Standardise, schedule_of

PROTOCOL = 1
COLUMNS = ("train_loss", "nll", "error")


@dataclass(frozen=True)
class Trial:
    """One sweep.

    Attributes:
        task_name: What is learned.
        arm_name: The optimizer.
        seed: Fixes the initial weights and the order of the examples.
        epochs: Passes over the training examples.
        points: Learning rates.
        priors: Values of lr_sgd, where both are swept together; else 0.
    """

    task_name: str
    arm_name: str
    seed: int
    epochs: int
    points: int
    priors: int = 0

    @property
    def task(self) -> Task:
        """What is learned."""
        return TASKS[self.task_name]

    @property
    def arm(self) -> Arm:
        """The optimizer."""
        return ARMS[self.arm_name]

    @property
    def choice(self) -> Choice:
        """The optimizer, as the store names it."""
        return self.arm.choice

    @property
    def settings(self) -> dict[str, Any]:
        """The grid."""
        return self.arm.settings(self.points, self.task.batch_size, priors=self.priors)

    @property
    def cost(self) -> float:
        """Relative time."""
        return self.epochs * self.task.cost * self.points * max(1, self.priors)

    def identity(self) -> dict[str, Any]:
        """Describe the run by plain values.

        Returns:
            The description, ready for JSON.
        """
        grid = {k: repr(v) if v == math.inf else v for k, v in self.settings.items()}
        return {
            "study": f"sweep-{PROTOCOL}",
            "task": self.task_name,
            "optimizer": self.arm_name,
            "settings": grid,
            "seed": self.seed,
            "epochs": self.epochs,
            "batch_size": self.task.batch_size,
            "versions": {name: installed(name) for name in ("torch", "filteropt")},
        }


def perform(trial: Trial) -> dict[str, Any]:
    """Carry one sweep out.

    Args:
        trial: The sweep.

    Returns:
        Its ``curves``: for every setting its ``lr`` and ``lr_sgd`` (None where there is none), the
        mean training loss of the last epoch, the NLL and the error rate on held-out examples (None
        where it diverged). Its ``metrics`` tell the members, and how many ``diverged``.

    Raises:
        KeyboardInterrupt: If the sweep was interrupted: an unfinished one is not kept.
    """
    inputs, labels, held, held_labels = examples(trial.task_name)
    batches = _batches(inputs, labels, trial)
    steps, per_epoch = len(batches), len(batches) // trial.epochs

    def look(model: nn.Module) -> dict[str, Tensor]:
        logits = model(held)
        wrong = (logits.argmax(-1) != held_labels).double().mean()
        return {"nll": cross_entropy(logits, held_labels), "error": wrong}

    found = filteropt.sweep(
        trial.task.model,
        trial.arm.optimizer,
        trial.settings,
        lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        batches,
        seeds=[trial.seed],
        lr_lambda=schedule_of("cosine", steps),
        evaluate=look,
        keep=False,
        progress_bar=False,
    )
    if not {"finished", "diverged"} >= set(found.status):
        raise KeyboardInterrupt
    losses = found.losses[:, -per_epoch:].mean(1)
    columns: dict[str, list[Any]] = {name: [] for name in ("lr", "lr_sgd", *COLUMNS)}
    for row, loss in zip(found.table, losses, strict=True):
        lr_sgd = row.get("lr_sgd")
        columns["lr"].append(row["lr"])
        columns["lr_sgd"].append(None if lr_sgd == math.inf else lr_sgd)
        for name, value in zip(COLUMNS, (loss, row["nll"], row["error"]), strict=True):
            columns[name].append(float(value) if math.isfinite(value) else None)
    diverged = found.status.count("diverged")
    metrics = {"members": len(found), "diverged": diverged}
    return {"metrics": metrics, "curves": columns, "diverged": diverged == len(found)}


@lru_cache(maxsize=2)
def examples(task: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A task's training examples and a fixed fifth of them that is held out.

    Args:
        task: The task, one whose data ship inside a package.

    Returns:
        Inputs and labels of both.
    """
    data = hold_out_validation(TASKS[task].source.load(Path()))
    scale = Standardise(data.train_images)
    train, held = scale(data.train_images), scale(data.test_images)
    return train, data.train_labels, held, data.test_labels


def _batches(inputs: Tensor, labels: Tensor, trial: Trial) -> list[tuple[Tensor, Tensor]]:
    """Every step's minibatch; an incomplete last one of an epoch is left out."""
    draw, size = torch.Generator().manual_seed(trial.seed), trial.task.batch_size
    found = []
    for _ in range(trial.epochs):
        order = torch.randperm(len(labels), generator=draw)
        rows = order[: len(order) // size * size].split(size)
        found += [(inputs[some], labels[some]) for some in rows]
    return found
