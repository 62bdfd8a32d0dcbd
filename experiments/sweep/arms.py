"""The optimizers of the study, and what is swept of each.

AdaBayes takes the exact discretization, since Euler's admits no rates above 2 sqrt(lr_sgd / B).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import filteropt
from experiments.config import read_names
from experiments.optimizers import Choice, Entry
from filteropt import presets

RATES = (1e-5, 1e-1)
PRIORS = (1e-3, 10.0)


@dataclass(frozen=True)
class Arm:
    """An optimizer of the study.

    Attributes:
        name: The name on the command line.
        title: The name in tables and figures.
        optimizer: What is swept.
        fixed: Hyperparameters that are not, besides the batch size.
        batched: Whether it takes the batch size.
        map: Whether its lr and lr_sgd are swept together, too.
    """

    name: str
    title: str
    optimizer: Callable[..., Any]
    fixed: tuple[tuple[str, Any], ...] = ()
    batched: bool = True
    map: bool = False

    @property
    def choice(self) -> Choice:
        """What the store of runs is told."""
        return Choice(Entry(self.name, self.title, self.title, self.optimizer), self.fixed)

    def settings(self, points: int, batch_size: int, *, priors: int = 0) -> dict[str, Any]:
        """The grid of one sweep.

        Args:
            points: Learning rates, evenly spaced in their logarithm.
            batch_size: Examples per step.
            priors: Values of lr_sgd, of a map; 0 keeps the arm's own.

        Returns:
            The grid.
        """
        grid: dict[str, Any] = {"lr": _spread(*RATES, points), **dict(self.fixed)}
        if priors:
            grid["lr_sgd"] = _spread(*PRIORS, priors)
        return {**grid, "batch_size": batch_size} if self.batched else grid


def _spread(low: float, high: float, points: int) -> list[float]:
    return [float(f"{value:.3g}") for value in np.geomspace(low, high, points)]


ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            "adabayes",
            "AdaBayes",
            filteropt.AdaBayes,
            (("lr_sgd", 0.5), ("discretization", "exact")),
            map=True,
        ),
        Arm("adabayes-fp", "AdaBayes-FP", filteropt.AdaBayesFP, (("lr_sgd", 0.5),), map=True),
        Arm("adamw", "AdamW", filteropt.AdaBayesFP, (("lr_sgd", math.inf),)),
        Arm("bayes-rmsprop", "Bayesian RMSprop", filteropt.BayesRMSprop),
        Arm("sgd", "SGD (momentum 0.9)", presets.sgd, (("momentum", 0.9),), batched=False),
    )
}


def read_arms(words: Sequence[str]) -> list[Arm]:
    """Look the optimizers up, each once.

    Args:
        words: Names, also comma-separated; none means all.

    Returns:
        The optimizers.

    Raises:
        UserError: If a name is unknown, or words hold no name.
    """
    return [ARMS[name] for name in read_names("arms", "optimizer", words or tuple(ARMS), ARMS)]
