r"""The vocabulary: what flows between the five slots of a filter, and what each slot must offer.

A filter tracks, for every weight, a Gaussian belief :math:`N(\mu, \Sigma)` about its optimum. Its
mean :math:`\mu` *is* the parameter; the types below carry everything else.

Two kinds of code meet here. *Scalar programs* (``transition``, ``scalars``) do arithmetic on
hyperparameters, once per group and step. *Element programs* (``propagate``, ``observe``,
``condition``) do arithmetic on tensors: they branch on no values (families of matrices may), read
only the scalars handed to them, and change none of their inputs.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from filteropt.dtypes import squarable

__all__ = [
    "Basis",
    "Belief",
    "Diag",
    "Dynamics",
    "Flow",
    "Leaves",
    "Likelihood",
    "LowRank",
    "Memory",
    "Observation",
    "Packed",
    "Posterior",
    "Projection",
    "Raw",
    "Rows",
    "Scalar",
    "State",
    "Transition",
]

Scalar: TypeAlias = float | Tensor
"""A Python float or a 0-d tensor."""
Rows: TypeAlias = tuple[tuple[Scalar, ...], ...]
"""A k×k matrix, row by row."""
Packed: TypeAlias = tuple[Scalar, ...]
"""A symmetric k×k matrix as its upper triangle, row by row; or any flat run of scalars."""
Leaves: TypeAlias = tuple[Tensor, ...]
"""Tensors in order, often a NamedTuple that names them."""
Memory: TypeAlias = tuple[Any, ...]
"""What a likelihood remembers, tensors or further memories in order, often a NamedTuple."""


class Flow(NamedTuple):
    r"""The continuous-time limit of a scalar transition, :math:`dP = (q - \rho P)\,dt`.

    Attributes:
        rate: :math:`\rho`, variance forgotten per step; negative (growing) only without noise.
        noise: :math:`q`, the diffusion, in squared weight units per step; ``None`` for none.
    """

    rate: Scalar
    noise: Scalar | None


class Transition(NamedTuple):
    r"""How a belief over k latents per weight ages by one step.

    Covariances become :math:`P' = ((c\,F P F^\top + Q)^{-1} + R\,)^{-1}`. The weight's own mean is
    pulled to 0 by ``pull`` and shrinks by ``decay``, which may be chosen freely (P Eq. 18a).

    Attributes:
        F: the k×k transition matrix; the weight is latent 0.
        Q: process noise covariance, packed upper triangle.
        c: inflation (> 1) or contraction (< 1) of what is carried.
        decay: fraction of the weight's mean lost per step, by default :math:`1 - F_{00}`.
        lost: fraction of variance lost per step, :math:`1 - cF_{00}^2`, if known better.
        flow: continuous-time limit, where there is one; it leaves ``pull`` out.
        pull: :math:`R`, the precision of one observation of each weight at 0 per step, if any.
    """

    F: Rows
    Q: Packed
    c: Scalar = 1.0
    decay: Scalar | None = None
    lost: Scalar | None = None
    flow: Flow | None = None
    pull: Scalar | None = None


class Belief(NamedTuple):
    """What is believed about one parameter tensor, besides its mean (the parameter itself).

    Attributes:
        aux: means of latents 1 … k−1, each shaped like the parameter.
        cov: the covariance's leaves, in the posterior family's own form.
    """

    aux: Leaves
    cov: Leaves


class Diag(NamedTuple):
    """A diagonal precision.

    Attributes:
        values: the diagonal, shaped like the parameter, in inverse squared weight units, ≥ 0.
    """

    values: Tensor


class LowRank(NamedTuple):
    r"""A precision :math:`\Lambda = \sum_r j_r j_r^\top` of few directions.

    Attributes:
        rows: the directions :math:`j_r`, shaped ``(r, *p.shape)``, in inverse weight units.
    """

    rows: Tensor


class Observation(NamedTuple):
    r"""A local Gaussian likelihood, :math:`-\log p(d) = g^\top d + \tfrac12 d^\top \Lambda d`.

    Attributes:
        grad: :math:`g`, the gradient of the summed negative log-likelihood at ``d = 0``.
        curvature: :math:`\Lambda`, the precision that the minibatch contributes.
    """

    grad: Tensor
    curvature: Diag | LowRank


class Raw(NamedTuple):
    r"""What was gathered for one parameter tensor before the step.

    Attributes:
        grad: ``p.grad`` in the belief's dtype (sign flipped under ``maximize``).
        rows: directions :math:`j_r`, shaped ``(r, *p.shape)``, whose :math:`\sum j_r j_r^\top` is
            the minibatch's Gauss–Newton matrix. This and what follows is ``None`` unless needed.
        squares: that matrix' diagonal, or another sum of squared gradients, shaped like ``p``.
        products: the gradient at a posterior sample times the sample's offset over its variance.
    """

    grad: Tensor
    rows: Tensor | None = None
    squares: Tensor | None = None
    products: Tensor | None = None


class State(NamedTuple):
    """Everything that a filter remembers about one parameter tensor.

    Attributes:
        belief: covariance and auxiliary means.
        like: the likelihood's running averages.
        basis: the basis' leaves.
    """

    belief: Belief
    like: Memory
    basis: Leaves


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
    """

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})
    source: ClassVar[str] = "jacobians"
    gives: ClassVar[type] = Diag
    signed: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    informative: ClassVar[bool] = True
    delay: ClassVar[int] = 0

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


