"""A filter, its state and its one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filteropt.approximations import Identity
from filteropt.dtypes import belief_dtype
from filteropt.linalg import lost_variance, scalar
from filteropt.trees import tree_map
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
    "Scalars",
    "covariance",
    "init",
    "initial_variance",
    "refresh",
    "sample",
    "scalars",
    "step",
    "template",
    "variance",
]


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
        moves: 1 where the step moves the weights to their predicted mean before it conditions, 0
            where they hold that mean already.
        t: the step, 1 for the first.
    """

    age: Transition
    transition: Transition
    decay: Scalar
    likelihood: Packed
    moves: Scalar = 1.0
    t: Scalar = 1.0


def scalars(filter: Filter, t: float | Tensor, known: Transition | None = None) -> Scalars:
    """The numbers of step ``t`` as 0-d float64 tensors (the scalar program).

    The initial variance is the prior *of the first step*, so that step ages the mean (its decay)
    but not the covariance. Dynamics that pull age both, which leaves their own prior as it is.

    Args:
        filter: the composition.
        t: steps taken, this one included; 1 for the first. Numbers are worked out on its device.
        known: the transition, if it is that of every step (:func:`steady`).

    Returns:
        The numbers that :func:`step` uses.
    """
    later, t = isinstance(t, float) and t > 1, scalar(t)
    there = partial(scalar, device=t.device)
    transition: Transition = known or filter.dynamics.transition(t)
    transition = transition if known and t.is_cpu else tree_map(there, transition)
    decay = 1 - transition.F[0][0] if transition.decay is None else transition.decay
    likelihood: Packed = tree_map(there, filter.likelihood.scalars(t))
    age = transition if later else _unless_first(transition, t)
    return Scalars(age, transition, decay, likelihood, t=t)


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
    drift, prior = filter.posterior.propagate(belief, scalars.age, p)
    obs, like = filter.likelihood.observe(like, raw, p, prior, scalars.likelihood)
    if (pull := scalars.transition.pull) is not None:  # the prior's mean, 0, is observed again
        obs = obs._replace(grad=obs.grad + pull * filter.basis.forward(basis, p))
    disp = scalars.moves * drift
    disp, belief = filter.posterior.condition(disp, prior, obs, scalars.transition)
    for project in filter.projections:
        disp, belief = project(disp, belief)
    disp = (-scalars.decay * p).add_(filter.basis.backward(basis, disp))
    return disp, State(belief, like, basis)


def refresh(filter: Filter, t: float, state: State, raw: Raw) -> State:
    """Let the basis learn and turn before step ``t``, and the belief follow it.

    Args:
        filter: the composition.
        t: the step about to be taken, 1 for the first.
        state: what the filter remembers.
        raw: what was gathered.

    Returns:
        The state in the new coordinates. No input changes.
    """
    basis, turn = filter.basis.refresh(state.basis, raw, t)
    if turn is None:
        return state._replace(basis=basis)
    belief = filter.posterior.transport(state.belief, turn)
    like = filter.likelihood.transport(state.like, turn)
    assert belief is not None, "engine.check admits only families that turn"
    assert like is not None, "engine.check admits only likelihoods that turn"
    return State(belief, like, basis)


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


def variance(filter: Filter, scalars: Scalars, state: State, p: Tensor) -> Tensor:
    """The marginal posterior variance of every weight.

    Args:
        filter: the composition.
        scalars: numbers of the last step.
        state: what the filter remembers.
        p: the parameter, in the belief's dtype.

    Returns:
        Σ⁺, shaped like the parameter, in squared weight units.
    """
    curvature = filter.likelihood.curvature(state.like, p, scalars.likelihood)
    rotated = filter.posterior.variance(state.belief, curvature, scalars.transition)
    return filter.basis.variance(state.basis, rotated)


def covariance(filter: Filter, scalars: Scalars, state: State, p: Tensor) -> Any:
    """The posterior covariance that the family keeps, in the basis' coordinates.

    Args:
        filter: the composition.
        scalars: numbers of the last step.
        state: what the filter remembers.
        p: the parameter, in the belief's dtype.

    Returns:
        Every weight's own k×k covariance, ``(*p.shape, k, k)``, a dense family's ``(n, n)``, or the
        factors of a Kronecker-factored one.
    """
    curvature = filter.likelihood.curvature(state.like, p, scalars.likelihood)
    return filter.posterior.covariance(state.belief, curvature, scalars.transition)


def sample(filter: Filter, scalars: Scalars, state: State, p: Tensor, eps: Tensor) -> Tensor:
    """The offset of a draw from the belief about one parameter.

    Args:
        filter: the composition.
        scalars: numbers of the last step.
        state: what the filter remembers.
        p: the parameter, in the belief's dtype.
        eps: independent standard normal numbers, shaped like the parameter.

    Returns:
        The offset from the mean, shaped like the parameter, in weight units.
    """
    curvature = filter.likelihood.curvature(state.like, p, scalars.likelihood)
    drawn = filter.posterior.sample(state.belief, curvature, scalars.transition, eps)
    return filter.basis.backward(state.basis, drawn)


def initial_variance(filter: Filter) -> Scalar | Packed:
    """The variance of a weight before any evidence, or of each of its latents.

    The dynamics' word, else each latent's own stationary variance, else 0.01; the posterior's word
    goes before for the weight's.

    Args:
        filter: the composition.

    Returns:
        The variance, or for k > 1 latents k of them, the weight's first.
    """
    transition = filter.dynamics.transition(scalar(1))
    given = getattr(filter.dynamics, "initial_variance", None)
    if given is None:
        given = tuple(_alone(transition, i) for i in range(filter.dynamics.k))
    variances: Packed = given if isinstance(given, tuple) else (given,)
    own = getattr(filter.posterior, "initial_variance", None)
    variances = variances if own is None else (own, *variances[1:])
    return variances if len(variances) > 1 else variances[0]


def _alone(transition: Transition, i: int) -> Scalar:
    """The stationary variance of one latent without the others."""
    k = len(transition.F)
    noise = float(transition.Q[sum(range(k, k - i, -1))])  # the i-th of the packed diagonal
    lost = 1 - float(transition.c * transition.F[i][i] ** 2)
    lost = lost if i else float(lost_variance(transition))
    return noise / lost if noise > 0 and lost > 0 else 1e-2


def _unless_first(transition: Transition, t: Tensor) -> Transition:
    """``transition`` with its covariance part switched off at t = 1, unless it pulls."""
    if transition.pull is not None:
        return transition
    first = t <= 1
    k = len(transition.F)
    return transition._replace(
        F=tuple(
            tuple(torch.where(first, float(i == j), transition.F[i][j]) for j in range(k))
            for i in range(k)
        ),
        Q=tuple(torch.where(first, 0.0, q) for q in transition.Q),
        c=torch.where(first, 1.0, scalar(transition.c)),
        mixing=tree_map(lambda v: torch.where(first, 0.0, v), transition.mixing),
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
