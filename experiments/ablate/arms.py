"""The arms of an ablation: what is compared, what of it is tuned, and what the task tells it."""

import ast
import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import nn

from experiments.ablate.parts import Preset
from experiments.errors import UserError
from experiments.optimizers import Choice, parse_choice
from experiments.registry import COMPOSITIONS, Composition
from experiments.tasks import Task
from filteropt import FilterOptimizer
from filteropt.engine import Filter, IncompatibleComposition, check
from filteropt.sweeping.settings import prepare

Values = tuple[tuple[str, Any], ...]
Range = tuple[float, float]

RANGES: dict[str, Range] = {
    "lr": (1e-4, 1e-1),
    "forgetting": (1e-4, 1e-1),
    "lr_sgd": (1e-2, 10.0),
    "prior_variance": (1e-4, 1e-1),
}
"""What is tuned of an arm that takes it; the first is the arm's rate."""


@dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
        kind: ``"parts"``, ``"composition"`` or ``"optimizer"``.
        texts: The four parts, or the name.
        fixed: Hyperparameters that the grid gives.
        ranges: What is tuned, and within which ends; the first is the rate.
    """

    kind: str
    texts: tuple[str, ...]
    fixed: Values = ()
    ranges: tuple[tuple[str, float, float], ...] = ()

    @property
    def label(self) -> str:
        """The name in tables and figures; the basis is named where it is not the plain one."""
        texts = self.texts[:3] if self.texts[3:] == ("Identity",) else self.texts
        return ", ".join([*texts, *(f"{name}={value}" for name, value in self.fixed)])

    @property
    def rate(self) -> str | None:
        """The hyperparameter whose range of good values is measured."""
        return self.ranges[0][0] if self.ranges else None

    @property
    def choice(self) -> Choice:
        """The optimizer, of that kind."""
        return parse_choice(self.texts[0])

    @cached_property
    def composition(self) -> Composition:
        """What makes the filter, of the other kinds."""
        if self.kind == "composition":
            return COMPOSITIONS[self.texts[0]]
        return Composition(self.label, "", Preset(self.texts))

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments of the optimizer that the composition wants otherwise than by default."""
        return {} if self.kind == "optimizer" else self.composition.keywords

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: another process makes the rest again."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Every hyperparameter with its default, ``inspect.Parameter.empty`` where it has none."""
        if self.kind == "optimizer":
            optimizer = self.choice.build([nn.Parameter(torch.zeros(1))], 1)
            return {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        parameters = inspect.signature(self.composition.build).parameters
        return {name: one.default for name, one in parameters.items()}

    def values(self, task: Task, examples: int, setting: Mapping[str, Any]) -> dict[str, Any]:
        """All the hyperparameters that are not at their defaults.

        Args:
            task: What is learned.
            examples: How many training examples it has.
            setting: What is tuned.

        Returns:
            These, the grid's, and what the task tells.
        """
        told = {
            "batch_size": task.batch_size,
            "scale": task.batch_size,
            "dataset_size": examples,
            "ess": examples,
            "steps_per_epoch": examples // task.batch_size,
            "loss": "cross_entropy",
        }
        known = {k: v for k, v in told.items() if k in self.defaults and self.kind != "optimizer"}
        return {**known, **dict(self.fixed), **setting}

    def filter(self, values: Mapping[str, Any]) -> Filter | None:
        """The filter.

        Args:
            values: Hyperparameters.

        Returns:
            The filter; None for an optimizer that is none.
        """
        return None if self.kind == "optimizer" else self.composition.build(**values)

    def build(self, model: nn.Module, task: Task, values: dict[str, Any]) -> torch.optim.Optimizer:
        """The optimizer of a model.

        Args:
            model: The network.
            task: What is learned.
            values: Hyperparameters.

        Returns:
            The optimizer.
        """
        if self.kind == "optimizer":
            entry, own = self.choice.entry, dict(self.choice.overrides)
            return entry.build(model.parameters(), task.batch_size, **(own | values))
        given = self.keywords | values
        return FilterOptimizer(model.parameters(), self.composition.build, model=model, **given)

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Whether hyperparameters make a filter whose parts fit: some fit at small rates alone.

        Args:
            values: Hyperparameters.

        Returns:
            Whether they do.
        """
        made = self.filter(values)
        try:
            return made is None or check(made) is None
        except IncompatibleComposition:
            return False

    def swept(self, settings: Sequence[dict[str, Any]]) -> bool:
        """Whether these settings can be trained at once, as one program on gradients alone.

        Args:
            settings: Hyperparameters.

        Returns:
            Whether they can.
        """
        where = {"linearize_at": "posterior", **self.keywords}
        if self.kind == "optimizer" or len(settings) < 2 or len(where) > 1:
            return False
        strict = where["linearize_at"] == "prediction"
        try:
            prepare(settings, self.composition.build, schedule="gain", strict=strict)
        except ValueError:  # it says why; each is then trained by itself
            return False
        return True


def read_ranges(words: Sequence[str]) -> dict[str, Range]:
    """Read what is tuned, such as ``lr=1e-4:1e-1``.

    Args:
        words: Names with both ends.

    Returns:
        The ranges by name.

    Raises:
        UserError: If one cannot be read, or is empty.
    """
    found = {}
    for word in words:
        name, _, ends = word.partition("=")
        try:
            low, high = (float(end) for end in ends.split(":"))
        except ValueError:
            raise UserError(f"cannot read --search {word!r}; write it like lr=1e-4:1e-1") from None
        if not 0 < low < high < math.inf:
            raise UserError(f"--search {word!r} needs 0 < low < high: the scale is logarithmic")
        found[name.strip()] = (low, high)
    return found


def read_axes(words: Sequence[str]) -> dict[str, list[Any]]:
    """Read hyperparameters that span the grid, such as ``beta1=0|0.9``.

    Args:
        words: Names with values.

    Returns:
        The values by name.

    Raises:
        UserError: If one cannot be read.
    """
    found = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not (name.strip().isidentifier() and equals and values.strip()):
            raise UserError(f"cannot read --vary {word!r}; write it like beta1=0|0.9")
        found[name.strip()] = [_value(text.strip()) for text in values.split("|")]
    return found


def _value(text: str) -> Any:
    if text == "inf":
        return math.inf
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def grid(
    named: Sequence[tuple[str, tuple[str, ...]]],
    ranges: Mapping[str, Range],
    axes: Mapping[str, Sequence[Any]],
) -> list[Arm]:
    """Every arm of the grid.

    Args:
        named: Kinds and texts.
        ranges: What the user tunes, and within which ends.
        axes: Hyperparameters that span the grid, of the arms that take them.

    Returns:
        The arms.

    Raises:
        UserError: If a hyperparameter is taken by none.
    """
    bare = [Arm(kind, texts) for kind, texts in dict.fromkeys(named)]
    for option, names in (("search", ranges), ("vary", axes)):
        for name in names:
            if not any(name in arm.defaults for arm in bare):
                takes = sorted({n for arm in bare for n in arm.defaults if n.isidentifier()})
                raise UserError(
                    f"--{option} {name}: no arm has that hyperparameter; they take "
                    f"{', '.join(takes)}"
                )
    arms = []
    for arm in bare:
        own = [name for name in axes if name in arm.defaults]
        for point in itertools.product(*(axes[name] for name in own)):
            fixed = tuple(zip(own, point, strict=True))
            search = arm.composition.search if arm.kind == "composition" else {}
            tuned = {k: v for k, v in RANGES.items() if k in arm.defaults} | search
            tuned |= {k: v for k, v in ranges.items() if k in arm.defaults}
            spans = tuple((k, *ends) for k, ends in tuned.items() if k not in own)
            arms.append(Arm(arm.kind, arm.texts, fixed, spans))
    return arms
