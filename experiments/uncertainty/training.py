"""Training: what every method does with the same batches."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.train import schedule_of, switch
from experiments.uncertainty.methods import Method, steps_of
from experiments.uncertainty.models import with_dropout
from experiments.uncertainty.predictives import Trained
from experiments.uncertainty.trial import TASK, Trial

_IMAGES = 4000
_MEMBER = 1000  # a member's seed is the run's plus this times its place


class Labelled(Protocol):
    """Images that are ready for the network, and their labels."""

    images: Tensor
    labels: Tensor


def train(trial: Trial, data: Labelled) -> tuple[Trained, float]:
    """Train the networks of one run.

    Args:
        trial: The run.
        data: The ``images``, ready for the network, and their ``labels``.

    Returns:
        The trained method, in evaluation mode, and the mean loss of its last steps, which is NaN
        where training met numbers that are not finite.
    """
    networks, optimizers, losses = [], [], []
    for k in range(trial.method.members):
        seed = trial.seed + _MEMBER * k
        torch.manual_seed(seed)
        network = with_dropout(TASK.model(), trial.values.get("dropout", 0.0))
        network = network.to(memory_format=torch.channels_last)  # twice as fast on a core
        generator = torch.Generator().manual_seed(seed)
        optimizer = trial.method.optimizer(network, trial.values, TASK.batch_size, len(data.labels))
        losses.append(_train_one(trial, network, optimizer, data, seed, generator))
        switch(network, optimizer, training=False)
        networks.append(network)
        optimizers.append(optimizer)
    trained = Trained(trial.method, networks, optimizers[0], generator)
    return trained, math.fsum(losses) / len(losses)


def _train_one(
    trial: Trial,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Labelled,
    seed: int,
    generator: torch.Generator,
) -> float:
    """Train one network; an incomplete last batch of an epoch is left out."""
    switch(network, optimizer, training=True)
    batch_size = TASK.batch_size
    steps = steps_of(trial.method, trial.epochs, len(data.labels), batch_size, equal=trial.equal)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_of("cosine", steps))
    recent: list[torch.Tensor] = []
    for batch in _batches(len(data.labels), batch_size, steps, seed):
        try:
            loss = _step(trial, network, optimizer, data, batch, generator)
        except (FloatingPointError, ValueError):  # a gradient, or a variance, that is not finite
            return math.nan
        scheduler.step()
        recent = [*recent[1 - len(data.labels) // batch_size :], loss]
    return torch.stack(recent).mean().item()


def _batches(images: int, batch_size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches in an order that the seed fixes, whatever the method."""
    order = torch.Generator().manual_seed(seed)
    while steps > 0:
        shuffled = torch.randperm(images, generator=order)
        whole = shuffled[: images // batch_size * batch_size].split(batch_size)[:steps]
        yield from whole
        steps -= len(whole)


def _step(
    trial: Trial,
    network: nn.Module,
    optimizer: Any,
    data: Labelled,
    batch: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """One training step, as the method wants its gradients."""
    images, labels = data.images[batch], data.labels[batch]
    optimizer.zero_grad()
    if trial.method.trains == "sampled":
        temperature = trial.values.get("draw temperature", 1.0)
        draws = optimizer.sampled_params(True, generator=generator, temperature=temperature)
        with draws:
            loss = cross_entropy(network(images), labels)
            loss.backward()
    elif trial.method.trains == "fisher":
        from filteropt import sample_labels

        out = network(images)
        loss = cross_entropy(out, labels)
        loss.backward(retain_graph=True)
        with optimizer.fisher_pass():
            drawn = sample_labels(out, "categorical", generator=generator)
            cross_entropy(out, drawn).backward()
    else:
        loss = cross_entropy(network(images), labels)
        loss.backward()
    optimizer.step()
    return loss.detach()


def passes_per_example(method: Method, epochs: float, equal: str) -> float:
    """Forward and backward passes that a method makes of every training image, on average.

    Args:
        method: The method.
        epochs: The budget.
        equal: What it is a budget of.

    Returns:
        The number of passes, of all of its networks.
    """
    steps = steps_of(method, epochs, _IMAGES, TASK.batch_size, equal=equal)
    return method.members * method.passes * steps / (_IMAGES // TASK.batch_size)
