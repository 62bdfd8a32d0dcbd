"""The Kronecker-factored posterior: a weight matrix whose covariance is a product of two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from filteropt import matrix_normal
from filteropt.hyperparameters import Count, Interval, Positive, check_fields
from filteropt.leading import leading
from filteropt.linalg import overshoots
from filteropt.matrix_normal import Factors, Spread, drifted, present
from filteropt.types import (
    Belief,
    Diag,
    Observation,
    Outer,
    Packed,
    Posterior,
    Scalar,
    Transition,
)

__all__ = ["Kronecker", "KroneckerCovariance"]

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class KroneckerCovariance(NamedTuple):
    r"""The factors of a weight matrix' covariance, of which only the product is determined.

    Attributes:
        input: :math:`\Sigma_x`, ``(N, N)``.
        output: :math:`\Sigma_\delta`, ``(M, M)``.

    Example:
        >>> from filteropt.approximations import Kronecker
        >>> family, static = Kronecker(), Transition(((1.0,),), (0.0,))
        >>> belief = family.init(torch.zeros(1, 1), 0.25, 1)
        >>> family.covariance(belief, None, static).input
        tensor([[0.5000]])
    """

    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class Kronecker(Posterior):
    r"""A weight matrix W, M×N, whose covariance is a Kronecker product.

    .. math::
        \Sigma = \Sigma_x \otimes \Sigma_\delta, \qquad
        W \leftarrow W - \Sigma_\delta^+\,\hat G\,\Sigma_x^+ .

    N inputs and M outputs have a covariance each, so that the gradient of the matrix is whitened
    from both sides. A tensor of more than two dimensions is the matrix ``p.flatten(1)``. Bayes'
    rule and process noise both leave the family; what is approximated is the way back:

    - ``"first-order"``: U's updates, the KL(P‖Q) projection to first order in what one row, or one
      step of noise, changes; row after row, with U's misprints corrected. Cheap per row.
    - ``"forward"``: minimises KL(P‖Q) itself, a minibatch of up to 256 rows at a time.
    - ``"reverse"``: minimises KL(Q‖P), any minibatch at a time. Its variances are the smaller ones.

    A row e that the prior expects to tell far more than it knows, :math:`e^\top\Sigma^-e \gg 1`,
    is beyond the family: the exact posterior has :math:`e^\top\Sigma^+e < 1`, a reverse projection
    at most min(M, N), but the other two nearly :math:`e^\top\Sigma^-e` itself, with means that
    overshoot as much. So begin with an ``initial_variance`` that is small for them, or take
    ``"reverse"``.

    The factors are kept as square roots, symmetric and positive by form. Correlations between
    tensors are dropped. Noise that multiplies the matrix (:class:`filteropt.models.KroneckerDrift`)
    has second moments that only a forward projection takes together; ``"reverse"`` uses that for
    it, and its own for the rest. A pull towards the prior is always projected exactly.

    Args:
        projection: ``"first-order"``, ``"forward"`` or ``"reverse"``.
        rounds: the most rounds of the alternating solution of an exact projection, which stops
            where nothing changes any more; [1, inf). Not for ``"first-order"``.
        initial_variance: variance of every weight before any evidence, squared weight units;
            (0, inf). ``None`` takes the dynamics' ``initial_variance``, else its stationary
            variance, else 0.01.
        max_dim: the largest N or M that is taken; (0, inf). The factors have N² + M² numbers, and
            noise costs O(N³ + M³) per step.
        dtype: ``"float32"`` or ``"float64"``, of the factors; ``None`` for the belief's.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range, or a tensor that is no matrix or is too large.

    Example:
        >>> from filteropt.approximations import Kronecker
        >>> family, static = Kronecker(), Transition(((1.0,),), (0.0,))
        >>> prior = family.init(torch.zeros(1, 2), 1.0, 1)
        >>> obs = Observation(torch.ones(1, 2), Outer(torch.ones(1, 2), torch.ones(1, 1)))
        >>> disp, post = family.condition(0.0, prior, obs, static)
        >>> disp    # the two weights' sum is observed with precision 1
        tensor([[-0.3333, -0.3333]])

    Source: U (Aitchison 2018) Sec. 2.1.3 and 4.3; derived in :eq:`eq-kronecker-forward` and
    :eq:`eq-kronecker-minibatch`.
    """

    accepts: ClassVar[tuple[type, ...]] = (Outer,)
    elementwise: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    mixes: ClassVar[bool] = True

    projection: Literal["first-order", "forward", "reverse"] = "reverse"
    rounds: Count = 20
    initial_variance: Annotated[float, Interval("(0, inf)")] | None = None
    max_dim: Positive = 8192
    dtype: Literal["float32", "float64"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def objection(self, transition: Transition) -> str | None:
        """Overshooting dynamics."""
        return overshoots(transition)

    def init(self, p: Tensor, var0: Scalar | Packed, k: int) -> Belief:
        """Variance ``var0`` for every weight, and no correlations."""
        if p.dim() < 2:
            raise ValueError(
                f"Kronecker: a tensor of shape {tuple(p.shape)} is no weight matrix, which takes "
                f"at least 2 dimensions; use an elementwise posterior such as Diagonal for it"
            )
        m, n = len(p), math.prod(p.shape[1:])
        if max(m, n) > self.max_dim:
            raise ValueError(
                f"Kronecker: a tensor of shape {tuple(p.shape)} is a matrix of {m} × {n}, and a "
                f"side is longer than max_dim={self.max_dim:g}; its factors would take "
                f"{(m * m + n * n) * p.element_size() / 2**30:.2g} GiB. Use an elementwise "
                f"posterior such as Diagonal, or raise max_dim"
            )
        variance = var0[0] if isinstance(var0, tuple) else var0
        dtype = DTYPES[self.dtype] if self.dtype else p.dtype
        x, y = (torch.eye(k, dtype=dtype, device=p.device) for k in (n, m))
        share = max(float(variance), torch.finfo(dtype).tiny) ** 0.25
        return Belief((), Factors(x * share, y * share))

    def propagate(
        self, belief: Belief, transition: Transition, p: Tensor | None = None
    ) -> tuple[Scalar | Tensor, Belief]:
        """Σ⁻: mixing of the mean ``p`` and of Σ⁺, then cF²Σ + Q, pulled, each projected."""
        factors = Factors(*belief.cov)
        if not all(map(len, factors)):
            return 0.0, belief
        mean = None
        if transition.mixing is not None:
            assert p is not None, "families that mix are shown the mean"
            mean = p.flatten(1)
        return 0.0, Belief((), self._aged(factors, transition, mean))

    @leading
    def _aged(self, factors: Factors, transition: Transition, mean: Tensor | None) -> Factors:
        """Σ⁻, projected."""
        ((factor,),), (noise,) = transition.F, transition.Q
        carried, pull = transition.c * factor * factor, transition.pull
        added: tuple[Spread, ...] = ()
        if mean is not None and transition.mixing and any(map(present, transition.mixing)):
            added = matrix_normal.mixed(factors, mean, *transition.mixing)
            added = tuple(s._replace(weight=carried * s.weight) for s in added)
        aged = self._drifted(factors, carried, noise, added)
        if pull is not None and present(pull):
            reverse = self.projection == "reverse"
            aged = drifted(aged, 1.0, 0.0, pull, self.rounds, reverse=reverse)
        return aged

    def _drifted(
        self, factors: Factors, carried: Scalar, noise: Scalar, added: tuple[Spread, ...]
    ) -> Factors:
        """The drifted belief, projected."""
        if self.projection == "first-order":
            return matrix_normal.drift_first_order(factors, carried, noise, added)
        if self.projection == "forward":
            return matrix_normal.drift_forward(factors, carried, noise, added, self.rounds)
        if added:
            factors = matrix_normal.drift_forward(factors, carried, 0.0, added, self.rounds)
            carried = 1.0
        return matrix_normal.drift_reverse(factors, carried, noise, self.rounds)

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """The projection of Bayes' rule, and the displacement −Σδ⁺ Ĝ Σx⁺."""
        assert isinstance(obs.curvature, Outer), "engine.check admits only layers' curvature"
        factors = Factors(*prior.cov)
        if not all(map(len, factors)):
            return -obs.grad, prior
        inputs, deltas = (rows.to(factors.input_root.dtype) for rows in obs.curvature)
        x, y = factors = self._conditioned(factors, inputs, deltas)
        grad = obs.grad.flatten(1).to(x.dtype)
        moved = y @ (y.mT @ grad @ x) @ x.mT
        return -moved.to(obs.grad.dtype).reshape(obs.grad.shape), Belief((), factors)

    @leading
    def _conditioned(self, factors: Factors, inputs: Tensor, deltas: Tensor) -> Factors:
        """Σ⁺, projected."""
        if self.projection == "first-order":
            found = matrix_normal.condition_first_order(factors, inputs, deltas)
        elif self.projection == "forward":
            found = matrix_normal.condition_forward(factors, inputs, deltas, self.rounds)
        else:
            found = matrix_normal.condition_reverse(factors, inputs, deltas, self.rounds)
        return matrix_normal.balance(found)

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """The diagonal of Σδ times that of Σx, shaped ``(M, N)``."""
        x, y = (root.square().sum(1) for root in belief.cov)
        return torch.outer(y, x).clamp_min(torch.finfo(x.dtype).tiny)

    def covariance(
        self, belief: Belief, curvature: Diag | None, transition: Transition
    ) -> KroneckerCovariance:
        """The two factors."""
        return KroneckerCovariance(*(root @ root.mT for root in belief.cov))

    def sample(
        self, belief: Belief, curvature: Diag | None, transition: Transition, eps: Tensor
    ) -> Tensor:
        """Sδ ε Sxᵀ."""
        x, y = belief.cov
        drawn = y @ eps.flatten(1).to(x.dtype) @ x.mT
        return drawn.to(eps.dtype).reshape(eps.shape)
