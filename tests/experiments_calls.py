"""Calling the command line of the experiments, and a user's file to call it with."""

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from experiments import registry, tasks
from experiments.cli import main

PLUGIN = '''
import torch

from experiments.data import Dataset
from experiments.models import mlp
from experiments.registry import composition, task
from filteropt.approximations import Diagonal, SquaredGradient
from filteropt.engine import Filter
from filteropt.models import FixedNoise


@task("blobs", model=lambda: mlp(inputs=3, hidden=8, classes=2), classes=2, batch_size=16, epochs=3)
def blobs() -> Dataset:
    """Two clouds in three dimensions."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    inputs = torch.randn(120, 3, generator=draw) + labels[:, None]
    return Dataset(inputs[:80], labels[:80], inputs[80:], labels[80:])


def _filter(lr, drift, batch_size):
    return Filter(FixedNoise(lr, drift), SquaredGradient(batch_size), Diagonal())


@composition("mine", drift=(1e-3, 1.0))
def mine(lr: float = 1e-3, drift: float = 0.1, batch_size: int = 1) -> Filter:
    """A filter of one's own."""
    return _filter(lr, drift, batch_size)


@composition("alias", drift=(1e-3, 1.0))
def alias(lr: float = 1e-3, drift: float = 0.1, batch_size: int = 1) -> Filter:
    """The same under another name."""
    return _filter(lr, drift, batch_size)
'''


GRID = ("--dynamics", "FixedNoise", "RandomWalk", "--posterior", "Diagonal", "FixedPoint")
GRID += ("--likelihood", "Averaged(SquaredGradient)", "--trials", "3", "--rates", "3")


def small(plugin: Path, out: Path, *more: object) -> list[object]:
    """The words of an ablation of four arms that takes seconds."""
    words = ["ablate", "--tasks", "blobs", "--plugin", plugin, "--seeds", "2", "--out", out]
    return [*words, *GRID, *more]


def call(*words: object) -> tuple[int, str]:
    """Run a command; its exit code and what it printed."""
    screen = io.StringIO()
    code = main([str(word) for word in words], Console(file=screen, width=200))
    return code, screen.getvalue()


@contextmanager
def forgetting() -> Generator[None, None, None]:
    """What a user's file registers meanwhile is forgotten afterwards."""
    known = (tasks.TASKS, registry.COMPOSITIONS, registry._LOADED)
    saved = [dict(one) for one in known]
    try:
        yield
    finally:
        for one, old in zip(known, saved, strict=True):
            one.clear()
            one.update(old)


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """The user's file."""
    path = tmp_path / "my_tasks.py"
    path.write_text(PLUGIN)
    with forgetting():
        yield path
