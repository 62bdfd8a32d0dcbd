"""One deterministic training run: the seed fixes the initial weights and the order of the data.

Runs that share a task and a seed start from the same weights and see the same batches, whatever
the optimizer, so that differences between optimizers can be paired by seed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from experiments.data import Dataset, hold_out_validation
from experiments.optimizers import Choice, Settings
from experiments.tasks import Task

METRICS = ("test_error", "test_nll", "test_ece")
_EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Run:
    """Everything that decides the numbers of one run.

    Attributes:
        task: What is learned.
        choice: The optimizer, with the user's settings.
        seed: Fixes the initial weights and the order of the data.
        epochs: Passes over the training images.
        schedule: ``"cosine"`` (to 0 over the run, every step) or ``"constant"``.
        device: Where the tensors live.
        evaluate_on: ``"test"``, or ``"validation"`` for a fixed fifth of the training images.
        data: Fingerprint of the data files.
        settings: Every hyperparameter of the optimizer.
        versions: Versions of the libraries that compute.
    """

    task: Task
    choice: Choice
    seed: int
    epochs: int
    schedule: str
    device: str
    evaluate_on: str
    data: str
    settings: Settings
    versions: dict[str, str]

    def identity(self) -> dict[str, Any]:
        """Describe the run by plain values: two runs with the same ones give the same numbers.

        Returns:
            The description, ready for JSON.
        """
        return {
            "task": self.task.name,
            "optimizer": self.choice.entry.name,
            "seed": self.seed,
            "epochs": self.epochs,
            "batch_size": self.task.batch_size,
            "schedule": self.schedule,
            "device": self.device,
            "evaluate_on": self.evaluate_on,
            "data": self.data,
            "settings": self.settings,
            "versions": self.versions,
        }


def train(run: Run, data_dir: Path, on_epoch: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train once and evaluate after every epoch.

    Args:
        run: What to train.
        data_dir: Where data files are.
        on_epoch: Called after every epoch, for a progress bar.

    Returns:
        ``metrics`` (the last epoch's, and the seconds per training step), ``curves`` (one list per
        quantity, one entry per epoch) and ``diverged``: whether the loss or a gradient stopped
        being finite, which ends the run and leaves the metrics None.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(run, _load(run.task, run.evaluate_on, data_dir), on_epoch)
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=2)
def _load(task: Task, evaluate_on: str, data_dir: Path) -> Dataset:
    data = task.source.load(data_dir)
    return hold_out_validation(data) if evaluate_on == "validation" else data


def _train(run: Run, data: Dataset, on_epoch: Callable[[], None]) -> dict[str, Any]:
    device = torch.device(run.device)
    data = Dataset(*(tensor.to(device) for tensor in data))
    scale = Standardise(data.train_images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = run.task.model()
    model.to(device)
    optimizer = run.choice.build(model.parameters(), run.task.batch_size)
    order = torch.Generator().manual_seed(run.seed)
    steps = len(data.train_labels) // run.task.batch_size
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, schedule_of(run.schedule, steps * run.epochs)
    )
    curves: dict[str, list[float]] = {name: [] for name in ("train_loss", *METRICS)}
    seconds = []
    for _ in range(run.epochs):
        began = time.perf_counter()
        loss = _train_epoch(model, optimizer, scheduler, data, scale, order, run.task.batch_size)
        seconds.append((time.perf_counter() - began) / steps)
        if not math.isfinite(loss):
            break
        curves["train_loss"].append(loss)
        for name, value in _evaluate(model, optimizer, data, scale, run.task.classes).items():
            curves[name].append(value)
        on_epoch()
    diverged = len(curves["train_loss"]) < run.epochs or not math.isfinite(curves["test_nll"][-1])
    metrics = {name: None if diverged else curves[name][-1] for name in METRICS}
    metrics["seconds_per_step"] = sorted(seconds)[len(seconds) // 2]
    finite = {name: [v if math.isfinite(v) else None for v in curves[name]] for name in curves}
    return {"metrics": metrics, "curves": finite, "diverged": diverged}


class Standardise:
    """Maps bytes to floats with the training images' mean 0 and variance 1, per channel."""

    def __init__(self, images: torch.Tensor) -> None:
        """Measure the training images.

        Args:
            images: The images, with a dimension of channels after the first.
        """
        channels = [images[:, c].double() for c in range(images.shape[1])]
        shape = (1, -1, *[1] * (images.ndim - 2))
        self._mean = torch.stack([c.mean() for c in channels]).float().reshape(shape)
        self._std = torch.stack([c.std() for c in channels]).float().reshape(shape)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scale images.

        Args:
            images: The images.

        Returns:
            The same as floats.
        """
        return (images.float() - self._mean) / self._std


def schedule_of(name: str, total: int) -> Callable[[int], float]:
    """What the learning rates are multiplied by.

    Args:
        name: ``"cosine"`` (to 0 over the run) or ``"constant"``.
        total: Steps of the run.

    Returns:
        The factor at every step.
    """
    if name == "constant":
        return lambda step: 1.0
    return lambda step: 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))


def _train_epoch(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    data: Dataset,
    scale: Standardise,
    order: torch.Generator,
    batch_size: int,
) -> float:
    """Make one pass over the training images; an incomplete last batch is left out.

    Args:
        model: The network.
        optimizer: Its optimizer.
        scheduler: The learning rate's schedule.
        data: The data set.
        scale: Prepares images.
        order: Shuffles.
        batch_size: Images per step.

    Returns:
        The mean training loss; NaN if the optimizer met a gradient that is not finite.
    """
    switch(model, optimizer, training=True)
    shuffled = torch.randperm(len(data.train_labels), generator=order)
    steps = len(shuffled) // batch_size
    total = torch.zeros((), device=data.train_images.device)
    for batch in shuffled[: steps * batch_size].to(total.device).split(batch_size):
        loss = cross_entropy(model(scale(data.train_images[batch])), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        try:
            optimizer.step()
        except FloatingPointError:
            return math.nan
        scheduler.step()
        total += loss.detach()
    return total.item() / steps


@torch.no_grad()
def _evaluate(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    scale: Standardise,
    classes: int,
) -> dict[str, float]:
    """Evaluate on the held-out images.

    Args:
        model: The network.
        optimizer: Its optimizer, which may hold the weights to evaluate at.
        data: The data set.
        scale: Prepares images.
        classes: Number of classes.

    Returns:
        The metrics, as fractions and nats.
    """
    from torchmetrics.functional import classification  # takes seconds; many never evaluate

    switch(model, optimizer, training=False)
    logits = torch.cat([model(scale(part)) for part in data.test_images.split(_EVALUATION_BATCH)])
    nll = cross_entropy(logits, data.test_labels).item()
    if not math.isfinite(nll):
        return dict.fromkeys(METRICS, math.nan)
    accuracy = classification.multiclass_accuracy(
        logits, data.test_labels, classes, average="micro"
    ).item()
    ece = classification.multiclass_calibration_error(
        logits.softmax(-1), data.test_labels, classes, n_bins=15
    )
    return {"test_error": 1.0 - accuracy, "test_nll": nll, "test_ece": ece.item()}


def switch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, training: bool) -> None:
    """Put the model, and an optimizer that has the two modes, into training or evaluation.

    Args:
        model: The network.
        optimizer: Its optimizer.
        training: Which mode.
    """
    for thing in (model, optimizer):
        mode = getattr(thing, "train" if training else "eval", None)
        if mode is not None:
            mode()
