"""Continual learning: the posterior of one task as the prior of the next keeps what was learned.

Digits 0–4 are told apart first, then 5–9, by the same five outputs, so that the second task
contradicts the first wherever it does not look different. No data of the first task are kept.
"""

from __future__ import annotations

from statistics import mean, stdev
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import filteropt
from filteropt.approximations import Dense, GaussNewton
from filteropt.engine import Filter
from filteropt.models import RandomWalk, Static

pytest.importorskip("safetensors")
datasets = pytest.importorskip("sklearn.datasets")

SEEDS, BATCH, TRAINING = range(3), 16, 1200


class Task(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def tasks(seed):
    x, y = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    found = []
    for first in (0, 5):
        kept = (y >= first) & (y < first + 5)
        train = torch.arange(len(y)) < TRAINING
        parts = [(x[kept & part], y[kept & part] - first) for part in (train, ~train)]
        found.append(Task(*parts[0], *parts[1]))
    return found


def random_features(seed):
    """A layer of fixed random features, and one that is learned: 305 weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 60), nn.Tanh(), nn.Linear(60, 5))
    model[0].requires_grad_(False).weight.mul_(2.0)
    return model


def kalman(model, dynamics):
    """A Kalman filter of the last layer's weight matrix and of its biases."""

    def preset():
        return Filter(dynamics, GaussNewton("cross_entropy", 1.0, BATCH), Dense(1.0))

    return filteropt.FilterOptimizer(model[2].parameters(), preset, model=model)


def learn(model, opt, task, seed, passes=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        for batch in torch.randperm(len(task.labels), generator=generator).split(BATCH):
            if len(batch) == BATCH:
                opt.zero_grad()
                cross_entropy(model(task.images[batch]), task.labels[batch]).backward()
                opt.step()


@torch.no_grad()
def accuracy(model, task):
    right = model(task.test_images).argmax(1) == task.test_labels
    return 100 * float(right.double().mean())


def accuracies(seed, dynamics, folder):
    """Test accuracies on both tasks, after the first and, by two ways, after the second."""
    one, two = tasks(seed)
    model = random_features(seed)
    opt = kalman(model, dynamics)
    learn(model, opt, one, seed)
    filteropt.save_posterior(folder / "first", model, opt)
    learned = {name: x.clone() for name, x in model.state_dict().items()}
    found = {"first": (accuracy(model, one), accuracy(model, two))}
    for way in ("prior", "fine-tuned", "adam"):
        model.load_state_dict(learned)
        opt = kalman(model, dynamics)
        if way == "prior":
            filteropt.load_prior(folder / "first", model, opt)
        if way == "adam":
            opt = torch.optim.Adam(model[2].parameters(), 1e-2)
        learn(model, opt, two, seed + 100, passes=10 if way == "adam" else 1)
        found[way] = accuracy(model, one), accuracy(model, two)
    return found


def summarise(found, way):
    """Mean accuracies and their standard errors over seeds."""
    columns = list(zip(*(run[way] for run in found), strict=True))
    return [(mean(x), stdev(x) / len(x) ** 0.5) for x in columns]


def test_a_posterior_as_prior_keeps_the_first_task(tmp_path):
    found = [accuracies(seed, Static(), tmp_path) for seed in SEEDS]
    first, prior, tuned, adam = (
        summarise(found, way) for way in ("first", "prior", "fine-tuned", "adam")
    )
    assert first[0][0] > 95
    (kept, error), (learned, _) = prior
    assert kept > 85
    assert learned > 88
    for others in (tuned, adam):
        assert others[1][0] > 85  # they, too, learn the second task
        lost, its_error = others[0]
        assert kept - lost > 15
        assert kept - lost > 4 * (error**2 + its_error**2) ** 0.5


if __name__ == "__main__":
    import pathlib
    import tempfile

    for dynamics in (Static(), RandomWalk(1e-3)):
        with tempfile.TemporaryDirectory() as folder:
            runs = [accuracies(seed, dynamics, pathlib.Path(folder)) for seed in range(10)]
        for way in runs[0]:
            (kept, a), (learned, b) = summarise(runs, way)
            print(f"{dynamics!s:40} {way:10} {kept:5.1f} ± {a:.1f}  {learned:5.1f} ± {b:.1f}")
