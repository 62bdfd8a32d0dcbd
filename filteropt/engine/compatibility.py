"""Whether the slots of a filter fit, and an error that says what would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch

from filteropt import approximations, models
from filteropt.engine.filter import Filter, initial_variance, template
from filteropt.linalg import lost_variance, scalar
from filteropt.trees import names
from filteropt.types import Raw, Transition, Turn

__all__ = ["IncompatibleComposition", "check"]

DRIFTS = tuple(f"drift_{i}" for i in range(1, 16))
RESERVED = ("step", "decay", "evaluating", "prediction", *DRIFTS)
"""State names that the optimizer itself uses."""

SLOTS = {
    "dynamics": "transition",
    "likelihood": "observe",
    "posterior": "condition",
    "basis": "forward",
}
"""The method by which a part is known to belong to a slot."""


LOOKS = ("root", "memory")
"""What a likelihood of per-example Jacobians must say of its loss."""


class IncompatibleComposition(ValueError):  # ruff: ignore[error-suffix-on-exception-name] - the name states the fact
    """Two slots of a filter do not fit; the message names both and what would fit."""


class Conflict(NamedTuple):
    """Two slots that do not fit, why, and what to do where no other part would help."""

    slots: tuple[str, str]
    why: str
    advice: str = ""


def check(filter: Filter) -> None:
    """Check that the slots fit.

    Args:
        filter: the composition.

    Raises:
        IncompatibleComposition: naming two slots that do not fit, and the shipped parts that would
            in the place of either.
    """
    conflict = _conflict(filter)
    if conflict is not None:
        one, other = (type(getattr(filter, slot)).__name__ for slot in conflict.slots)
        fits = conflict.advice or " or ".join(_alternatives(filter, conflict.slots))
        raise IncompatibleComposition(
            f"{one} does not fit {other}: {conflict.why}. "
            f"Would fit: {fits or 'no single part; change two'}."
        )


def shipped(slot: str) -> dict[str, type[Any]]:
    """The shipped parts of one slot, each of which can be made without arguments.

    Args:
        slot: ``"dynamics"``, ``"likelihood"``, ``"posterior"`` or ``"basis"``.

    Returns:
        Classes by name, in alphabetical order.

    Raises:
        ValueError: another slot.
    """
    if slot not in SLOTS:
        raise ValueError(f"slot={slot!r} is not a slot; use {' or '.join(map(repr, SLOTS))}")
    rooms = (models, approximations)
    found = {name: getattr(room, name) for room in rooms for name in room.__all__}
    return {name: cls for name, cls in sorted(found.items()) if hasattr(cls, SLOTS[slot])}


def _alternatives(filter: Filter, slots: tuple[str, str]) -> list[str]:
    """The shipped parts that would make a whole of the filter, in the place of either part."""
    return [
        f"{name} with other arguments" if cls is type(getattr(filter, slot)) else name
        for slot in slots
        for name, cls in shipped(slot).items()
        if _conflict(replace(filter, **{slot: cls()})) is None
    ]


def _conflict(filter: Filter) -> Conflict | None:
    """The first two slots that do not fit."""
    dynamics, likelihood, posterior = filter.dynamics, filter.likelihood, filter.posterior
    transition = dynamics.transition(scalar(1))
    learning, ageing = ("likelihood", "posterior"), ("dynamics", "posterior")
    if dynamics.k not in posterior.latents:
        return Conflict(ageing, f"its {dynamics.k} latents per weight cannot be held there")
    if missing := likelihood.needs - frozenset(Raw._fields):
        return Conflict(learning, f"nothing gathers the {', '.join(sorted(missing))} it needs")
    looks, core = likelihood.needs > {"grad"}, likelihood.core
    if looks and core.source == "jacobians" and not all(hasattr(core, n) for n in LOOKS):
        return Conflict(learning, "what it needs of the model takes its `root` and `memory`")
    if "products" in likelihood.needs and not posterior.elementwise:
        return Conflict(learning, "its products with a draw are those of independent weights")
    if looks and not isinstance(filter.basis, approximations.Identity):
        why = "what it gathers is in the weights' own coordinates"
        return Conflict(("likelihood", "basis"), why)
    if missing := filter.basis.needs - frozenset(Raw._fields):
        why = f"nothing gathers the {', '.join(sorted(missing))} it needs"
        return Conflict(("likelihood", "basis"), why)
    for slot in ("posterior", "likelihood") if filter.basis.turns else ():
        if not _turns(filter, slot):
            why = "what it remembers is not known in coordinates that turn"
            return Conflict((slot, "basis"), why)
    if transition.mixing is not None and not posterior.mixes:
        return Conflict(ageing, "it keeps no covariance of whole weight matrices, which these mix")
    if likelihood.signed and not posterior.signed:
        return Conflict(learning, "its curvature may be negative, which no variance survives there")
    if likelihood.gives not in posterior.accepts:
        return Conflict(learning, f"its {likelihood.gives.__name__} curvature is not accepted")
    if posterior.stationary and not likelihood.averages:
        return Conflict(learning, "a stationary variance needs an averaged curvature")
    if objection := posterior.objection(transition):
        return Conflict(ageing, objection)
    if not likelihood.informative and not _bounded(transition):
        why = "where no curvature is learned its variance would grow without bound"
        return Conflict(("dynamics", "likelihood"), why)
    given = initial_variance(filter)
    for var0 in map(float, given if isinstance(given, tuple) else (given,)):
        if 0 < var0 < float("inf") or posterior.stationary:
            continue
        why = f"its initial variance {var0} is not positive and finite"
        return Conflict(ageing, why, "an explicit initial_variance")
    kept = [*names(template(filter, torch.Size((1, 1)))), *RESERVED]
    if twice := sorted({name for name in kept if kept.count(name) > 1}):
        why = f"they, the basis or the optimizer share the state name {', '.join(twice)}"
        return Conflict(learning, why, "a part whose state has another name")
    return None


def _turns(filter: Filter, slot: str) -> bool:
    """Whether a part can follow a basis that turns."""
    state, still = template(filter, torch.Size((2, 2))), Turn(lambda x: x, lambda x: x)
    if slot == "posterior":
        return filter.posterior.transport(state.belief, still) is not None
    return filter.likelihood.transport(state.like, still) is not None


def _bounded(transition: Transition) -> bool:
    """Whether a variance stays bounded without evidence."""
    lost = float(lost_variance(transition))
    return bool(transition.pull) or lost > 0 or (lost >= 0 and not float(transition.Q[0]) > 0)
