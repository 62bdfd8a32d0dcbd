"""The settings of a sweep: grids, the filters they make, and whether one program serves all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from filteropt import engine
from filteropt.engine import Filter
from filteropt.execute import require_prediction
from filteropt.optimizer import FilterOptimizer
from filteropt.recipe import Bound, Recipe
from filteropt.signature import native
from filteropt.trees import leaves
from filteropt.types import Raw

__all__ = ["Setting", "Settings", "composition", "prepare", "structure"]

Settings: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A grid, or the settings themselves."""

SWEPT = (list, range, np.ndarray, Tensor)
"""What a grid takes for several values: a tuple is one, such as ``betas``."""


@dataclass(frozen=True)
class Setting:
    """One setting's hyperparameters.

    Args:
        given: what was named of them.
        recipe: the preset with these hyperparameters.
        group: what a parameter group of the optimizer would hold.
    """

    given: dict[str, Any]
    recipe: Recipe
    group: dict[str, Any]

    @property
    def lr(self) -> float:
        """The learning rate, 1 where the preset takes none."""
        return float(self.group["lr"])

    def bound(self, factor: float = 1.0) -> Bound:
        """The composition while a schedule multiplies ``lr`` by ``factor``."""
        return self.recipe.bind({**self.group, "lr": self.lr * factor})

    def gain(self, factor: float) -> float:
        """The factor on displacements meanwhile."""
        return self.recipe.gain({**self.group, "lr": self.lr * factor})


def expand(settings: Settings) -> list[dict[str, Any]]:
    """The settings of a grid, its last name varying fastest; a list of settings as it is.

    Args:
        settings: hyperparameters by name. A list, range or array of values is swept; any other
            value, a tuple too, is the same for all.

    Returns:
        One dictionary for every setting.

    Raises:
        TypeError: neither a dictionary nor a sequence of dictionaries.
        ValueError: no setting at all.
    """
    if isinstance(settings, Mapping):
        axes = {name: _values(name, value) for name, value in settings.items()}
        found = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    elif isinstance(settings, Sequence) and all(isinstance(x, Mapping) for x in settings):
        found = [{name: native(value) for name, value in x.items()} for x in settings]
    else:
        raise TypeError(
            f"sweep: settings={settings!r} must be a dictionary of lists (a grid) or a list of "
            f"dictionaries"
        )
    if not found:
        raise ValueError("sweep: settings holds no setting")
    return found


def _values(name: str, value: Any) -> list[Any]:
    if not isinstance(value, SWEPT):
        return [native(value)]
    values = value.tolist() if isinstance(value, (np.ndarray, Tensor)) else list(value)
    if not isinstance(values, list):
        return [values]
    if not values:
        raise ValueError(f"sweep: settings[{name!r}] holds no value")
    return [native(x) for x in values]


def composition(
    optimizer: type[FilterOptimizer] | Callable[..., Filter],
) -> tuple[Callable[..., Filter], Mapping[str, Any], str]:
    """What a class or a preset stands for.

    Args:
        optimizer: a class of :mod:`filteropt` or a preset.

    Returns:
        The preset, the optimizer's keywords whose default differs, and what to call it.

    Raises:
        TypeError: another optimizer, or one that makes its preset of a model.
    """
    if not isinstance(optimizer, type):
        return optimizer, {}, getattr(optimizer, "__name__", "the preset")
    preset = getattr(optimizer, "preset", None)
    if not issubclass(optimizer, FilterOptimizer) or not callable(preset):
        raise TypeError(
            f"sweep: {optimizer.__name__} is no filter; give a class of filteropt or a preset, "
            f"such as filteropt.presets.adamw for torch.optim.AdamW"
        )
    if not hasattr(optimizer.__init__, "__signature__"):
        raise TypeError(
            f"sweep: {optimizer.__name__} makes its filter from more than a preset; give a preset"
        )
    return preset, optimizer.keywords, optimizer.__name__


