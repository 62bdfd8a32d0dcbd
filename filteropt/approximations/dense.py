"""The dense posterior: the full covariance of a tensor's weights, as a square root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from filteropt import regression
from filteropt.hyperparameters import Interval, Positive, check_fields
from filteropt.linalg import condition_seen, overshoots, predict_root
from filteropt.types import (
    Belief,
    Diag,
    LowRank,
    Observation,
    Outer,
    Packed,
    Posterior,
    Scalar,
    Transition,
)

__all__ = ["Dense"]


class Root(NamedTuple):
    """A square root of the covariance, ``(*p.shape, n)``, or ``(*p.shape, k, kn)``."""

    covariance_root: Tensor


@dataclass(frozen=True)
class Dense(Posterior):
    r"""All the weights of one tensor, correlations included: the Kalman filter itself.

    .. math::
        \Sigma^-_t = cF^2\,\Sigma^+_{t-1} + Q I, \qquad
        \Sigma^+_t = ((\Sigma^-_t)^{-1} + \Lambda_t)^{-1}, \qquad
        \mu^+_t = \mu^-_t - \Sigma^+_t\,\hat g_t .

    The covariance is kept as a square root, :math:`\Sigma = LL^\top`, and updated as one: symmetric
    and positive by form. A curvature of r < n rows costs O(n²r), process noise or a diagonal
    curvature O(n³). Nothing is approximated within a tensor; between tensors correlations are
    dropped, so that each block is the covariance of one tensor's optimum *given the other tensors'
    present values*. :class:`filteropt.Flat` puts a whole model into one tensor.

    Args:
        initial_variance: variance of every weight before any evidence, squared weight units;
            (0, inf). ``None`` takes the dynamics' ``initial_variance``, else its stationary
            variance, else 0.01.
        max_weights: the largest tensor that is taken, in weights; (0, inf). The covariance of n
            weights has n² numbers.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range, or a tensor that is too large.

    Example:
        >>> from filteropt.approximations import Dense
        >>> family = Dense()
        >>> prior = family.init(torch.zeros(2), 1.0, 1)
        >>> obs = Observation(torch.tensor([1.0, 1.0]), LowRank(torch.tensor([[1.0, 1.0]])))
        >>> disp, post = family.condition(0.0, prior, obs, Transition(((1.0,),), (0.0,)))
        >>> disp    # the two weights' sum is observed with precision 1
        tensor([-0.3333, -0.3333])

    Source: Kalman (1960); Ollivier (2018); the square-root forms are derived in
    :eq:`eq-square-root-predict` and :eq:`eq-square-root-update`.
    """

    accepts: ClassVar[tuple[type, ...]] = (Diag, LowRank)
    elementwise: ClassVar[bool] = False
    latents: ClassVar[range] = range(1, 17)

    initial_variance: Annotated[float, Interval("(0, inf)")] | None = None
    max_weights: Positive = 8192

    def __post_init__(self) -> None:
        check_fields(self)

    def objection(self, transition: Transition) -> str | None:
        """Overshooting dynamics, or other latents that feel the weight, whose mean is elsewhere."""
        return regression.feels_weight(transition) or overshoots(transition)

    def init(self, p: Tensor, var0: Scalar | Packed, k: int) -> Belief:
        """Variance ``var0`` for every weight's latents, and no correlations."""
        n = p.numel()
        if n > self.max_weights:
            raise ValueError(
                f"Dense: a tensor of shape {tuple(p.shape)} has {n} weights, more than "
                f"max_weights={self.max_weights:g}; its covariance would take "
                f"{(k * n) ** 2 * p.element_size() / 2**30:.2g} GiB. Use an elementwise posterior "
                f"such as Diagonal, or raise max_weights"
            )
        spread = var0 if isinstance(var0, tuple) else (var0,) * k
        tiny = torch.finfo(p.dtype).tiny
        root = p.new_tensor([max(float(v), tiny) ** 0.5 for v in spread]).repeat(n).diag()
        aux = tuple(torch.zeros_like(p) for _ in range(1, k))
        return Belief(aux, Root(root.reshape(*p.shape, *([k] if k > 1 else []), n * k)))

    def drift(self, belief: Belief, transition: Transition) -> Scalar | Tensor:
        """What the other latents' means move the weights by."""
        return regression.drift(belief.aux, transition.F[0])

    def propagate(
        self, belief: Belief, transition: Transition, p: Tensor | None = None
    ) -> tuple[Scalar | Tensor, Belief]:
        """Σ⁻ = c F Σ⁺ Fᵀ + Q, pulled, and the latents' means F μ⁺."""
        aux = regression.carry(belief.aux, transition)
        (root,) = belief.cov
        aged = predict_root(_square(root), transition)
        return self.drift(belief, transition), Belief(aux, Root(aged.reshape(root.shape)))

    def condition(
        self, disp: Scalar | Tensor, prior: Belief, obs: Observation, transition: Transition
    ) -> tuple[Tensor, Belief]:
        """Σ⁺ = ((Σ⁻)⁻¹ + Λ)⁻¹, and the displacement −Σ⁺(ĝ + Λδ) after having moved by δ."""
        (root,), k = prior.cov, 1 + len(prior.aux)
        rows, grad = _rows(obs.curvature), obs.grad.reshape(-1)
        if prior.aux:
            grad = grad + rows.mT @ (rows @ (disp + 0 * obs.grad).reshape(-1))
        square = _square(root)
        posterior = condition_seen(square, rows @ square[::k])  # rows speak of the weights alone
        moved = -(posterior @ (posterior[::k].mT @ grad)).reshape(-1, k)
        weight, *others = (x.reshape(obs.grad.shape) for x in moved.unbind(-1))
        aux = tuple(m + x for m, x in zip(prior.aux, others, strict=True))
        belief = Belief(aux, Root(posterior.reshape(root.shape)))
        return (disp + weight if prior.aux else weight), belief

    def variance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """The covariance's diagonal, where it speaks of weights."""
        root = belief.cov[0].square().sum(-1)
        return root[..., 0] if belief.aux else root

    def covariance(self, belief: Belief, curvature: Diag | None, transition: Transition) -> Tensor:
        """The covariance of all weights' latents, ``(kn, kn)``, in the order of ``flatten()``."""
        root = _square(belief.cov[0])
        return root @ root.mT

    def sample(
        self, belief: Belief, curvature: Diag | None, transition: Transition, eps: Tensor
    ) -> Tensor:
        """L ε of the weights' own root, which is found by QR where there are other latents."""
        weights = _square(belief.cov[0])[:: 1 + len(belief.aux)]
        if belief.aux:
            weights = torch.linalg.qr(weights.mT, mode="r").R.mT
        return (weights @ eps.reshape(-1)).reshape(eps.shape)


def _square(root: Tensor) -> Tensor:
    """A root as a square matrix."""
    return root.reshape(root.shape[-1], root.shape[-1])


def _rows(curvature: Diag | LowRank | Outer) -> Tensor:
    """J with Λ = JᵀJ, ``(r, n)``."""
    if isinstance(curvature, LowRank):
        return curvature.rows.flatten(1) if curvature.rows.dim() > 1 else curvature.rows[:, None]
    assert isinstance(curvature, Diag), "engine.check admits no other curvature"
    return curvature.values.reshape(-1).sqrt().diag()