class Posterior(Protocol):
    """A posterior family: which Gaussians are kept, and so which projection is made.

    Attributes:
        accepts: types of curvature that :meth:`condition` takes.
        latents: numbers of latents per weight that it can hold.
        elementwise: whether every weight is treated on its own, so that shards may be.
        stationary: whether it needs a likelihood that averages its curvature.
        signed: whether its variances stay positive where a curvature is negative.
        exact: whether conditioning is Bayes' rule, not only to first order in the evidence.
    """

    accepts: ClassVar[tuple[type, ...]] = (Diag,)
    latents: ClassVar[range] = range(1, 2)
    elementwise: ClassVar[bool] = True
    stationary: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def objection(self, transition: Transition) -> str | None:
        """Why these dynamics do not fit, as a clause; ``None`` if they do."""
        return None

    def init(self, p: Tensor, var0: Scalar | Packed, k: int) -> Belief:
        """The prior of the first step: variance ``var0`` of every weight, or of its k latents."""

    def drift(self, belief: Belief, transition: Transition) -> Scalar | Tensor:
        """The mean's displacement by the other latents, if any."""
        return 0.0

    def propagate(self, belief: Belief, transition: Transition) -> tuple[Scalar | Tensor, Belief]:
        """Predict: the mean's displacement by the other latents, and the prior."""

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """Bayes' rule: the mean's displacement so far and now, and the posterior."""

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """The marginal variance of every weight, shaped like the parameter."""

    def covariance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """The covariance that the family keeps: k×k for every weight, or n×n for a whole tensor."""
        return self.variance(belief, curvature, transition)[..., None, None]

    def sample(
        self, belief: Belief, curvature: Diag | None, transition: Transition, eps: Tensor
    ) -> Tensor:
        """A draw's offset from the mean, of standard normal ``eps`` shaped like the parameter."""
        return self.variance(belief, curvature, transition).sqrt() * eps


class Basis(Protocol):
    """Coordinates in which the posterior family holds."""

    def init(self, p: Tensor) -> Leaves:
        """The basis before the first gradient."""

    def forward(self, basis: Any, x: Tensor) -> Tensor:
        """``x`` in the basis' coordinates."""

    def backward(self, basis: Any, x: Tensor) -> Tensor:
        """``x`` back in the parameter's coordinates."""

    def variance(self, basis: Any, variance: Tensor) -> Tensor:
        """The parameter's marginal variances, given independent ones in these coordinates."""


class Projection(Protocol):
    """A clip, floor or gain applied after conditioning: an element program."""

    def __call__(self, disp: Tensor, belief: Belief) -> tuple[Tensor, Belief]:
        """The projected displacement and belief."""
