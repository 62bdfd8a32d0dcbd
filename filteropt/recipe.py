"""Recipes: a preset, and the filters it makes of a group's present hyperparameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ParamSpec

import torch
from torch import Tensor

from filteropt import engine, measure
from filteropt.blocks import Block
from filteropt.engine import Filter
from filteropt.hyperparameters import LearningRate, check_values, hints_of
from filteropt.signature import plain, preset_values, scheduled_names
from filteropt.trees import names
from filteropt.types import Belief, State, Transition

__all__ = ["Bound", "Recipe", "variant"]

P = ParamSpec("P")

PLAIN = (int, float, str, type(None))
CACHED = 64


@dataclass(frozen=True)
class Bound:
    """A filter made for certain hyperparameters, with the forms of its states by shape.

    Args:
        filter: the composition.
        forms: states that hold nothing, one for each shape of parameter met so far.
        kept: the names of these states' tensors.
        limits: the largest gradients, by dtype and shape.
    """

    filter: Filter
    forms: dict[torch.Size, State] = field(default_factory=dict)
    kept: dict[torch.Size, list[str]] = field(default_factory=dict)
    limits: dict[tuple[torch.dtype, torch.Size], float] = field(default_factory=dict)

    @functools.cached_property
    def steady(self) -> Transition | None:
        """The transition of every step, if there is one."""
        return engine.steady(self.filter.dynamics)

    def form(self, p: Tensor | Block) -> State:
        """A state of the form that ``p`` needs."""
        if p.shape not in self.forms:
            self.forms[p.shape] = engine.template(self.filter, p.shape)
        return self.forms[p.shape]

    def names(self, p: Tensor | Block) -> list[str]:
        """What the tensors of ``p``'s state are called."""
        if p.shape not in self.kept:
            self.kept[p.shape] = names(self.form(p))
        return self.kept[p.shape]

    def limit(self, grad: Tensor) -> float:
        """The largest magnitude of such a gradient with which a step is finite."""
        key = grad.dtype, grad.shape
        if key not in self.limits:
            self.limits[key] = measure.limit(self.filter, grad)
        return self.limits[key]

    def basis(self, p: Tensor | Block) -> list[str]:
        """What the tensors of its basis are called."""
        return names(State(Belief((), ()), (), self.form(p).basis))


