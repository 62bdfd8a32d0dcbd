"""The optimizers that are timed: how each is made, and which are left out and why."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import filteropt

Params = list[torch.nn.Parameter]
Make = Callable[[Params], Any]

PERIOD = 10
"""Steps between two turns of a basis, or between two roots of a matrix."""

_RATES = {"lr": 1e-3, "betas": (0.95, 0.95), "weight_decay": 0.01}
_MAX_DIM = 2048  # the longest side that gets a basis
_EXECUTORS: dict[str, dict[str, Any]] = {
    "loop": {"fused": False},
    "eager": {"fused": False},  # of matrices: bucketed
    "fused": {"fused": True},
    "unchecked": {"fused": True, "on_nonfinite": "ignore"},  # as torch's optimizers are
    "graph": {"fused": True, "capturable": True, "on_nonfinite": "ignore"},
}


@dataclass(frozen=True)
class Contender:
    """An optimizer and how it runs.

    Attributes:
        name: its name on the command line and in files.
        title: its name in tables.
        make: takes the parameters; raises where the optimizer is not to be had.
        ours: whether it is filteropt's.
        period: the steps after which its costs repeat.
        draws: whether weights are drawn before a step; the draw is timed with it.
        captured: whether it is replayed as a CUDA graph.
        looped: whether filteropt's own choice of an executor gives way to the reference, the loop.
    """

    name: str
    title: str
    make: Make = field(compare=False)
    ours: bool = False
    period: int = 1
    draws: bool = False
    captured: bool = False
    looped: bool = False


class Copy:
    """Copies as many numbers as there are weights: the most that memory gives."""

    def __init__(self, params: Params) -> None:
        total = sum(p.numel() for p in params)
        self.source = torch.zeros(total, device=params[0].device)
        self.target = torch.zeros_like(self.source)
        self.state: dict[Any, Any] = {}
        self.param_groups = [{"params": params}]

    def step(self) -> None:
        self.target.copy_(self.source)


REFERENCE = Contender("adamw-fused", "torch AdamW, fused", partial(torch.optim.AdamW, fused=True))
COPY = Contender("copy", "copy of the weights", Copy)


def _of(module: str, name: str, **settings: Any) -> Make:
    """An optimizer of a package that need not be installed."""

    def make(params: Params) -> Any:
        return getattr(importlib.import_module(module), name)(params, **settings)

    return make


def _shampoo(params: Params) -> Any:
    """In blocks of 256, grafted to RMSprop's step length; a vocabulary has no root of its own."""
    package = importlib.import_module("pytorch_optimizer")
    grafts = importlib.import_module("pytorch_optimizer.optimizer.utils.graft").LayerWiseGrafting
    return package.ScalableShampoo(
        params,
        start_preconditioning_step=PERIOD,
        preconditioning_compute_steps=PERIOD,
        block_size=256,
        graft_type=grafts.RMSPROP,
    )


OTHERS = (
    REFERENCE,
    COPY,
    Contender("adamw-foreach", "torch AdamW, foreach", partial(torch.optim.AdamW, foreach=True)),
    Contender(
        "adamw-graph",
        "torch AdamW, CUDA graph",
        partial(torch.optim.AdamW, fused=True, capturable=True),
        captured=True,
    ),
    Contender(
        "sgd-fused",
        "torch SGD, momentum, fused",
        partial(torch.optim.SGD, lr=1e-3, momentum=0.9, fused=True),
    ),
    Contender(
        "sgd-foreach",
        "torch SGD, momentum, foreach",
        partial(torch.optim.SGD, lr=1e-3, momentum=0.9, foreach=True),
    ),
    Contender("ivon-opt", "IVON (ivon-opt)", _of("ivon", "IVON", lr=0.1, ess=5e4), draws=True),
    Contender("heavyball-adamw", "AdamW (heavyball)", _of("heavyball", "AdamW", lr=1e-3)),
    Contender(
        "heavyball-soap",
        "SOAP (heavyball)",
        _of(
            *("heavyball", "SOAP"),
            **_RATES,
            precondition_frequency=PERIOD,
            max_precond_dim=_MAX_DIM,
            merge_dims=False,
        ),
        period=PERIOD,
    ),
    Contender(
        "pytorch_optimizer-soap",
        "SOAP (pytorch_optimizer)",
        _of(
            *("pytorch_optimizer", "SOAP"),
            **_RATES,
            precondition_frequency=PERIOD,
            max_precondition_dim=_MAX_DIM,
            merge_dims=False,
        ),
        period=PERIOD,
    ),
    Contender("pytorch_optimizer-shampoo", "Shampoo (pytorch_optimizer)", _shampoo, period=PERIOD),
)

