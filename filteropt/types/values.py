"""What flows between the slots of a filter: beliefs, observations, transitions, numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

__all__ = [
    "Belief",
    "Diag",
    "Flow",
    "LayerRows",
    "Leaves",
    "LowRank",
    "Memory",
    "Observation",
    "Outer",
    "Packed",
    "Raw",
    "Rows",
    "Scalar",
    "State",
    "Transition",
    "Turn",
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
        mixing: variances a and b of small random matrices A and B per step, by which a weight
            matrix W is multiplied, :math:`W \leftarrow (1 + A) W (1 + B)^\top`, if any.
    """

    F: Rows
    Q: Packed
    c: Scalar = 1.0
    decay: Scalar | None = None
    lost: Scalar | None = None
    flow: Flow | None = None
    pull: Scalar | None = None
    mixing: tuple[Scalar, Scalar] | None = None


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


class LayerRows(NamedTuple):
    r"""What passed through a layer whose weight is a matrix W, M×N, row by row.

    Row r is one example, or one of the places (times, pixels) where an example met the layer: it
    adds :math:`\delta_r x_r^\top` to the gradient of W.

    Attributes:
        inputs: the layer's inputs :math:`x_r`, ``(R, N)``.
        deltas: the loss' gradients :math:`\delta_r` at its outputs, ``(R, M)``.
    """

    inputs: Tensor
    deltas: Tensor


class Outer(NamedTuple):
    r"""A precision of a matrix W, :math:`\sum_r x_r x_r^\top \otimes \delta_r \delta_r^\top`.

    Attributes:
        inputs: :math:`x_r`, ``(R, N)``.
        deltas: :math:`\delta_r`, ``(R, M)``; their product in inverse weight units.
    """

    inputs: Tensor
    deltas: Tensor


class Observation(NamedTuple):
    r"""A local Gaussian likelihood, :math:`-\log p(d) = g^\top d + \tfrac12 d^\top \Lambda d`.

    Attributes:
        grad: :math:`g`, the gradient of the summed negative log-likelihood at ``d = 0``.
        curvature: :math:`\Lambda`, the precision that the minibatch contributes.
    """

    grad: Tensor
    curvature: Diag | LowRank | Outer


class Raw(NamedTuple):
    r"""What was gathered for one parameter tensor before the step.

    Attributes:
        grad: ``p.grad`` in the belief's dtype (sign flipped under ``maximize``).
        rows: directions :math:`j_r`, shaped ``(r, *p.shape)``, whose :math:`\sum j_r j_r^\top` is
            the minibatch's Gauss–Newton matrix. This and what follows is ``None`` unless needed.
        squares: that matrix' diagonal, or another sum of squared gradients, shaped like ``p``.
        products: the gradient at a posterior sample times the sample's offset over its variance.
        layer: inputs of the parameter's layer and gradients at its outputs.
    """

    grad: Tensor
    rows: Tensor | None = None
    squares: Tensor | None = None
    products: Tensor | None = None
    layer: LayerRows | None = None


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


class Turn(NamedTuple):
    r"""A change of coordinates :math:`x' = Rx` with an orthogonal R.

    Attributes:
        means: maps what is linear in the coordinates, :math:`x \mapsto Rx`: means and gradients.
        variances: maps one number per coordinate that is quadratic in it, variances or curvature:
            :math:`d \mapsto` the diagonal of :math:`R\,\mathrm{diag}(d)R^\top`, or another map
            that the basis states.
    """

    means: Callable[[Tensor], Tensor]
    variances: Callable[[Tensor], Tensor]
