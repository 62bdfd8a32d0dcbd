r"""The engine: a filter is a value with five slots, and there is one step.

.. math::
    \text{predict} \quad & \mu^- = F\mu^+, && \Sigma^- = c\,F\Sigma^+F^\top + Q \\
    \text{condition} \quad & \Sigma^+ = ((\Sigma^-)^{-1} + \Lambda)^{-1}, &&
    \mu^+ = \mu^- - \Sigma^+ \hat g \\
    \text{project} \quad & \Sigma^+ \leftarrow \text{the nearest member of the family}

The mean of the weights is the parameter itself: a step returns a displacement. Everything here is
pure; :class:`filteropt.FilterOptimizer` adds the displacement and keeps the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filteropt import approximations
from filteropt.approximations import Identity
from filteropt.linalg import belief_dtype, scalar
from filteropt.trees import names, tree_map
from filteropt.types import (
    Basis,
    Dynamics,
    Likelihood,
    Packed,
    Posterior,
    Projection,
    Raw,
    Scalar,
    State,
    Transition,
)

__all__ = [
    "Filter",
    "IncompatibleComposition",
    "Scalars",
    "check",
    "init",
    "scalars",
    "step",
    "template",
    "variance",
]


RESERVED = ("step", "decay", "evaluating", "prediction")
"""State names that the optimizer itself uses."""


class IncompatibleComposition(ValueError):  # ruff: ignore[error-suffix-on-exception-name] - the name states the fact
    """Two slots of a filter do not fit; the message names both and what would fit."""


@dataclass(frozen=True)
class Filter:
    """An optimizer as a value: five exchangeable parts.

    Args:
        dynamics: how beliefs age between two gradients.
        likelihood: what a gradient says.
        posterior: which Gaussian family is kept.
        basis: coordinates in which it is that family.
        projections: clips and floors applied after conditioning, in order.

    Example:
        >>> from dataclasses import replace
        >>> from filteropt.approximations import Diagonal, SquaredGradient
        >>> from filteropt.models import FixedNoise
        >>> euler = Filter(FixedNoise(1e-3, 0.1), SquaredGradient(), Diagonal())
        >>> exact = replace(euler, dynamics=FixedNoise(1e-3, 0.1, discretization="exact"))
    """

    dynamics: Dynamics
    likelihood: Likelihood
    posterior: Posterior
    basis: Basis = field(default_factory=Identity)
    projections: tuple[Projection, ...] = ()


class Scalars(NamedTuple):
    """The numbers of one step, worked out once for all the weights that share them.

    Attributes:
        age: how the covariance ages before conditioning (not at all in the first step).
        transition: the dynamics' transition.
        decay: fraction of the weights' mean lost in this step.
        likelihood: the likelihood's numbers.
    """

    age: Transition
    transition: Transition
    decay: Scalar
    likelihood: Packed


def scalars(filter: Filter, t: float | Tensor) -> Scalars:
    """The numbers of step ``t`` as 0-d float64 tensors (the scalar program).

    The initial variance is the prior *of the first step*, so that step ages the mean (its decay)
    but not the covariance.

    Args:
        filter: the composition.
        t: steps taken, this one included; 1 for the first.

    Returns:
        The numbers that :func:`step` uses.
    """
    t = scalar(t)
    transition: Transition = tree_map(scalar, filter.dynamics.transition(t))
    decay = 1 - transition.F[0][0] if transition.decay is None else transition.decay
    likelihood: Packed = tree_map(scalar, filter.likelihood.scalars(t))
    return Scalars(_unless_first(transition, t), transition, decay, likelihood)


def step(
    filter: Filter, scalars: Scalars, state: State, raw: Raw, p: Tensor
) -> tuple[Tensor, State]:
    """One step for one parameter: rotate, propagate, observe, condition, project, rotate back.

    Args:
        filter: the composition.
        scalars: numbers of this step, 0-d tensors or floats.
        state: what the filter remembers about ``p``.
        raw: what was gathered at ``p``.
        p: the parameter, which holds the posterior mean, in the belief's dtype.

    Returns:
        The displacement from ``p`` to the new posterior mean, and the new state. No input changes.
    """
    belief, like, basis = state
    raw = raw._replace(grad=filter.basis.forward(basis, raw.grad))
    disp, prior = filter.posterior.propagate(belief, scalars.age)
    obs, like = filter.likelihood.observe(like, raw, p, prior, scalars.likelihood)
    disp, belief = filter.posterior.condition(disp, prior, obs, scalars.transition)
    for project in filter.projections:
        disp, belief = project(disp, belief)
    disp = filter.basis.backward(basis, disp) - scalars.decay * p
    return disp, State(belief, like, basis)


def init(filter: Filter, p: Tensor) -> State:
    """The state before the first gradient.

    Args:
        filter: the composition.
        p: a parameter, or any tensor of its shape, device and layout.

    Returns:
        A state in float32 for half-precision parameters, else in the parameter's dtype.
    """
    like_p = p.detach().to(belief_dtype(p))
    return State(
        filter.posterior.init(like_p, initial_variance(filter), filter.dynamics.k),
        filter.likelihood.init(like_p),
        filter.basis.init(like_p),
    )


def variance(filter: Filter, scalars: Scalars, state: State) -> Tensor:
    """The marginal posterior variance of every weight.

    Args:
        filter: the composition.
        scalars: numbers of the last step.
        state: what the filter remembers.

    Returns:
        Σ⁺, shaped like the parameter, in squared weight units.
    """
    curvature = filter.likelihood.curvature(state.like, scalars.likelihood)
    rotated = filter.posterior.variance(state.belief, curvature, scalars.transition)
    return filter.basis.variance(state.basis, rotated)


def initial_variance(filter: Filter) -> Scalar:
    """The variance before any evidence: the posterior's word, else the dynamics', else 0.01."""
    for part in (filter.posterior, filter.dynamics):
        if (given := getattr(part, "initial_variance", None)) is not None:
            return given  # type: ignore[no-any-return]  # parts annotate it as a Scalar
    transition = filter.dynamics.transition(scalar(1))
    carried = float(transition.c * transition.F[0][0] ** 2)
    noise = float(transition.Q[0])
    return noise / (1 - carried) if noise > 0 and carried < 1 else 1e-2


def check(filter: Filter) -> None:
    """Check that the slots fit.

    Args:
        filter: the composition.

    Raises:
        IncompatibleComposition: naming two slots that do not fit, and what would.
    """
    dynamics, likelihood, posterior = filter.dynamics, filter.likelihood, filter.posterior
    if dynamics.k not in posterior.latents:
        _refuse(dynamics, posterior, f"its {dynamics.k} latents per weight cannot be held there",
                _parts(lambda part: dynamics.k in getattr(part, "latents", ())))  # fmt: skip
    gathered = frozenset(Raw._fields)
    if missing := likelihood.needs - gathered:
        _refuse(likelihood, posterior, f"nothing gathers the {', '.join(sorted(missing))} it needs",
                _parts(lambda part: getattr(part, "needs", missing) <= gathered))  # fmt: skip
    if likelihood.gives not in posterior.accepts:
        _refuse(likelihood, posterior, f"its {likelihood.gives.__name__} curvature is not accepted",
                _parts(lambda part: likelihood.gives in getattr(part, "accepts", ())))  # fmt: skip
    if posterior.stationary and not likelihood.averages:
        _refuse(likelihood, posterior, "a stationary variance needs an averaged curvature",
                _parts(lambda part: getattr(part, "averages", False)))  # fmt: skip
    transition = dynamics.transition(scalar(1))
    if objection := posterior.objection(transition):
        _refuse(dynamics, posterior, objection, _parts(
            lambda part: hasattr(part, "objection") and not part().objection(transition)
            and (likelihood.averages or not part.stationary)))  # fmt: skip
    var0 = float(initial_variance(filter))
    if not (0 < var0 < float("inf") or posterior.stationary):
        _refuse(dynamics, posterior, f"its initial variance {var0} is not positive and finite",
                ["an explicit initial_variance"])  # fmt: skip
    kept = [*names(template(filter, torch.Size((1, 1)))), *RESERVED]
    if twice := sorted({name for name in kept if kept.count(name) > 1}):
        _refuse(likelihood, posterior, f"they, the basis or the optimizer share the state name "
                f"{', '.join(twice)}", ["a part whose state has another name"])  # fmt: skip


def _refuse(part: object, other: object, why: str, fitting: list[str]) -> None:
    name, other_name = type(part).__name__, type(other).__name__
    fits = " or ".join(fitting) if fitting else "nothing in filteropt"
    raise IncompatibleComposition(f"{name} does not fit {other_name}: {why}. Would fit: {fits}.")


def _parts(fits: Callable[[Any], bool]) -> list[str]:
    """Names of the shipped approximations for which ``fits`` is true."""
    return [name for name in approximations.__all__ if fits(getattr(approximations, name))]


def _unless_first(transition: Transition, t: Tensor) -> Transition:
    """``transition`` with its covariance part switched off at t = 1."""
    first = t <= 1
    k = len(transition.F)
    return transition._replace(
        F=tuple(
            tuple(torch.where(first, float(i == j), transition.F[i][j]) for j in range(k))
            for i in range(k)
        ),
        Q=tuple(torch.where(first, 0.0, q) for q in transition.Q),
        c=torch.where(first, 1.0, scalar(transition.c)),
    )


def template(filter: Filter, shape: torch.Size) -> State:
    """A state for parameters of this shape that holds nothing, to give ``trees.restore`` its form.

    Args:
        filter: the composition.
        shape: the parameter's.

    Returns:
        A state of tensors without memory.
    """
    return init(filter, torch.empty(shape, device="meta"))
