"""The optimizers under comparison, and how a user changes their settings.

On the command line an optimizer is its name, optionally followed by settings that replace its
defaults: ``adabayes`` or ``adabayes:lr_sgd=0.5,weight_decay=0``. The same optimizer may be listed
several times with different settings.
"""

import ast
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from experiments.errors import UserError

Settings = dict[str, Any]
Build = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Entry:
    """One optimizer of the registry.

    Attributes:
        name: The name used on the command line.
        title: The name in tables and figures.
        description: One line for the user, which says what differs from the library's defaults.
        build: Takes the parameters, the batch size and settings; returns the optimizer.
    """

    name: str
    title: str
    description: str
    build: Build


@dataclass(frozen=True)
class Choice:
    """An optimizer with the user's settings.

    Attributes:
        entry: The optimizer.
        overrides: Settings that replace its defaults, as name and value.
    """

    entry: Entry
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """The name in tables and figures, with the settings that the user gave."""
        given = ", ".join(f"{name}={value}" for name, value in self.overrides)
        return f"{self.entry.title} ({given})" if given else self.entry.title

    def build(self, params: Iterable[torch.Tensor], batch_size: int) -> torch.optim.Optimizer:
        """Create the optimizer.

        Args:
            params: Parameters to train.
            batch_size: Images per training step.

        Returns:
            The optimizer.
        """
        return self.entry.build(params, batch_size, **dict(self.overrides))

    def settings(self, batch_size: int) -> Settings:
        """Read back every hyperparameter that the optimizer ends up with.

        Args:
            batch_size: Images per training step.

        Returns:
            The hyperparameters of its parameter group.

        Raises:
            UserError: If the optimizer refuses the user's settings, or cannot be imported.
        """
        try:
            optimizer = self.build([torch.nn.Parameter(torch.zeros(1))], batch_size)
        except (ImportError, TypeError, ValueError, RuntimeError) as fault:
            raise UserError(f"{self.label}: {' '.join(str(fault).split())}") from fault
        group = optimizer.param_groups[0]
        return {name: _plain(group[name]) for name in sorted(group) if name != "params"}


SHORT_RUN = {"lr": 0.01, "lr_sgd": 0.5}
"""What runs of about a thousand steps want of the two rates; the library's defaults (0.001 and 0.1)
are for long ones. Chosen on validation images, see the quickstart's "Short runs"."""


def _filter(
    name: str, changes: Settings, params: Iterable[torch.Tensor], batch_size: int, **settings: Any
) -> Any:
    import filteropt

    told = {"batch_size": batch_size} | SHORT_RUN | changes | settings
    return getattr(filteropt, name)(params, **told)


def _torch(
    name: str, changes: Settings, params: Iterable[torch.Tensor], _: int, **settings: Any
) -> Any:
    return getattr(torch.optim, name)(params, **(changes | settings))


OPTIMIZERS = {
    entry.name: entry
    for entry in (
        Entry(
            "adabayes",
            "AdaBayes",
            "filteropt.AdaBayes, told the batch size, with lr 0.01 and lr_sgd 0.5 (short runs)",
            partial(_filter, "AdaBayes", {}),
        ),
        Entry(
            "adabayes-fp",
            "AdaBayes-FP",
            "filteropt.AdaBayesFP, told the batch size, with lr 0.01 and lr_sgd 0.5 (short runs)",
            partial(_filter, "AdaBayesFP", {}),
        ),
        Entry("adamw", "AdamW", "torch.optim.AdamW at its defaults", partial(_torch, "AdamW", {})),
        Entry("adam", "Adam", "torch.optim.Adam at its defaults", partial(_torch, "Adam", {})),
        Entry(
            "sgd",
            "SGD+momentum",
            "torch.optim.SGD with momentum 0.9 and lr 0.01 (torch's defaults: 0 and 0.001)",
            partial(_torch, "SGD", {"lr": 0.01, "momentum": 0.9}),
        ),
        Entry(
            "rmsprop",
            "RMSprop",
            "torch.optim.RMSprop at its defaults",
            partial(_torch, "RMSprop", {}),
        ),
    )
}


MORE_OPTIMIZERS = {
    entry.name: entry
    for entry in (
        Entry(
            "momentum",
            "Momentum filter",
            "filteropt.MomentumFilter, told the batch size, with lr 0.01 and lr_sgd 0.5",
            partial(_filter, "MomentumFilter", {}),
        ),
        Entry(
            "momentum-stationary",
            "Momentum filter, stationary",
            "the same with its covariance at rest (stationary=True)",
            partial(_filter, "MomentumFilter", {"stationary": True}),
        ),
        Entry("nadam", "NAdam", "torch.optim.NAdam at its defaults", partial(_torch, "NAdam", {})),
        Entry(
            "nesterov",
            "SGD, Nesterov",
            "torch.optim.SGD with Nesterov momentum 0.9 and lr 0.01",
            partial(_torch, "SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
        ),
    )
}
"""Optimizers that a comparison includes when they are named."""


def parse_choice(text: str) -> Choice:
    """Read ``name`` or ``name:setting=value,...``.

    Args:
        text: What the user wrote.

    Returns:
        The optimizer with these settings.

    Raises:
        UserError: If the name is unknown or the settings cannot be read.
    """
    name, _, settings = text.partition(":")
    known = OPTIMIZERS | MORE_OPTIMIZERS
    entry = known.get(name.strip().lower())
    if entry is None:
        raise UserError(f"unknown optimizer {name!r}; the optimizers are {', '.join(known)}")
    return Choice(entry, tuple(_parse_settings(settings, text)))


def split_choices(words: Iterable[str]) -> list[str]:
    """Split comma-separated optimizers, leaving the commas between settings alone.

    Args:
        words: Words of the command line.

    Returns:
        One optimizer each.
    """
    comma_before_a_name = r",(?=[A-Za-z][\w-]*(?:[:,]|$))"
    parts = [part for word in words for part in re.split(comma_before_a_name, word)]
    return [part.strip(" ,") for part in parts if part.strip(" ,")]


def _parse_settings(settings: str, text: str) -> Iterable[tuple[str, Any]]:
    try:
        call = ast.parse(f"f({settings})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return [(str(keyword.arg), _value(keyword.value)) for keyword in call.keywords]
    except (SyntaxError, ValueError):
        raise UserError(
            f"cannot read the settings of {text!r}; write them like adabayes:lr_sgd=0.5,lr=0.002"
        ) from None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return math.inf if node.id == "inf" else node.id
    return ast.literal_eval(node)


def _plain(value: Any) -> Any:
    """Turn a hyperparameter into something that JSON can hold.

    Args:
        value: The hyperparameter.

    Returns:
        A string, a number, a flag, None, or a list of these.
    """
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, bool, int, float, type(None))) else str(value)
