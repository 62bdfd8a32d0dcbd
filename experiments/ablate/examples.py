"""A task's examples, for tuning and for the test, and the order in which a seed visits them."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.data import hold_out_validation
from experiments.tasks import TASKS
from experiments.train import Standardise

_EVALUATION_BATCH = 1000


class Data:
    """A task's examples on the device, and minibatches as rows of them."""

    def __init__(self, x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> None:
        """Hold them.

        Args:
            x: Training inputs.
            y: Their labels.
            held_x: Inputs to evaluate on.
            held_y: Their labels.
        """
        self.x, self.y, self.held_x, self.held_y = x, y, held_x, held_y

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """The mean loss of a minibatch."""
        return cross_entropy(model(self.x[rows]), self.y[rows])

    def look(self, model: nn.Module) -> dict[str, Tensor]:
        """The NLL and the error rate on the examples to evaluate on."""
        parts = self.held_x.split(_EVALUATION_BATCH)
        logits = torch.cat([model(part) for part in parts])
        wrong = (logits.argmax(-1) != self.held_y).double().mean()
        return {"nll": cross_entropy(logits, self.held_y), "error": wrong}

    def batches(self, size: int, epochs: int, seed: int) -> list[Tensor]:
        """Rows of every step; an incomplete last minibatch of an epoch is left out."""
        draw, found = torch.Generator().manual_seed(seed), list[Tensor]()
        for _ in range(epochs):
            order = torch.randperm(len(self.y), generator=draw)
            found += order[: len(order) // size * size].to(self.y.device).split(size)
        return found


@lru_cache(maxsize=4)
def examples(task_name: str, purpose: str, data_dir: Path) -> tuple[Tensor, ...]:
    """A task's training examples and those to evaluate on: test, or a held-out fifth.

    Args:
        task_name: The task.
        purpose: ``"test"`` or another.
        data_dir: Where data files are.

    Returns:
        Inputs and labels of both, with the training inputs' mean 0 and variance 1.
    """
    data = TASKS[task_name].source.load(data_dir)
    data = data if purpose == "test" else hold_out_validation(data)
    scale = Standardise(data.train_images)
    train, held = scale(data.train_images), scale(data.test_images)
    return train, data.train_labels, held, data.test_labels
