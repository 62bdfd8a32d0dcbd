"""The runs of the study: how they are carried out."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from experiments.data import hold_out_validation
from experiments.train import Standardise
from experiments.uncertainty.metrics import assess, measure
from experiments.uncertainty.predictives import (
    DRAWS,
    QUICK_DRAWS,
    TUNING_DRAWS,
    attach_last_layer,
    fit,
    predict,
)
from experiments.uncertainty.shifts import Shifted, shifted
from experiments.uncertainty.training import train
from experiments.uncertainty.trial import TASK, Trial

ROTATED, DIGITS = 250, 1000
_FEW = 20


class _Data:
    """Standardised training images and what a network is tested on."""

    def __init__(self, *, held_out: bool, small: bool) -> None:
        data = TASK.source.load(Path())
        data = hold_out_validation(data) if held_out else data
        self.scale = Standardise(data.train_images)
        self.images, self.labels = self.scale(data.train_images), data.train_labels
        tested, rotated, digits = (_FEW, _FEW, _FEW) if small else (None, ROTATED, DIGITS)
        images, labels = data.test_images[:tested], data.test_labels[:tested]
        self.tested: Shifted = shifted(images, labels, rotated, digits)


@lru_cache(maxsize=2)
def _load(held_out: bool, small: bool) -> _Data:
    return _Data(held_out=held_out, small=small)


def perform(trial: Trial) -> dict[str, Any]:
    """Carry one run out, on one thread.

    Args:
        trial: The run.

    Returns:
        ``metrics`` and ``curves`` by predictive distribution, beside what was ``fitted``, the
        ``passes`` per training example and the ``train_loss``; and whether it ``diverged``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            return _perform(trial, _load(trial.fitted is None, trial.small))
    finally:
        torch.set_num_threads(threads)


def _perform(trial: Trial, data: _Data) -> dict[str, Any]:
    trained, loss = train(trial, data)
    if not math.isfinite(loss):
        return {"metrics": {}, "curves": {}, "diverged": True}
    if trial.method.asks == "point":
        attach_last_layer(trained, data.images)
    tested = data.tested
    images = data.scale(tested.images)
    fitted = trial.fitted
    draws = DRAWS if fitted is not None else TUNING_DRAWS
    draws = QUICK_DRAWS if trial.small else draws
    if fitted is None:
        fitted = fit(trained, images, tested.labels, draws)
        found = predict(trained, images, fitted, draws)
        metrics = {name: measure(log_p, tested.labels) for name, log_p in found.items()}
        curves: dict[str, Any] = {}
    else:
        everything = torch.cat(
            [images, data.scale(tested.rotated.flatten(0, 1)), data.scale(tested.digits)]
        )
        sizes = [len(images), tested.rotated.shape[:2].numel(), len(tested.digits)]
        metrics, curves = {}, {}
        for name, log_p in predict(trained, everything, fitted, draws).items():
            test, rotated, digits = log_p.split(sizes)
            rotated = rotated.unflatten(0, tuple(tested.rotated.shape[:2]))
            metrics[name], curves[name] = assess(test, tested.labels, rotated, digits)
    numbers = [x for found in metrics.values() for x in found.values()]
    if not all(map(math.isfinite, numbers)):
        return {"metrics": {}, "curves": {}, "diverged": True}
    curves |= {"fitted": fitted, "train_loss": loss}
    return {"metrics": metrics, "curves": curves, "diverged": False}