PRESETS: dict[str, dict[str, Any]] = {
    "AdaBayes": {"batch_size": 128},
    "AdaBayesFP": {"batch_size": 128},
    "BayesRMSprop": {"batch_size": 128},
    "MomentumFilter": {"batch_size": 128},
    "OnlineNaturalGradient": {"batch_size": 128},
    "VON": {"lr": 1e-3, "dataset_size": 5e4},
    "Vadam": {"lr": 1e-3, "dataset_size": 5e4},
    "IVON": {"lr": 0.1, "ess": 5e4},
    "EigenbasisFilter": {
        "batch_size": 128,
        "update_every": PERIOD,
        "max_dim": _MAX_DIM,
        **_RATES,
    },
}
"""The settings of every preset that can be stepped with gradients alone."""

OPTIONS = (
    Contender(
        "adabayes-bfloat16",
        "AdaBayes, fused, bfloat16",
        partial(filteropt.AdaBayes, batch_size=128, fused=True, belief_dtype=torch.bfloat16),
        ours=True,
    ),
)
"""What the options of one preset change."""

NEED_MORE = {
    "VOGN": "it needs a model's gradients of single examples (see benchmarks.gathering)",
    "KroneckerFilter": "it needs the inputs of a model's layers (see experiments kronecker)",
    "ExtendedKalmanFilter": "it keeps the square of the number of weights",
}


def filters() -> Iterator[Contender]:
    """Every preset with every executor."""
    for name, settings in PRESETS.items():
        for executor, how in _EXECUTORS.items():
            yield Contender(
                f"{name.lower()}-{executor}",
                f"{name}, {_called(executor, matrices=name == 'EigenbasisFilter')}",
                partial(getattr(filteropt, name), **settings, **how),
                ours=True,
                period=PERIOD if name == "EigenbasisFilter" else 1,
                draws=name in {"VON", "Vadam", "IVON"},
                captured=executor == "graph",
                looped=executor == "loop",
            )


def _called(executor: str, *, matrices: bool) -> str:
    eager = "bucketed" if matrices else "eager"
    names = {"graph": "CUDA graph", "eager": eager, "unchecked": "fused, unchecked"}
    return names.get(executor, executor)


def presets_left_out() -> dict[str, str]:
    """The presets that are not timed, and why; one that nobody thought of says so."""
    names = [n for n in filteropt.presets.__all__ if inspect.isclass(getattr(filteropt, n, None))]
    return {
        name: NEED_MORE.get(name, "it is not in benchmarks.contenders.PRESETS")
        for name in names
        if name not in PRESETS
    }


def contenders() -> dict[str, Contender]:
    """All that can be asked for, by name."""
    return {contender.name: contender for contender in (*OTHERS, *filters(), *OPTIONS)}


def objection(contender: Contender, device: torch.device) -> str | None:
    """Why a contender cannot run here: what its constructor says to two small parameters."""
    if contender.captured and device.type != "cuda":
        return "CUDA graphs are for GPUs"
    params = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in ((2, 2), (2,))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            contender.make(params)
    except (ImportError, TypeError, ValueError, RuntimeError) as fault:
        return str(fault)
    return None
