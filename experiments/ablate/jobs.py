"""The runs of an ablation: several settings of one arm at once where that can be, else one by one.

A run is decided by its task, arm, setting and seed: the seed fixes the initial weights and the
order of the examples, so that runs of all arms under one seed are paired.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import filteropt
from experiments.ablate.arms import Arm, Values
from experiments.ablate.examples import Data, examples
from experiments.registry import Plugin, load_plugins
from experiments.tasks import TASKS, Task
from experiments.train import schedule_of, switch

PROTOCOL = 1
"""Raise this when the way runs are trained or measured changes: older rows are then not reused."""

METRICS = ("nll", "error")


@dataclass(frozen=True)
class Job:
    """Settings of one arm that are trained together; each of them is a run, a row of the store.

    Attributes:
        purpose: ``"tune"`` and ``"rate"``, on held-out training examples, or ``"test"``.
        task_name: What is learned.
        arm: What is compared.
        settings: What is tuned, of every run.
        seed: Fixes the initial weights and the order of the examples.
        epochs: Passes over the training examples.
        schedule: ``"cosine"`` or ``"constant"``.
        device: Where the tensors live.
        data_dir: Where data files are.
        data: Fingerprint of the data files.
        plugins: The user's own files.
        versions: Versions of the libraries that compute.
    """

    purpose: str
    task_name: str
    arm: Arm
    settings: tuple[Values, ...]
    seed: int
    epochs: int
    schedule: str
    device: str
    data_dir: Path
    data: str
    plugins: tuple[Plugin, ...]
    versions: tuple[tuple[str, str], ...]

    @property
    def task(self) -> Task:
        """What is learned."""
        return TASKS[self.task_name]

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly: runs that are trained together take about a third."""
        together = len(self.settings)
        return self.epochs * self.task.cost * (1 + (together - 1) / 3)

    def identity(self) -> dict[str, Any]:
        """Describe the job by plain values: two jobs with the same ones give the same numbers.

        Returns:
            The description, ready for JSON.
        """
        return {
            "protocol": PROTOCOL,
            "purpose": self.purpose,
            "task": self.task_name,
            "arm": [self.arm.kind, *self.arm.texts],
            "fixed": [[name, repr(value)] for name, value in self.arm.fixed],
            "settings": [[[name, repr(value)] for name, value in one] for one in self.settings],
            "seed": self.seed,
            "epochs": self.epochs,
            "batch_size": self.task.batch_size,
            "schedule": self.schedule,
            "device": self.device,
            "data": self.data,
            "plugins": [plugin.version for plugin in self.plugins],
            "versions": dict(self.versions),
        }

    @property
    def name(self) -> str:
        """A hash of the identity."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def perform(job: Job) -> dict[str, Any]:
    """Carry a job out, on one thread.

    Args:
        job: The job.

    Returns:
        Its ``runs``, each with the last ``nll`` and ``error`` (None where it diverged) and
        ``curves`` by epoch, and the ``seconds`` of all.
    """
    load_plugins(job.plugins)
    began, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            runs = _perform(job, Data(*examples(job.task_name, job.purpose, job.data_dir)))
    finally:
        torch.set_num_threads(threads)
    return {"runs": runs, "seconds": time.perf_counter() - began}


def _perform(job: Job, data: Data) -> list[dict[str, Any]]:
    device = torch.device(job.device)
    data = Data(*(tensor.to(device) for tensor in vars(data).values()))
    values = [job.arm.values(job.task, len(data.y), dict(one)) for one in job.settings]
    fitting = [one for one in values if job.arm.fits(one)]
    runs = iter(_fitting(job, data, fitting))
    return [next(runs) if one in fitting else _row({}, job.epochs) for one in values]


def _fitting(job: Job, data: Data, values: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if job.arm.swept(values):
        try:
            return _sweep(job, data, values)
        except RuntimeError as fault:  # of a model that vmap does not run
            if isinstance(fault, torch.OutOfMemoryError):
                raise
    return [_run(job, data, one) for one in values]


def _sweep(job: Job, data: Data, values: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All settings at once."""
    batches = data.batches(job.task.batch_size, job.epochs, job.seed)
    per_epoch = len(batches) // job.epochs
    found = filteropt.sweep(
        job.task.model,
        job.arm.composition.build,
        list(values),
        data.loss,
        batches,
        seeds=[job.seed],
        lr_lambda=schedule_of(job.schedule, len(batches)),
        linearize_at=job.arm.keywords.get("linearize_at"),
        evaluate=data.look,
        evaluate_every=per_epoch,
        randomness="same",
        keep=False,
        progress_bar=False,
        device=job.device,
    )
    if not {"finished", "diverged"} >= set(found.status):
        raise KeyboardInterrupt
    losses = found.losses.reshape(len(found), job.epochs, per_epoch).mean(2)
    curves = {"train_loss": losses, **{name: found.curves[name] for name in METRICS}}
    rows = ({k: v[i].tolist() for k, v in curves.items()} for i in range(len(found)))
    return [_row(one, job.epochs) for one in rows]