def prepare(
    settings: Settings,
    optimizer: type[FilterOptimizer] | Callable[..., Filter],
    *,
    schedule: str,
    strict: bool,
) -> list[Setting]:
    """Make every setting's filter, and check that one program runs them all.

    Args:
        settings: a grid or a list.
        optimizer: a class or a preset.
        schedule: what a learning rate's schedule means, ``"gain"`` or ``"model"``.
        strict: whether gradients are taken at the prediction.

    Returns:
        The settings.

    Raises:
        TypeError: a hyperparameter that there is not, or of the wrong kind.
        ValueError: a hyperparameter outside its range, a setting whose slots do not fit or that
            makes another composition than the first, or a composition that cannot be swept.
    """
    preset, _, owner = composition(optimizer)
    made: list[Setting] = []
    for i, given in enumerate(expand(settings)):
        try:
            recipe = Recipe(owner, preset, given)
            group = {"lr": 1.0, **recipe.defaults, "schedule": schedule}
            setting = Setting(given, recipe, {**group, "base_lr": group["lr"]})
            filter = setting.bound().filter
            if strict:
                require_prediction(filter)
        except (TypeError, ValueError) as error:
            raise type(error)(f"sweep: setting {i}, {given}: {error}") from error
        if not setting.lr > 0:
            raise ValueError(f"sweep: setting {i}, {given}: lr=0 trains nothing; leave it out")
        made.append(setting)
    _require_sweepable(owner, made[0].bound().filter)
    _require_same(made)
    return made


def _require_sweepable(owner: str, filter: Filter) -> None:
    """Refuse compositions that need more than stacked gradients."""
    for part in (filter.likelihood, filter.basis):
        if more := part.needs - {"grad"}:
            raise ValueError(
                f"sweep: {owner} cannot be swept: {type(part).__name__} needs the "
                f"{', '.join(sorted(more))} of every model, and a sweep has gradients alone; "
                f"train its settings one after the other"
            )
    if filter.basis.turns:
        raise ValueError(
            f"sweep: {owner} cannot be swept: {type(filter.basis).__name__} turns its coordinates "
            f"outside of the step; train its settings one after the other"
        )


def _require_same(settings: list[Setting]) -> None:
    """Refuse settings whose filters are not one program with other numbers."""
    reference = settings[0].bound().filter
    known = dict(structure("", reference))
    for i, setting in enumerate(settings[1:], 1):
        filter = setting.bound().filter
        found = dict(structure("", filter))
        for place in {**known, **found}:
            if known.get(place) != found.get(place):
                _refuse(settings, i, place, found.get(place), known.get(place))
        if not _same_step(filter, reference):
            raise ValueError(
                f"sweep: setting {i}, {setting.given}, changes a number of {type(filter).__name__}"
                f"({type(filter.likelihood).__name__}, {type(filter.posterior).__name__}, …) that "
                f"its step reads itself instead of from `scalars`; sweep it apart"
            )


def _refuse(settings: list[Setting], i: int, place: str, found: object, known: object) -> None:
    raise ValueError(
        f"sweep: setting {i}, {settings[i].given}, makes another composition than setting 0, "
        f"{settings[0].given}: {place} is {found or 'not there'} instead of "
        f"{known or 'not there'}. Settings of one sweep differ in numbers; sweep these apart"
    )


def structure(place: str, part: Any, *, exact: bool = False) -> list[tuple[str, str]]:
    """What decides a part's program, place by place.

    Args:
        place: what the part is called.
        part: a filter, a slot's part or a field of one.
        exact: whether numbers count.

    Returns:
        Places and what is there; a number, if those do not count, is only said to be one.
    """
    if is_dataclass(part) and not isinstance(part, type):
        found = [(place or "the filter", type(part).__name__)]
        for field in fields(part):
            inner = f"{place}.{field.name}" if place else field.name
            number = exact or inner.startswith("projections")  # their steps read their numbers
            found += structure(inner, getattr(part, field.name), exact=number)
        return found
    if isinstance(part, (tuple, list)):
        pairs = [structure(f"{place}[{i}]", x, exact=exact) for i, x in enumerate(part)]
        return [(place, f"{len(part)} in number"), *(pair for found in pairs for pair in found)]
    if isinstance(part, (Real, Tensor)) and not isinstance(part, bool) and not exact:
        return [(place, "a number")]
    return [(place, repr(part))]


def _same_step(filter: Filter, other: Filter) -> bool:
    """Whether two filters make the same step of the same state with the same numbers."""
    p = torch.tensor([[0.3, -1.2], [0.7, 0.1]], dtype=torch.float64)
    raw, state = Raw(0.5 - p), engine.init(filter, p)
    numbers = engine.scalars(filter, 2)
    one, other_one = (engine.step(f, numbers, state, raw, p) for f in (filter, other))
    tensors = ([disp, *leaves(after)] for disp, after in (one, other_one))
    return all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))
