"""What one run of the study is."""

from dataclasses import dataclass
from typing import Any

import torch

from experiments.momentum.arms import Values
from experiments.optimizers import Choice
from experiments.plan import installed
from experiments.tasks import TASKS, Task
from experiments.uncertainty.methods import METHODS, Method
from experiments.uncertainty.predictives import Fitted

TASK = TASKS["mnist5k-lenet"]
PROTOCOL = 1
SELECTION_SEED = 0
_PASS_SECONDS, _EVALUATION_SECONDS = 9e-5, 10.0


@dataclass(frozen=True)
class Trial:
    """One run: train at some settings, then fit to validation images, or test.

    Attributes:
        name: The method's name.
        values: What is tuned of it.
        seed: Fixes the initial weights, the order of the data and the draws.
        epochs: Passes over the training images at one forward and one backward pass per example.
        equal: What all methods have equally many of, ``"passes"`` or ``"steps"``.
        fitted: What was fitted on validation images; ``None`` to fit it there.
        small: Whether few images are tested on, to see whether it works.
    """

    name: str
    values: Values
    seed: int
    epochs: float
    equal: str
    fitted: Fitted | None = None
    small: bool = False

    @property
    def task(self) -> Task:
        """What is learned."""
        return TASK

    @property
    def method(self) -> Method:
        """The method."""
        return METHODS[self.name]

    @property
    def choice(self) -> Choice:
        """The optimizer."""
        return Choice(self.method.arm.entry, tuple(self.values.items()))

    @property
    def cost(self) -> float:
        """Seconds on one core, roughly."""
        passes = self.epochs * (2.0 if self.equal == "passes" else self.method.passes)
        images = 3200 if self.fitted is None else 4000
        return self.method.members * passes * images * _PASS_SECONDS + (
            _EVALUATION_SECONDS * (0.5 if self.fitted is None else 1.0)
        )

    def identity(self) -> dict[str, Any]:
        """Describe the run by plain values: two runs with the same ones give the same numbers.

        Returns:
            The description, ready for JSON.
        """
        return {
            "study": f"uncertainty-{PROTOCOL}",
            "task": self.task.name,
            "method": self.name,
            "values": self.values,
            "seed": self.seed,
            "epochs": self.epochs,
            "equal": self.equal,
            "fitted": self.fitted,
            "evaluate_on": "validation" if self.fitted is None else "test",
            "small": self.small,
            "versions": {"torch": torch.__version__, "filteropt": installed("filteropt")},
        }
