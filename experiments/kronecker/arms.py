"""The optimizers of the study, what is tuned of each, and the packages that some need.

No arm decays its weights and no learning rate has a schedule, so that all minimise the same loss.
SOAP, Shampoo, SINGD and the eigenbasis filter refresh their bases or roots every REFRESH steps; the
Kronecker filter drifts as rarely.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from experiments.config import read_names
from experiments.kronecker.tasks import Task
from experiments.momentum.arms import Arm, Knobs, Values
from experiments.optimizers import Entry

REFRESH = 10
REFERENCE = "adamw"
_OTHERS_LR, _EPS = 1e-3, 1e-8
_PACKAGES = {"pytorch_optimizer": "filteropt[second-order]", "singd": "singd"}


@dataclass(frozen=True)
class Contender:
    """An optimizer of the study.

    Attributes:
        arm: The optimizer, with the ranges that it is tuned over; it is built from the model.
        package: Import name of what it needs beside this project, if anything.
        ours: Whether it is one of the filters that the study is about.
        slower: A step's time, in steps of AdamW, roughly; weighs the progress bar.
    """

    arm: Arm
    package: str | None = None
    ours: bool = False
    slower: float = 2.0

    @property
    def name(self) -> str:
        """The name on the command line."""
        return self.arm.entry.name

    @property
    def title(self) -> str:
        """The name in tables and figures."""
        return self.arm.entry.title

    @property
    def present(self) -> bool:
        """Whether what it needs is installed."""
        return self.package is None or find_spec(self.package) is not None

    def optimizer(self, model: nn.Module, task: Task, values: Values) -> torch.optim.Optimizer:
        """Build the optimizer.

        Args:
            model: The network.
            task: What is learned.
            values: What is tuned.

        Returns:
            The optimizer.
        """
        return self.arm.entry.build(model, task, **self.arm.translate(values, task.batch_size))


# How each is built --------------------------------------------------------------------------


def _betas(values: Values, _: int) -> dict[str, Any]:
    rest = {name: value for name, value in values.items() if not name.startswith("1 - ")}
    return {**rest, "betas": (1 - values["1 - beta1"], 1 - values["1 - beta2"])}


def _fixed_point(values: Values, _: int) -> dict[str, Any]:
    lr, lr_sgd = values["lr"], values["lr_sgd"]
    return {"lr": lr, "lr_sgd": lr_sgd, "betas": (0.9, 1 - values["1 - beta2"])}


def _limit(values: Values, batch_size: int) -> dict[str, Any]:
    return {**_betas(values, batch_size), "lr_sgd": math.inf}


def _average(values: Values, _: int) -> dict[str, Any]:
    return {"lr": values["lr"], "lr_sgd": values["lr_sgd"], "beta1": 1 - values["1 - beta1"]}


def _by_name(values: Values, _: int) -> dict[str, Any]:
    return dict(values)


def _adamw(model: nn.Module, _: Task, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), weight_decay=0.0, **settings)


def _soap(model: nn.Module, _: Task, **settings: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(model.parameters(), weight_decay=0.0, precondition_frequency=REFRESH, **settings)


def _shampoo(model: nn.Module, _: Task, **settings: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import ScalableShampoo
    from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

    return ScalableShampoo(
        model.parameters(),
        start_preconditioning_step=REFRESH,
        preconditioning_compute_steps=REFRESH,
        block_size=256,
        graft_type=LayerWiseGrafting.RMSPROP,
        **settings,
    )


class _Both(torch.optim.Optimizer):
    """SINGD on the layers that it supports, and AdamW on the other parameters."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.optimizers = (first, second)
        super().__init__(
            [p for o in self.optimizers for g in o.param_groups for p in g["params"]], {}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()


def _singd(model: nn.Module, task: Task, **settings: Any) -> torch.optim.Optimizer:
    from singd.optim.optimizer import SINGD

    average = "batch" if task.terms == 1 else "batch+sequence"
    layers = [layer for layer in model.modules() if isinstance(layer, SINGD.SUPPORTED_MODULES)]
    supported = [p for layer in layers for p in layer.parameters(recurse=False)]
    first = SINGD(model, supported, T=REFRESH, loss_average=average, **settings)
    known = set(map(id, supported))
    others = [p for p in model.parameters() if id(p) not in known]
    if not others:
        return first
    return _Both(first, torch.optim.AdamW(others, lr=_OTHERS_LR, weight_decay=0.0))


def _limit_filter(model: nn.Module, task: Task, **settings: Any) -> torch.optim.Optimizer:
    """Without a prior, an ε stands in for it: SOAP's, 1e-8 in the mean loss' gradient."""
    eps = (_EPS * task.batch_size * task.terms) ** 2
    return _filter("EigenbasisFilter", model, task, update_every=REFRESH, eps=eps, **settings)


def _filter(name: str, model: nn.Module, task: Task, **settings: Any) -> torch.optim.Optimizer:
    import filteropt

    told = {"batch_size": task.batch_size * task.terms, "weight_decay": 0.0} | settings
    built: torch.optim.Optimizer = getattr(filteropt, name)(model.parameters(), **told)
    return built


def _kronecker(model: nn.Module, task: Task, **settings: Any) -> torch.optim.Optimizer:
    import filteropt

    told = {"batch_size": task.batch_size * task.terms, "weight_decay": 0.0} | settings
    return filteropt.KroneckerFilter(model, drift_every=REFRESH, **told)


# The table ----------------------------------------------------------------------------------

_MOMENTA = {"1 - beta1": (1e-2, 0.3), "1 - beta2": (1e-3, 0.3)}
_ADAM: Knobs = {"lr": (3e-4, 3e-2), **_MOMENTA}
_ROTATED: Knobs = {"lr": (1e-3, 1e-1), **_MOMENTA}


def _contender(
    name: str,
    title: str,
    description: str,
    build: Callable[..., torch.optim.Optimizer],
    knobs: Knobs,
    translate: Callable[[Values, int], dict[str, Any]],
    **more: Any,
) -> Contender:
    return Contender(Arm(Entry(name, title, description, build), knobs, translate), **more)


CONTENDERS = {
    contender.name: contender
    for contender in (
        _contender("adamw", "AdamW", "torch.optim.AdamW", _adamw, _ADAM, _betas, slower=1.0),
        _contender(
            "soap",
            "SOAP",
            "pytorch_optimizer.SOAP",
            _soap,
            _ROTATED,
            _betas,
            package="pytorch_optimizer",
            slower=4.0,
        ),
        _contender(
            "shampoo",
            "Shampoo",
            "pytorch_optimizer.ScalableShampoo: blocks of 256, grafted to RMSprop's step length",
            _shampoo,
            {"lr": (3e-5, 3e-3), **_MOMENTA},
            _betas,
            package="pytorch_optimizer",
            slower=6.0,
        ),
        _contender(
            "singd",
            "SINGD",
            "singd.SINGD with dense factors; AdamW (lr 0.001) for what it does not support",
            _singd,
            {"lr": (3e-4, 3e-2), "damping": (1e-5, 1e-1), "lr_cov": (1e-3, 0.3)},
            _by_name,
            package="singd",
            slower=3.0,
        ),
        _contender(
            "adabayes-fp",
            "AdaBayes-FP",
            "filteropt.AdaBayesFP, weight by weight",
            partial(_filter, "AdaBayesFP"),
            {"lr": (3e-4, 3e-2), "lr_sgd": (1e-2, 10.0), "1 - beta2": (1e-3, 0.3)},
            _fixed_point,
            slower=1.5,
        ),
        _contender(
            "eigenbasis-soap",
            "Eigenbasis, lr_sgd=inf",
            "filteropt.EigenbasisFilter without a prior, which is SOAP's limit",
            _limit_filter,
            _ROTATED,
            _limit,
            ours=True,
            slower=3.0,
        ),
        _contender(
            "eigenbasis",
            "Eigenbasis",
            "filteropt.EigenbasisFilter: AdaBayes-FP in the eigenbasis of the gradients' factors",
            partial(_filter, "EigenbasisFilter", update_every=REFRESH),
            {"lr": (1e-3, 1e-1), "lr_sgd": (1e-2, 10.0), "1 - beta2": (1e-3, 0.3)},
            _fixed_point,
            ours=True,
            slower=3.0,
        ),
        *(
            _contender(
                f"kronecker-{projection}",
                f"Kronecker, {projection}",
                f"filteropt.KroneckerFilter with the {projection} projection",
                partial(_kronecker, projection=projection),
                {"lr": (3e-4, 3e-2), "lr_sgd": (1e-2, 10.0), "1 - beta1": (1e-2, 0.3)},
                _average,
                ours=True,
                slower=slower,
            )
            for projection, slower in (("forward", 10.0), ("reverse", 8.0))
        ),
    )
}


def read_contenders(words: Sequence[str]) -> tuple[list[Contender], list[str]]:
    """Look the optimizers up, each once, the reference always among them.

    Args:
        words: Names, also comma-separated; none means all.

    Returns:
        Those that can run here, and a line for each package that is missing.

    Raises:
        UserError: If a name is unknown, or words hold no name.
    """
    names = read_names("arms", "optimizer", words or tuple(CONTENDERS), CONTENDERS)
    wanted = {REFERENCE, *names}
    chosen = [contender for name, contender in CONTENDERS.items() if name in wanted]
    missing: dict[str, list[str]] = {}
    for contender in chosen:
        if not contender.present:
            missing.setdefault(str(contender.package), []).append(contender.title)
    notes = [
        f"Left out: {' and '.join(titles)}, because {package} is not installed "
        f'(pip install "{_PACKAGES[package]}").'
        for package, titles in missing.items()
    ]
    return [contender for contender in chosen if contender.present], notes
