"""What is trained for Figure 4 and Table 1: problems, optimizers and the paper's numbers.

The settings are those of Luo et al. (2019), whose protocol the paper takes over, and for AdamW,
AdaBayes and AdaBayes-FP the paper's section 4. The small scale changes networks, data and epochs,
nothing else.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import filteropt
from experiments import data
from experiments.errors import UserError
from experiments.models import LeNet5, densenet, resnet
from experiments.optimizers import Choice, Entry

BATCH = 128
DROP = 0.75  # of the epochs (150 of 200) run before the learning rate falls
FACTOR = 0.1


@dataclass(frozen=True)
class Problem:
    """A network and a data set.

    Attributes:
        name: The name in files.
        title: The name in tables and figures.
        source: The data.
        classes: Number of classes.
        network: ``"resnet"`` or ``"densenet"``: some optimizers' settings depend on it.
        model: Builds the network.
        padding: Augmentation: the largest shift.
        flip: Augmentation: whether images are mirrored.
        epochs: Passes over the training images.
        cost: Relative time of a pass.
        place: The problem of the paper whose place it takes; its own name there.
    """

    name: str
    title: str
    source: data.Source
    classes: int
    network: str
    model: Callable[[], nn.Module]
    padding: int
    flip: bool
    epochs: int
    cost: float
    place: str


_SMALL_RESNET = partial(resnet, blocks=(1, 1, 1, 1), width=8)
_SMALL_DENSENET = partial(densenet, blocks=(1, 2, 2, 1), growth=8)


def _paper(source: data.Source, classes: int, network: str, model: Callable[..., nn.Module]) -> Any:
    name = {"resnet": "ResNet-34", "densenet": "DenseNet-121"}[network]
    return Problem(
        f"cifar{classes}-{network}", f"{name}, CIFAR-{classes}", source, classes, network,
        partial(model, 3, classes), 4, True, 200, 500.0, f"cifar{classes}-{network}",
    )  # fmt: skip


def _small(
    title: str, source: data.Source, stride: int, padding: int, epochs: int, cost: float, place: int
) -> list[Problem]:
    return [
        Problem(
            f"{title.lower()}-{network}", f"small {name}, {title}", source, 10, network,
            partial(model, 1, 10, stride=stride), padding, False, epochs, cost,
            f"cifar{place}-{network}",
        )
        for network, name, model in (
            ("resnet", "ResNet", _SMALL_RESNET), ("densenet", "DenseNet", _SMALL_DENSENET)
        )
    ]  # fmt: skip


SCALES = {
    "paper": [
        _paper(source, classes, network, model)
        for source, classes in ((data.CIFAR10, 10), (data.CIFAR100, 100))
        for network, model in (("resnet", resnet), ("densenet", densenet))
    ],
    "small": [
        *_small("MNIST-5k", data.MNIST5K, 2, 2, 20, 3.0, 10),
        *_small("Digits", data.DIGITS, 1, 1, 60, 0.7, 100),
    ],
}
# Figure 3 at the small scale; of Table 1 it is no part.
LENET = Problem(
    "mnist-5k-lenet", "LeNet-5, MNIST-5k", data.MNIST5K, 10, "resnet",
    partial(LeNet5, channels=1, side=28, classes=10), 0, False, 100, 1.0, "cifar10-resnet",
)  # fmt: skip
PROBLEMS = {one.name: one for one in (*SCALES["paper"], *SCALES["small"], LENET)}

_MOMENTS = {"resnet": (0.99, 0.999), "densenet": (0.9, 0.999)}  # Luo et al.'s best for Adam
_DECAY = {"weight_decay": 5e-4}
_DECOUPLED = {"weight_decay": 0.05}  # lambda = 5e-5 per step at lr 0.001
_BOUNDS = {"lr": 1e-3, "final_lr": 0.1, "gamma": 1e-3, "weight_decouple": False} | _DECAY
_RATES = {"lr": 1e-3, "lr_sgd": 0.1, "batch_size": BATCH} | _DECOUPLED


def _adabound(params: Iterable[torch.Tensor], **settings: Any) -> torch.optim.Optimizer:
    try:
        from pytorch_optimizer import AdaBound
    except ImportError as fault:
        raise UserError(
            'AdaBound needs pytorch-optimizer: pip install "filteropt[second-order]"'
        ) from fault
    return AdaBound(params, **settings)


_ADAM = {"lr": 1e-3} | _DECAY
OPTIMIZERS: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "sgd": ("SGD", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9} | _DECAY),
    "adam": ("Adam", torch.optim.Adam, {"betas": _MOMENTS} | _ADAM),
    "adagrad": ("AdaGrad", torch.optim.Adagrad, {"lr": 0.01} | _DECAY),
    "amsgrad": ("AMSGrad", torch.optim.Adam, {"betas": _MOMENTS, "amsgrad": True} | _ADAM),
    "adabound": ("AdaBound", _adabound, _BOUNDS),
    "amsbound": ("AMSBound", _adabound, {"ams_bound": True} | _BOUNDS),
    "adamw": ("AdamW", torch.optim.AdamW, {"lr": 1e-3} | _DECOUPLED),
    "adabayes-fp": ("AdaBayes-FP", filteropt.AdaBayesFP, _RATES),
    "adabayes": ("AdaBayes", filteropt.AdaBayes, _RATES),
}


def choice(name: str, network: str) -> Choice:
    """An optimizer with the paper's settings.

    Args:
        name: Its name, of :data:`OPTIMIZERS`.
        network: The kind of network.

    Returns:
        The optimizer.
    """
    title, make, settings = OPTIMIZERS[name]
    told = {key: value[network] if value is _MOMENTS else value for key, value in settings.items()}

    def build(params: Iterable[torch.Tensor], _: int) -> torch.optim.Optimizer:
        return make(params, **told)

    return Choice(Entry(name, title, title, build))


PUBLISHED = {
    "sgd": (5.170, 0.174, 5.580, 0.177, 22.710, 0.833, 21.290, 0.774),
    "adam": (7.110, 0.239, 6.690, 0.230, 27.590, 1.049, 26.640, 1.074),
    "adagrad": (6.840, 0.307, 7.490, 0.338, 30.350, 1.347, 30.110, 1.319),
    "amsgrad": (6.720, 0.239, 6.170, 0.234, 27.430, 1.033, 25.850, 1.103),
    "adabound": (5.140, 0.220, 4.850, 0.210, 23.060, 1.004, 22.210, 1.050),
    "amsbound": (4.940, 0.210, 4.960, 0.219, 23.000, 1.003, 22.360, 1.017),
    "adamw": (5.080, 0.239, 5.190, 0.214, 24.850, 1.142, 23.480, 1.043),
    "adabayes-fp": (5.230, 0.187, 4.910, 0.176, 23.120, 0.935, 22.600, 0.934),
    "adabayes": (4.840, 0.229, 4.560, 0.222, 22.920, 0.969, 22.090, 1.079),
}
"""Table 1 of the paper: the lowest test error (%) and test loss of every problem of its scale."""


def published(optimizer: str, place: str) -> tuple[float, float]:
    """The paper's numbers.

    Args:
        optimizer: The optimizer.
        place: The problem, as the paper has it.

    Returns:
        The lowest test error in percent, and the lowest test loss.
    """
    k = [problem.name for problem in SCALES["paper"]].index(place)
    row = PUBLISHED[optimizer]
    return row[2 * k], row[2 * k + 1]