class Recipe:
    """A preset with the names of its hyperparameters.

    Args:
        owner: who takes the hyperparameters, for messages.
        preset: a pure function from hyperparameters to a filter.
        given: hyperparameters by name; the others keep their defaults.

    Raises:
        TypeError: an unknown hyperparameter, or a missing one that has no default.
    """

    def __init__(self, owner: str, preset: Callable[..., Filter], given: Mapping[str, Any]) -> None:
        self.owner = owner
        self.preset = preset
        self.defaults, self.names = preset_values(owner, preset, given)
        self._bound: dict[object, Bound] = {}

    def bind(self, group: Mapping[str, Any]) -> Bound:
        """Call the preset with a group's hyperparameters, unless just these were met before.

        Args:
            group: hyperparameters by name, with ``base_lr`` and ``schedule``.

        Returns:
            The composition, whose slots fit; for a group frozen from the start, unchecked.

        Raises:
            TypeError: a hyperparameter of the wrong kind.
            ValueError: a hyperparameter outside its range, or slots that do not fit.
        """
        lr = plain(group["lr"])
        check_values(self.owner, {"lr": lr}, {"lr": LearningRate})
        values = {name: plain(group[name]) for name in self.names}
        base_lr, ratio = group["base_lr"] or lr, 1.0
        if "lr" in values:
            by_model = lr and group["schedule"] == "model"
            values["lr"], ratio = (lr, lr / base_lr) if by_model else (base_lr, 1.0)
        key = (not base_lr, ratio, *map(_key, values.values()))
        if None in key:
            return self._make(values, ratio, frozen=not base_lr)
        if key not in self._bound:
            if len(self._bound) >= CACHED:
                self._bound.clear()
            self._bound[key] = self._make(values, ratio, frozen=not base_lr)
        return self._bound[key]

    def _make(self, values: dict[str, Any], ratio: float, *, frozen: bool) -> Bound:
        check_values(self.owner, values, hints_of(self.preset))
        scheduled = scheduled_names(self.preset) & values.keys()
        values = {
            k: ratio * v if k in scheduled and v is not None else v for k, v in values.items()
        }
        filter = self.preset(**values)
        if not frozen:
            engine.check(filter)
        return Bound(filter)

    def gain(self, group: Mapping[str, Any]) -> float:
        """r, the factor on the displacement: lr/base_lr, or 1 where the dynamics follow lr.

        Args:
            group: hyperparameters by name, with ``base_lr`` and ``schedule``.

        Returns:
            The factor; lr itself for a preset that takes none.
        """
        if "lr" not in self.names:
            return float(group["lr"])
        if group["schedule"] == "model" or not group["base_lr"]:
            return 1.0
        return float(group["lr"]) / float(group["base_lr"])

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: filters are made again."""
        return {**self.__dict__, "_bound": {}}


def variant(preset: Callable[P, Filter], **slots: Any) -> Callable[P, Filter]:
    """A preset with some slots replaced: an ablation.

    Its hyperparameters, their ranges and what a schedule does stay those of ``preset``.

    Args:
        preset: the preset to start from.
        **slots: parts by slot name (``dynamics``, ``likelihood``, ``posterior``, ``basis``,
            ``projections``), or functions that make them from hyperparameters of these names.

    Returns:
        A preset of the same signature.

    Raises:
        TypeError: a slot that filters do not have, or a function of a hyperparameter that the
            preset does not have.

    Example:
        >>> from filteropt.approximations import FixedPoint
        >>> from filteropt.models import FixedNoise
        >>> from filteropt.presets import adabayes, adabayes_fp
        >>> settled = variant(adabayes_fp, posterior=FixedPoint("exact"))
        >>> settled(lr=0.1).posterior
        FixedPoint(method='exact')
        >>> no_prior = variant(adabayes, dynamics=lambda lr: FixedNoise(lr, 1e6, 0.0))
        >>> no_prior(lr=0.1).dynamics.prior_variance
        1000000.0
    """
    known = [f.name for f in fields(Filter)]
    for name in slots:
        if name not in known:
            raise TypeError(f"filters have no slot {name!r}; their slots are {', '.join(known)}")
    signature = inspect.signature(preset)
    taken = {name: _taken(preset, name, slot) for name, slot in slots.items()}

    @functools.wraps(preset)
    def build(*args: P.args, **kwargs: P.kwargs) -> Filter:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        parts = {
            name: slot(**{k: values[k] for k in taken[name]}) if inspect.isfunction(slot) else slot
            for name, slot in slots.items()
        }
        return replace(preset(*args, **kwargs), **parts)

    return build


def _taken(preset: Callable[..., Filter], name: str, slot: Any) -> list[str]:
    """The preset's hyperparameters that a slot's function takes, besides defaults of its own."""
    if not inspect.isfunction(slot):
        return []
    known, parameters = inspect.signature(preset).parameters, inspect.signature(slot).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return list(known)
    for parameter in parameters.values():
        if parameter.name not in known and parameter.default is inspect.Parameter.empty:
            raise TypeError(
                f"{name}: its function takes {parameter.name!r}, which is no hyperparameter of the "
                f"preset; those are {', '.join(known)}"
            )
    return [parameter for parameter in parameters if parameter in known]


def _key(value: Any) -> Hashable:
    """A key that tells plain values apart; ``None`` for a value that may change unseen."""
    if isinstance(value, (tuple, list)):
        keys = tuple(map(_key, value))
        return None if None in keys else (type(value), keys)
    return (type(value), value) if isinstance(value, PLAIN) else None
