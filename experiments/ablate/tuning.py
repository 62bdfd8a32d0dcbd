"""Equal tuning: as many trials for every arm, on held-out training examples.

Arms that have a hyperparameter in common try the same values of it, trial by trial.
"""

import math
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from experiments.ablate.arms import Arm, Values
from experiments.errors import UserError

ROUNDS = 4
"""In how many rounds Optuna is asked: the trials of one round do not know of each other."""


class Tuner(Protocol):
    """Proposes settings of one arm and hears what became of them."""

    def ask(self, count: int) -> list[Values]:
        """So many further settings."""

    def tell(self, scores: Sequence[float | None]) -> None:
        """The scores of those, lower being better; None where a run diverged."""


class RandomSearch:
    """Independent draws, even in the logarithm."""

    def __init__(self, arm: Arm, seed: int) -> None:
        """Start at the first trial.

        Args:
            arm: What is tuned.
            seed: Fixes the draws, with the hyperparameter's name and the trial's number.
        """
        self._arm, self._seed, self._next = arm, seed, 0

    def ask(self, count: int) -> list[Values]:
        """So many further settings."""
        first, self._next = self._next, self._next + count
        return [self._setting(trial) for trial in range(first, self._next)]

    def tell(self, scores: Sequence[float | None]) -> None:
        """It does not learn."""

    def _setting(self, trial: int) -> Values:
        found = []
        for name, low, high in self._arm.ranges:
            draw = np.random.default_rng([self._seed, zlib.crc32(name.encode()), trial])
            found.append((name, rounded(low * (high / low) ** draw.random())))
        return tuple(found)


class OptunaSearch:
    """Optuna's tree-structured Parzen estimator, which learns from round to round."""

    def __init__(self, arm: Arm, seed: int) -> None:
        """Start a study.

        Args:
            arm: What is tuned.
            seed: Fixes the draws.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._arm, self._asked = arm, list[Any]()
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
        self._study = optuna.create_study(sampler=sampler)

    def ask(self, count: int) -> list[Values]:
        """So many further settings."""
        self._asked = [self._study.ask() for _ in range(count)]
        return [
            tuple((n, rounded(t.suggest_float(n, a, b, log=True))) for n, a, b in self._arm.ranges)
            for t in self._asked
        ]

    def tell(self, scores: Sequence[float | None]) -> None:
        """The scores of those; a run that diverged is worse than any other."""
        for trial, score in zip(self._asked, scores, strict=True):
            self._study.tell(trial, 1e6 if score is None else score)


def tuner(search: str, arm: Arm, seed: int) -> Tuner:
    """What proposes an arm's settings.

    Args:
        search: ``"random"`` or ``"optuna"``.
        arm: What is tuned.
        seed: Fixes the draws.

    Returns:
        The tuner.
    """
    return OptunaSearch(arm, seed) if search == "optuna" else RandomSearch(arm, seed)


def rounds(search: str, trials: int) -> list[int]:
    """How many trials are made at a time.

    Args:
        search: ``"random"`` or ``"optuna"``.
        trials: How many there are.

    Returns:
        The numbers, which add up to the trials.

    Raises:
        UserError: If Optuna is not installed.
    """
    if search == "random":
        return [trials]
    if find_spec("optuna") is None:
        raise UserError('--tuner optuna needs Optuna; install it with: pip install "optuna>=4"')
    parts = np.array_split(np.arange(trials), min(ROUNDS, trials))
    return [len(part) for part in parts]


def rounded(value: float) -> float:
    """Three digits: what the report shows is what was run."""
    return float(f"{value:.3g}")


def rates(arm: Arm, best: Values, count: int) -> list[Values]:
    """The best setting with its rate replaced, evenly in the logarithm over its range.

    Args:
        arm: The arm.
        best: Its best setting.
        count: How many rates.

    Returns:
        The settings.
    """
    name, low, high = arm.ranges[0]
    return [
        tuple((k, rounded(rate) if k == name else v) for k, v in best)
        for rate in np.geomspace(low, high, count)
    ]


def best(settings: Sequence[Values], scores: Sequence[float | None]) -> Values | None:
    """The setting of the lowest score, the first where several have it.

    Args:
        settings: Settings.
        scores: Their scores, None where a run diverged.

    Returns:
        The setting; None if all diverged.
    """
    pairs = [(math.inf if s is None else s, k) for k, s in enumerate(scores)]
    lowest, place = min(pairs)
    return settings[place] if lowest < math.inf else None
