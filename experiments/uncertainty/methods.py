"""The methods of the study: how each is built, trained and asked, and what is tuned of it.

A pass is one forward or one backward pass of one example through the network. Training budgets are
equal in passes, so that a method which needs more of them per step takes fewer steps.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from experiments.momentum.arms import Arm, Knobs, Values
from experiments.optimizers import Entry

Trains = Literal["plain", "sampled", "fisher"]
Asks = Literal["point", "belief", "dropout", "ensemble"]
CLASSES = 10
_JACOBIANS = 2**25  # bytes at a time; these stay in the cache


@dataclass(frozen=True)
class Method:
    """A way to train a network and to predict with it.

    Attributes:
        arm: the optimizer, with the ranges that it is tuned over.
        trains: ``"plain"``; ``"sampled"``, gradients at weights drawn from the posterior;
            ``"fisher"``, with a second backward pass for labels drawn from the model.
        asks: where the posterior predictive comes from, beside the point estimate.
        passes: forward and backward passes per example in a step.
        members: networks that are trained.
        borrows: the method whose tuned settings are used, for one that is not tuned itself.
        filters: whether it is one of the filters that the study is about.
    """

    arm: Arm
    trains: Trains = "plain"
    asks: Asks = "belief"
    passes: int = 2
    members: int = 1
    borrows: str | None = None
    filters: bool = False

    @property
    def name(self) -> str:
        """The name on the command line."""
        return self.arm.entry.name

    @property
    def title(self) -> str:
        """The name in tables and figures."""
        return self.arm.entry.title

    def optimizer(
        self, model: nn.Module, values: Values, batch_size: int, images: int
    ) -> torch.optim.Optimizer:
        """Build the optimizer.

        Args:
            model: The network.
            values: What is tuned.
            batch_size: Examples per step.
            images: Training examples.

        Returns:
            The optimizer.
        """
        settings = self.arm.translate(values, batch_size)
        build = self.arm.entry.build
        return build(model.parameters(), batch_size, model=model, images=images, **settings)


# Filters ------------------------------------------------------------------------------------


def _likelihood(kind: str, batch_size: float, beta1: float | None) -> Any:
    """A likelihood of the ablation.

    Args:
        kind: Which.
        batch_size: Examples that the loss averages over.
        beta1: Decay of the average that moves the mean.

    Returns:
        The part.
    """
    from filteropt import approximations

    if kind == "GaussNewtonDiagonal":
        return approximations.GaussNewtonDiagonal(
            "cross_entropy", scale=batch_size, beta1=beta1, memory=_JACOBIANS
        )
    return getattr(approximations, kind)(scale=batch_size, beta1=beta1)


def _filter(
    preset: str,
    kind: str,
    params: Iterable[torch.Tensor],
    batch_size: int,
    *,
    model: nn.Module,
    images: int,
    **settings: Any,
) -> torch.optim.Optimizer:
    """AdaBayes, or AdaBayes-FP with an average over steps, with another likelihood."""
    import filteropt
    from filteropt.approximations import Averaged

    def recursive(batch_size: float, beta1: float) -> Any:
        return _likelihood(kind, batch_size, beta1)

    def stationary(batch_size: float, betas: tuple[float, float]) -> Any:
        return Averaged(_likelihood(kind, batch_size, betas[0]), betas[1])

    fixed_point = preset == "adabayes_fp"
    composition = filteropt.variant(
        getattr(filteropt.presets, preset), likelihood=stationary if fixed_point else recursive
    )
    betas = {"betas": (0.9, 0.99)} if fixed_point else {}
    return filteropt.FilterOptimizer(
        params, composition, model=model, batch_size=batch_size, **betas, **settings
    )


# Rivals -------------------------------------------------------------------------------------


def _rival_class(
    name: str,
    told: tuple[tuple[str, str], ...],
    params: Iterable[torch.Tensor],
    batch_size: int,
    **facts: Any,
) -> torch.optim.Optimizer:
    """An optimizer class of filteropt or torch, told of the facts that it asks for.

    Args:
        name: The class.
        told: Its keywords, each with the fact that it is given.
        params: The parameters.
        batch_size: Examples per step.
        **facts: The model and the number of images, and the settings.

    Returns:
        The optimizer.
    """
    import filteropt

    known = {"model": facts.pop("model"), "images": facts.pop("images"), "batch_size": batch_size}
    given = {keyword: known[fact] for keyword, fact in told}
    made: Any = getattr(filteropt, name, None) or getattr(torch.optim, name)
    return made(params, **given, **facts)


_ADAMW_CLASS = partial(_rival_class, "AdamW", ())
_IVON_CLASS = partial(_rival_class, "IVON", (("ess", "images"),))
_VON_CLASS = partial(_rival_class, "VON", (("dataset_size", "images"),))
_VOGN_CLASS = partial(
    _rival_class,
    "VOGN",
    (("dataset_size", "images"), ("batch_size", "batch_size"), ("model", "model")),
)


# The ranges ---------------------------------------------------------------------------------

_FILTER = {"lr": (5e-4, 2e-2), "lr_sgd": (0.2, 5.0), "weight_decay": (0.01, 1.0)}
_DRAWS = {**_FILTER, "draw temperature": (1e-3, 1.0)}
_ADAMW = {"lr": (1e-3, 2e-2), "weight_decay": (0.01, 3.0)}
_DROPOUT = {**_ADAMW, "dropout": (0.05, 0.5)}
_IVON = {
    "lr": (0.05, 0.5),
    "hess_init": (0.1, 3.0),
    "weight_decay": (1e-5, 1e-2),
    "1 - beta2": (1e-5, 1e-3),
}
_NEWTON = {
    "lr": (0.02, 0.5),
    "prior_precision": (0.1, 30.0),
    "initial_curvature": (0.1, 3.0),
    "1 - beta2": (1e-5, 1e-2),
}

_LIKELIHOODS: dict[str, tuple[str, str, Trains, int]] = {
    "squared": ("SquaredGradient", "squared gradient", "plain", 2),
    "centred": ("CentredGradient", "centred gradient", "plain", 2),
    "fisher": ("SampledFisher", "sampled Fisher", "fisher", 3),
    "examples": ("PerExample", "per example", "plain", 2),
    "gn": ("GaussNewtonDiagonal", "Gauss–Newton", "plain", 3 + CLASSES),
}


def _filters() -> list[Method]:
    methods = []
    for prefix, title, build in (
        ("adabayes", "AdaBayes", partial(_filter, "adabayes")),
        ("adabayes-fp", "AdaBayes-FP", partial(_filter, "adabayes_fp")),
    ):
        for name, (kind, words, trains, passes) in _LIKELIHOODS.items():
            entry = Entry(
                f"{prefix}-{name}",
                f"{title}, {words}",
                f"{title} with {kind}",
                partial(build, kind),
            )
            arm = Arm(entry, _FILTER, _settings)
            methods.append(Method(arm, trains, "belief", passes, filters=True))
    entry = Entry(
        "adabayes-fp-draws",
        "AdaBayes-FP, at draws",
        "AdaBayes-FP with SquaredGradient, gradients at weights drawn from the belief",
        partial(_filter, "adabayes_fp", "SquaredGradient"),
    )
    return [*methods, Method(Arm(entry, _DRAWS, _settings), "sampled", filters=True)]


def _settings(values: Values, _: int) -> dict[str, Any]:
    """What is tuned, as the optimizer takes it; the rest is the network's and the training's."""
    others = ("1 - beta2", "dropout", "draw temperature")
    settings = {name: x for name, x in values.items() if name not in others}
    return settings | ({"beta2": 1 - values["1 - beta2"]} if "1 - beta2" in values else {})


def _rival(
    name: str, title: str, description: str, build: Callable[..., Any], knobs: Knobs, **how: Any
) -> Method:
    return Method(Arm(Entry(name, title, description, build), knobs, _settings), **how)


METHODS = {
    method.name: method
    for method in (
        *_filters(),
        _rival(
            "ivon", "IVON", "filteropt.IVON, one draw a step", _IVON_CLASS, _IVON, trains="sampled"
        ),
        _rival(
            "vogn",
            "VOGN",
            "filteropt.VOGN, one draw a step",
            _VOGN_CLASS,
            _NEWTON,
            trains="sampled",
        ),
        _rival(
            "von", "VON", "filteropt.VON, one draw a step", _VON_CLASS, _NEWTON, trains="sampled"
        ),
        _rival("adamw", "AdamW", "torch.optim.AdamW", _ADAMW_CLASS, _ADAMW, asks="point"),
        _rival("dropout", "MC dropout", "AdamW, dropout", _ADAMW_CLASS, _DROPOUT, asks="dropout"),
        _rival(
            "ensemble",
            "Deep ensemble (5)",
            "five networks, AdamW's settings",
            _ADAMW_CLASS,
            _ADAMW,
            asks="ensemble",
            members=5,
            borrows="adamw",
        ),
    )
}


def steps_of(method: Method, epochs: float, images: int, batch_size: int, *, equal: str) -> int:
    """Steps that a method takes.

    Args:
        method: The method.
        epochs: Passes over the training images of a method that makes one forward and one
            backward pass per example in a step.
        images: Training images.
        batch_size: Images per step.
        equal: ``"passes"`` or ``"steps"``: what all methods have equally many of.

    Returns:
        The number of steps, at least 1.
    """
    share = 2 / method.passes if equal == "passes" else 1.0
    return max(1, math.floor(epochs * (images // batch_size) * share))