def _run(job: Job, data: Data, values: dict[str, Any]) -> dict[str, Any]:
    """One setting."""
    torch.manual_seed(job.seed)
    model = job.task.model().to(data.x.device)
    optimizer = job.arm.build(model, job.task, values)
    draw = torch.Generator(data.x.device).manual_seed(job.seed)
    batches = data.batches(job.task.batch_size, job.epochs, job.seed)
    factor = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_of(job.schedule, len(batches)))
    curves: dict[str, list[float]] = {name: [] for name in ("train_loss", *METRICS)}
    for k in range(job.epochs):
        switch(model, optimizer, training=True)
        size = len(batches) // job.epochs
        total = torch.zeros((), device=data.x.device)
        for rows in batches[k * size : (k + 1) * size]:
            optimizer.zero_grad()
            total += _backward(optimizer, model, data, rows, draw)
            try:
                optimizer.step()
            except (ArithmeticError, torch.linalg.LinAlgError):  # no longer finite
                return _row(curves, job.epochs)
            factor.step()
        switch(model, optimizer, training=False)
        with torch.no_grad():
            looked = data.look(model)
        for name, value in {"train_loss": total / size, **looked}.items():
            curves[name].append(float(value))
        if not math.isfinite(curves["nll"][-1]):
            break
    return _row(curves, job.epochs)


def step_once(arm: Arm, task: Task, values: dict[str, Any], data: Data) -> None:
    """Take one step, which shows whether an arm can be trained.

    Args:
        arm: The arm.
        task: What is learned.
        values: Hyperparameters.
        data: Its examples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, draw = task.model(), torch.Generator().manual_seed(0)
        optimizer = arm.build(model, task, values)
        _backward(optimizer, model, data, torch.arange(task.batch_size), draw)
        optimizer.step()


def _backward(
    optimizer: torch.optim.Optimizer, model: nn.Module, data: Data, rows: Tensor, draw: Any
) -> Tensor:
    """A backward pass that gathers what the likelihood needs: draws of weights, or of labels."""
    source = ""
    if isinstance(optimizer, filteropt.FilterOptimizer):
        likelihood = optimizer._bind(optimizer.param_groups[0]).filter.likelihood
        source = likelihood.core.source if likelihood.needs > {"grad"} else ""
    where: Any = nullcontext()
    if source == "samples":
        where = optimizer.sampled_params(train=True, generator=draw)  # type: ignore[attr-defined]  # filters have it
    with where:
        outputs = model(data.x[rows])
        loss = cross_entropy(outputs, data.y[rows])
        loss.backward(retain_graph=source == "labels")
        if source == "labels":
            labels = filteropt.sample_labels(outputs, "categorical", generator=draw)
            with optimizer.fisher_pass():  # type: ignore[attr-defined]  # filters have it
                cross_entropy(outputs, labels, reduction="sum").backward()
    return loss.detach()


def _row(curves: dict[str, list[float]], epochs: int) -> dict[str, Any]:
    """A run's result; what is not finite, or was not reached, is None, which JSON holds."""
    told = {name: curves.get(name, []) for name in ("train_loss", *METRICS)}
    whole = {k: [*v, *[math.nan] * (epochs - len(v))] for k, v in told.items()}
    finite = {k: [x if math.isfinite(x) else None for x in v] for k, v in whole.items()}
    diverged = finite["nll"][-1] is None
    return {**{name: None if diverged else finite[name][-1] for name in METRICS}, "curves": finite}
