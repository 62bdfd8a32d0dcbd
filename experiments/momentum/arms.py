"""The optimizers of the study, what is tuned of each, and the settings that are tried.

Every optimizer of a problem gets the same number of settings. Half are the first points of a
scrambled Sobol sequence, spread over its ranges evenly in the logarithm; the other half are spread
alike over a box about the best of these, a third as wide in every number.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from experiments.optimizers import MORE_OPTIMIZERS, OPTIMIZERS, Choice, Entry

Knobs = dict[str, tuple[float, float]]
Values = dict[str, float]


@dataclass(frozen=True)
class Arm:
    """An optimizer with the ranges that it is tuned over.

    Attributes:
        entry: The optimizer.
        knobs: Range of each of the numbers that are tuned.
        translate: From these numbers and the batch size to the optimizer's settings.
        model: Whether the optimizer looks into the model.
    """

    entry: Entry
    knobs: Knobs
    translate: Callable[[Values, int], dict[str, Any]]
    model: bool = False

    def settings(self, count: int, about: Values | None = None) -> list[Values]:
        """Spread points over the ranges, or about one point.

        Args:
            count: How many.
            about: The point, if any.

        Returns:
            The numbers to try.
        """
        points = torch.quasirandom.SobolEngine(len(self.knobs), scramble=True, seed=0).draw(
            max(count, 1), dtype=torch.float64
        )  # it draws no 0 points
        boxes = self.knobs if about is None else self._box(about)
        return [
            {
                name: float(f"{low * (high / low) ** x:.3g}")
                for (name, (low, high)), x in zip(boxes.items(), point, strict=True)
            }
            for point in points.tolist()[:count]
        ]

    def _box(self, about: Values) -> Knobs:
        """A box about a point, inside the ranges and a third as wide."""
        boxes = {}
        for name, (low, high) in self.knobs.items():
            width = (high / low) ** (1 / 3)
            start = min(max(about[name] / width**0.5, low), high / width)
            boxes[name] = (start, start * width)
        return boxes

    def choice(self, values: Values, batch_size: int) -> Choice:
        """The optimizer at one of these points.

        Args:
            values: The numbers.
            batch_size: Examples per step.

        Returns:
            The optimizer with its settings.
        """
        return Choice(self.entry, tuple(self.translate(values, batch_size).items()))


# From what is tuned to an optimizer's own arguments -----------------------------------------


def _nesterov(values: Values, _: int) -> dict[str, Any]:
    return {"lr": values["lr"], "momentum": 1 - values["1 - momentum"]}


def _adam(values: Values, _: int) -> dict[str, Any]:
    return {"lr": values["lr"], "betas": (1 - values["1 - beta1"], 1 - values["1 - beta2"])}


def _by_decay(values: Values, batch_size: int) -> dict[str, Any]:
    """Settings of a filter whose two rates are given by one of them and the decay they imply.

    Returns:
        The settings: the decay per step is lr² B / (2 lr_sgd), and above 1 there is no filter.
    """
    decay = values["implied decay"]
    if "lr" in values:
        lr, lr_sgd = values["lr"], batch_size * values["lr"] ** 2 / (2 * decay)
    else:
        lr, lr_sgd = (2 * decay * values["lr_sgd"] / batch_size) ** 0.5, values["lr_sgd"]
    average = {"beta2": 1 - values["1 - beta2"]} if "1 - beta2" in values else {}
    return {"lr": lr, "lr_sgd": lr_sgd, "momentum_decay": values["momentum_decay"], **average}


def _by_name(values: Values, _: int) -> dict[str, Any]:
    return dict(values)


# Curvature from the model -------------------------------------------------------------------


def _gauss_newton(
    stationary: bool,
    params: Iterable[torch.Tensor],
    batch_size: int,
    *,
    noise_variance: float,
    model: nn.Module,
    **settings: Any,
) -> torch.optim.Optimizer:
    """The momentum filter with the model's own curvature, and without a prior that pulls.

    Args:
        stationary: Whether the covariance is at rest.
        params: Parameters to train.
        batch_size: Examples per step.
        noise_variance: What the curvature is divided by; 1 is the loss' own, less is caution.
        model: The model.
        **settings: The filter's lr and momentum_decay.

    Returns:
        The optimizer.
    """
    from filteropt import FilterOptimizer, variant
    from filteropt.approximations import Averaged, Diagonal, FixedPoint, GaussNewtonDiagonal
    from filteropt.models import MomentumAugmented
    from filteropt.presets import momentum_filter

    curvature = GaussNewtonDiagonal("squared_error", noise_variance, batch_size)
    composition = variant(
        momentum_filter,
        dynamics=lambda lr, momentum_decay: MomentumAugmented(lr, 1e12, 0.0, momentum_decay),
        likelihood=Averaged(curvature, 0.99) if stationary else curvature,
        posterior=FixedPoint("exact") if stationary else Diagonal(initial_variance=1.0),
    )
    return FilterOptimizer(
        params,
        composition,
        linearize_at="prediction",
        model=model,
        batch_size=batch_size,
        stationary=stationary,
        **settings,
    )


_CURVED = tuple(
    Entry(name, title, description, partial(_gauss_newton, stationary))
    for name, title, description, stationary in (
        (
            "momentum-gn",
            "Momentum filter, GN",
            "the momentum filter with GaussNewtonDiagonal and a flat prior",
            False,
        ),
        (
            "momentum-gn-stationary",
            "Momentum filter, GN, stationary",
            "the same with its covariance at rest",
            True,
        ),
    )
)

# The ranges ---------------------------------------------------------------------------------

_RATES = {"implied decay": (1e-9, 1e-3), "momentum_decay": (3e-3, 0.3)}
_TASK_FILTER = {
    "lr_sgd": (0.03, 100.0),
    "implied decay": (1e-6, 1e-2),
    "momentum_decay": (1e-2, 0.3),
}
_MOMENTA = {"1 - beta1": (1e-2, 0.3), "1 - beta2": (1e-4, 0.1)}
_GN = {"lr": (0.3, 30.0), "noise_variance": (0.03, 3.0), "momentum_decay": (3e-3, 0.3)}

QUADRATIC_ARMS = (
    Arm(MORE_OPTIMIZERS["momentum"], {"lr": (1e-3, 1.0), **_RATES}, _by_decay),
    Arm(
        MORE_OPTIMIZERS["momentum-stationary"],
        {"lr": (1e-3, 1.0), **_RATES, "1 - beta2": (1e-4, 0.1)},
        _by_decay,
    ),
    Arm(_CURVED[0], _GN, _by_name, model=True),
    Arm(_CURVED[1], _GN, _by_name, model=True),
    Arm(
        MORE_OPTIMIZERS["nesterov"],
        {"lr": (0.03, 3.0), "1 - momentum": (3e-3, 0.3)},
        _nesterov,
    ),
    Arm(OPTIMIZERS["adam"], {"lr": (1e-3, 1.0), **_MOMENTA}, _adam),
    Arm(MORE_OPTIMIZERS["nadam"], {"lr": (1e-3, 1.0), **_MOMENTA}, _adam),
)
TASK_ARMS = (
    Arm(MORE_OPTIMIZERS["momentum"], _TASK_FILTER, _by_decay),
    Arm(MORE_OPTIMIZERS["momentum-stationary"], _TASK_FILTER, _by_decay),
    Arm(
        MORE_OPTIMIZERS["nesterov"],
        {"lr": (1e-3, 1.0), "1 - momentum": (1e-2, 0.3)},
        _nesterov,
    ),
    Arm(OPTIMIZERS["adam"], {"lr": (1e-4, 3e-2), **_MOMENTA}, _adam),
    Arm(MORE_OPTIMIZERS["nadam"], {"lr": (1e-4, 3e-2), **_MOMENTA}, _adam),
)


def ranges(arms: Sequence[Arm]) -> list[str]:
    """Write the ranges down.

    Args:
        arms: The optimizers.

    Returns:
        One line for each.
    """
    return [
        f"{arm.entry.title}: "
        + ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in arm.knobs.items())
        for arm in arms
    ]
