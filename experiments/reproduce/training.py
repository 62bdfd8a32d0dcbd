"""The paper's training protocol: one run, on one device or several, that survives being killed."""

import math
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from experiments.data import Dataset, Source, crop_and_flip
from experiments.optimizers import Choice
from experiments.plan import installed
from experiments.reproduce.protocol import BATCH, DROP, FACTOR, PROBLEMS, Problem, choice
from experiments.store import run_name
from experiments.train import Standardise

PROTOCOL = 1
Watch = Callable[[nn.Module, torch.optim.Optimizer], Any]
COLUMNS = ("train_loss", "test_loss", "test_error")


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        problem: Name of what is learned.
        optimizer: Name of the optimizer.
        seed: Fixes the initial weights, the order of the images and their augmentation.
        epochs: Passes over the training images.
        device: Where tensors live: ``"cpu"`` or ``"cuda"``.
        data: Fingerprint of the data files.
        data_dir: Where they are.
        checkpoints: Where unfinished runs are kept.
    """

    problem: str
    optimizer: str
    seed: int
    epochs: int
    device: str
    data: str
    data_dir: Path
    checkpoints: Path

    @property
    def task(self) -> Problem:
        """What is learned."""
        return PROBLEMS[self.problem]

    @property
    def choice(self) -> Choice:
        """The optimizer."""
        return choice(self.optimizer, self.task.network)

    @property
    def cost(self) -> float:
        """Relative time."""
        return self.task.cost * self.epochs

    @property
    def checkpoint(self) -> Path:
        """The file of its last finished epoch."""
        return self.checkpoints / f"{run_name(self)}.pt"

    def identity(self) -> dict[str, Any]:
        """Describe the run by plain values.

        Returns:
            The description, ready for JSON.
        """
        return {
            "study": f"reproduce-{PROTOCOL}",
            "task": self.problem,
            "optimizer": self.optimizer,
            "settings": self.choice.settings(BATCH),
            "seed": self.seed,
            "epochs": self.epochs,
            "batch_size": BATCH,
            "device": self.device,
            "data": self.data,
            "versions": {name: installed(name) for name in ("torch", "filteropt")},
        }


def perform(trial: Trial, watch: Watch | None = None) -> dict[str, Any]:
    """Carry one run out, from its checkpoint where there is one.

    Under ``torchrun`` every process calls this; each computes its share of every minibatch.

    Args:
        trial: The run.
        watch: Given the network and its optimizer, returns what observes them; its ``state_dict``
            is part of the checkpoint.

    Returns:
        ``curves`` (a value per epoch), ``metrics`` (lowest and last test error and loss; None if it
        diverged) and ``diverged``.
    """
    with one_thread(trial.device):
        device = torch.device(trial.device, int(os.environ.get("LOCAL_RANK", 0)))
        device = torch.device("cpu") if trial.device == "cpu" else device
        data = Dataset(*(part.to(device) for part in _load(trial.task.source, trial.data_dir)))
        scale = Standardise(data.train_images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trial.seed)
            model = trial.task.model().to(device)
        optimizer = trial.choice.build(model.parameters(), BATCH)
        drop = [math.ceil(DROP * trial.epochs)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drop, FACTOR)
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
        if watch is not None:
            parts["watch"] = watch(model, optimizer)
        curves = _resume(trial.checkpoint, parts, device)
        net = DistributedDataParallel(model) if world() > 1 else model
        for epoch in range(len(curves["train_loss"]), trial.epochs):
            loss = _train_epoch(net, optimizer, data, scale, trial, epoch)
            if not math.isfinite(loss):
                return {"metrics": _metrics(None), "curves": curves, "diverged": True}
            schedule.step()
            for name, value in zip(COLUMNS, (loss, *_test(model, data, scale)), strict=True):
                curves[name].append(value if math.isfinite(value) else None)
            _keep(trial.checkpoint, parts, curves)
        diverged = curves["test_loss"][-1] is None
        metrics = _metrics(None if diverged else curves)
        return {"metrics": metrics, "curves": curves, "diverged": diverged}


def world() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def one_thread(device: str) -> Generator[None, None, None]:
    """Compute on one thread of the processor, which makes results repeatable.

    Args:
        device: Where tensors live.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device == "cpu" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=2)
def _load(source: Source, data_dir: Path) -> Dataset:
    return source.load(data_dir)


def _train_epoch(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    scale: Standardise,
    trial: Trial,
    epoch: int,
) -> float:
    """Make one pass; the order and the augmentation depend on the seed and the epoch alone.

    Args:
        net: The network.
        optimizer: Its optimizer.
        data: The data set.
        scale: Prepares images.
        trial: The run.
        epoch: Number of the pass, from 0.

    Returns:
        The mean training loss; NaN if it, or a gradient, stopped being finite.
    """
    net.train()
    draw = torch.Generator().manual_seed(trial.seed * 100_003 + epoch)
    order = torch.randperm(len(data.train_labels), generator=draw).to(data.train_labels.device)
    total = torch.zeros((), device=order.device)
    for batch in order.split(BATCH):
        images = crop_and_flip(
            data.train_images[batch], trial.task.padding, draw, flip=trial.task.flip
        )[rank() :: world()]
        labels = data.train_labels[batch][rank() :: world()]
        # DDP averages over processes: weigh by size, for the mean over the whole minibatch.
        loss = cross_entropy(net(scale(images)), labels) * (len(labels) * world() / len(batch))
        optimizer.zero_grad()
        loss.backward()
        try:
            optimizer.step()
        except FloatingPointError:
            return math.nan
        total += loss.detach() * (len(batch) / (world() * len(order)))
    if world() > 1:
        dist.all_reduce(total)
    return total.item()


@torch.no_grad()
def _test(model: nn.Module, data: Dataset, scale: Standardise) -> tuple[float, float]:
    model.eval()
    logits = torch.cat([model(scale(part)) for part in data.test_images.split(1000)])
    wrong = (logits.argmax(-1) != data.test_labels).double().mean()
    return cross_entropy(logits, data.test_labels).item(), wrong.item()


def _metrics(curves: dict[str, list[Any]] | None) -> dict[str, float | None]:
    names = {"error": "test_error", "loss": "test_loss"}
    if curves is None:
        return {f"{when}_{name}": None for when in ("lowest", "last") for name in names}
    lowest = {
        f"lowest_{name}": min(value for value in curves[key] if value is not None)
        for name, key in names.items()
    }
    return lowest | {f"last_{name}": curves[key][-1] for name, key in names.items()}


def _keep(path: Path, parts: dict[str, Any], curves: dict[str, list[Any]]) -> None:
    """Write a checkpoint in one indivisible step.

    Args:
        path: The file.
        parts: What has a ``state_dict``.
        curves: The values so far.
    """
    if rank() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(
        {name: part.state_dict() for name, part in parts.items()} | {"curves": curves}, partial
    )
    os.replace(partial, path)


def _resume(path: Path, parts: dict[str, Any], device: torch.device) -> dict[str, list[Any]]:
    if not path.exists():
        return {name: [] for name in COLUMNS}
    kept = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(kept[name])
    return kept["curves"]
