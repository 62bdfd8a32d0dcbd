"""What each of the five slots of a filter must offer."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from filteropt.dtypes import squarable
from filteropt.types.values import (
    Belief,
    Diag,
    Leaves,
    Memory,
    Observation,
    Packed,
    Raw,
    Scalar,
    Transition,
    Turn,
)

__all__ = ["Basis", "Dynamics", "Likelihood", "Posterior", "Projection"]


@runtime_checkable
class Dynamics(Protocol):
    """A dynamics prior: how the optimal weights move between two gradients.

    Attributes:
        k: latents per weight (1: the weight alone; 2: weight and momentum; …).
    """

    k: ClassVar[int]

    def transition(self, t: Tensor | float) -> Transition:
        """The transition into step ``t`` (a number, 1 for the first step): a scalar program."""


class Likelihood(Protocol):
    r"""A likelihood approximation: what one gradient says about the optimum.

    Attributes:
        needs: what must be gathered, as field names of :class:`Raw`.
        source: who gathers it, a name of ``gathering.sources.SOURCES``.
        gives: the type of curvature it returns.
        signed: whether that curvature may be negative.
        averages: whether it knows its running curvature between steps (see :meth:`curvature`).
        informative: whether gradients teach it any curvature at all.
        delay: steps before the first that tells a curvature.
        elementwise: whether :meth:`observe` treats every weight on its own, so that executors may
            give it any number of weights in any order. It holds for the class that states it: one
            that overrides :meth:`observe` states it again; one that wraps another likelihood speaks
            for itself alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})
    source: ClassVar[str] = "jacobians"
    gives: ClassVar[type] = Diag
    signed: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    informative: ClassVar[bool] = True
    delay: ClassVar[int] = 0
    elementwise: ClassVar[bool] = False

    @property
    def core(self) -> Likelihood:
        """The likelihood that knows how to gather what is needed, itself unless it wraps one."""
        return self

    def scalars(self, t: Tensor | float) -> Packed:
        """The numbers that :meth:`observe` uses at step ``t``: a scalar program."""
        return ()

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` whose use, squares included, is finite in ``dtype``."""
        return squarable(dtype)

    def init(self, p: Tensor) -> Memory:
        """The state before the first gradient, for a parameter like ``p``."""
        return ()

    def observe(
        self, like: Any, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Memory]:
        """The local Gaussian that ``raw`` implies, and the updated state: an element program."""

    def curvature(self, like: Any, p: Tensor, scalars: Packed) -> Diag | None:
        """The running curvature of a parameter like ``p``, or ``None`` where nothing is kept."""
        return None

    def transport(self, like: Any, turn: Turn) -> Memory | None:
        """What is remembered, in coordinates that turned; ``None`` where that is not known."""
        return like if like == () else None


class Posterior(Protocol):
    """A posterior family: which Gaussians are kept, and so which projection is made.

    Attributes:
        accepts: types of curvature that :meth:`condition` takes.
        latents: numbers of latents per weight that it can hold.
        elementwise: whether every weight is treated on its own, so that shards may be. Executors
            step weights in rows only where the class that overrides :meth:`propagate` or
            :meth:`condition` states it.
        stationary: whether it needs a likelihood that averages its curvature.
        signed: whether its variances stay positive where a curvature is negative.
        exact: whether conditioning is Bayes' rule, not only to first order in the evidence.
        mixes: whether dynamics may multiply a whole weight matrix (its ``mixing``).
    """

    accepts: ClassVar[tuple[type, ...]] = (Diag,)
    latents: ClassVar[range] = range(1, 2)
    elementwise: ClassVar[bool] = True
    stationary: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    mixes: ClassVar[bool] = False

    def objection(self, transition: Transition) -> str | None:
        """Why these dynamics do not fit, as a clause; ``None`` if they do."""
        return None

    def init(self, p: Tensor, var0: Scalar | Packed, k: int) -> Belief:
        """The prior of the first step: variance ``var0`` of every weight, or of its k latents."""

    def drift(self, belief: Belief, transition: Transition) -> Scalar | Tensor:
        """The mean's displacement by the other latents, if any."""
        return 0.0

    def propagate(
        self, belief: Belief, transition: Transition, p: Tensor | None = None
    ) -> tuple[Scalar | Tensor, Belief]:
        """Predict: the mean's displacement by the other latents, and the prior.

        ``p``, the mean, matters only to families that ``mixes``.
        """

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """Bayes' rule: the mean's displacement so far and now, and the posterior."""

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """The marginal variance of every weight, shaped like the parameter."""

    def covariance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Any:
        """The covariance that the family keeps: k×k for every weight, n×n, or its factors."""
        return self.variance(belief, curvature, transition)[..., None, None]

    def sample(
        self, belief: Belief, curvature: Diag | None, transition: Transition, eps: Tensor
    ) -> Tensor:
        """A draw's offset from the mean, of standard normal ``eps`` shaped like the parameter."""
        return self.variance(belief, curvature, transition).sqrt() * eps

    def transport(self, belief: Belief, turn: Turn) -> Belief | None:
        """The belief, in coordinates that turned; ``None`` where that is not known."""
        return None


class Basis(Protocol):
    """Coordinates in which the posterior family holds.

    Attributes:
        needs: what must be gathered for it, as field names of :class:`Raw`.
        source: who gathers it, a name of ``gathering.sources.SOURCES``.
        elementwise: whether every weight is left on its own, so that shards may be.
        turns: whether the coordinates change as training goes on.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})
    source: ClassVar[str] = "layers"
    elementwise: ClassVar[bool] = False
    turns: ClassVar[bool] = False

    def init(self, p: Tensor) -> Leaves:
        """The basis before the first gradient."""

    def forward(self, basis: Any, x: Tensor) -> Tensor:
        """``x`` in the basis' coordinates."""

    def backward(self, basis: Any, x: Tensor) -> Tensor:
        """``x`` back in the parameter's coordinates."""

    def variance(self, basis: Any, variance: Tensor) -> Tensor:
        """The parameter's marginal variances, given independent ones in these coordinates."""

    def ready(self, basis: Any) -> bool:
        """Whether a first step may be taken; until then gradients only teach the basis."""
        return True

    def refresh(self, basis: Any, raw: Raw, t: float) -> tuple[Leaves, Turn | None]:
        """Learn from what step ``t`` gathered, and perhaps turn: never compiled."""
        return basis, None


class Projection(Protocol):
    """A clip, floor or gain applied after conditioning: an element program.

    Attributes:
        elementwise: whether every weight is treated on its own, as for a likelihood; what does not
            state it, a plain function among others, is taken to look at whole tensors.
    """

    elementwise: ClassVar[bool] = False

    def __call__(self, disp: Tensor, belief: Belief) -> tuple[Tensor, Belief]:
        """The projected displacement and belief."""
