"""The limits of the filters of whole matrices: natural gradient, whitening and SOAP."""

from __future__ import annotations

from typing import Literal

from filteropt.approximations import Diagonal, Kronecker, LayerGradients, SquaredGradient
from filteropt.engine import Filter
from filteropt.hyperparameters import (
    Count,
    Decay,
    LearningRate,
    Momenta,
    Momentum,
    Nonnegative,
    Positive,
    checked,
)
from filteropt.models import ForgetToPrior, RandomWalk
from filteropt.presets.eigenbasis import eigenbasis_filter
from filteropt.types import Dynamics

__all__ = ["kronecker_natural_gradient", "kronecker_whitening", "soap"]

Structure = Literal["kronecker", "diagonal"]


@checked
def kronecker_natural_gradient(
    forgetting: Decay = 0.05,
    beta1: Momentum | None = None,
    *,
    batch_size: Positive = 1,
    prior_variance: Positive = 1e-2,
    rows: Count | None = 1024,
    structure: Structure = "kronecker",
) -> Filter:
    r"""Natural gradient with Kronecker factors, as K-FAC's: evidence that fades to a prior.

    .. math:: W \leftarrow W - \Sigma_\delta\, G\, \Sigma_x, \qquad
        (\Sigma_x \otimes \Sigma_\delta)^{-1} \approx \frac1\lambda
        \sum_r x_r x_r^\top \otimes \delta_r \delta_r^\top + \frac1{\sigma_0^2}

    at rest, with the sum's average. The prior's precision is K-FAC's damping; it bounds weights
    whose inputs are never on, and pulls the weights to 0 as their evidence fades. What differs from
    K-FAC: examples' own gradients instead of sampled labels', both factors from one KL projection
    instead of independent averages, and what a prior does to a projection.

    Args:
        forgetting: λ, the fraction of evidence that fades per step, and the rate; (0, 1).
        beta1: decay of the gradient's running average; [0, 1). ``None`` keeps none.
        batch_size: B, the examples that the loss averages over; (0, inf).
        prior_variance: σ₀², of every weight, in squared weight units; (0, inf).
        rows: the most rows per layer and backward pass; [1, inf), or ``None`` for all.
        structure: ``"kronecker"``, or ``"diagonal"`` for parameters that are no layer's matrix.

    Returns:
        The composition.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch, filteropt
        >>> from filteropt.presets import kronecker_natural_gradient
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> opt = filteropt.FilterOptimizer(
        ...     model.parameters(), kronecker_natural_gradient, model=model, batch_size=4
        ... )
        >>> model(torch.eye(4, 3)).square().mean().backward()
        >>> opt.step()

    Source: U (Aitchison 2018) Sec. 2.1.3; see :eq:`eq-kronecker-rest`.
    """
    layers = LayerGradients(batch_size, beta1, rows=rows)
    return _structured(ForgetToPrior(forgetting, prior_variance), layers, None, structure)


@checked
def kronecker_whitening(
    lr: LearningRate = 1e-3,
    beta1: Momentum | None = 0.9,
    *,
    batch_size: Positive = 1,
    initial_variance: Positive = 1e-2,
    weight_decay: Nonnegative = 0.0,
    rows: Count | None = 1024,
    structure: Structure = "kronecker",
) -> Filter:
    r"""Whitening from both sides, the Kronecker analogue of RMSprop: the random walk at rest.

    .. math:: W \leftarrow W - \eta\, D^{-1/2} \langle G \rangle X^{-1/2}, \qquad
        X \otimes D \approx \sum_r x_r x_r^\top \otimes \delta_r \delta_r^\top \text{ on average} .

    Args:
        lr: η, the drift per step, and the rate; [0, inf).
        beta1: decay of the gradient's running average; [0, 1). ``None`` keeps none.
        batch_size: B, the examples that the loss averages over; (0, inf).
        initial_variance: of every weight, in squared weight units; (0, inf).
        weight_decay: decoupled, per unit of ``lr``; [0, inf).
        rows: the most rows per layer and backward pass; [1, inf), or ``None`` for all.
        structure: ``"kronecker"``, or ``"diagonal"`` for parameters that are no layer's matrix.

    Returns:
        The composition.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch, filteropt
        >>> from filteropt.presets import kronecker_whitening
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> opt = filteropt.FilterOptimizer(
        ...     model.parameters(), kronecker_whitening, model=model, batch_size=4
        ... )
        >>> model(torch.eye(4, 3)).square().mean().backward()
        >>> opt.step()

    Source: U (Aitchison 2018) Sec. 4.3; see :eq:`eq-kronecker-rest`.
    """
    layers = LayerGradients(batch_size, beta1, rows=rows)
    return _structured(RandomWalk(lr, weight_decay), layers, initial_variance, structure)


def _structured(
    dynamics: Dynamics, layers: LayerGradients, variance: float | None, structure: Structure
) -> Filter:
    """The filter of a layer's matrix, or that of other parameters with the same dynamics."""
    if structure == "diagonal":
        squares = SquaredGradient(layers.scale, layers.beta1)
        return Filter(dynamics, squares, Diagonal(variance))
    return Filter(dynamics, layers, Kronecker("reverse", initial_variance=variance))


@checked
def soap(
    lr: LearningRate = 3e-3,
    betas: Momenta = (0.95, 0.95),
    weight_decay: Nonnegative = 0.01,
    *,
    update_every: Count = 10,
    max_dim: Count = 2048,
) -> Filter:
    r"""SOAP without its ε: the eigenbasis filter at its fixed point, without a prior.

    .. math:: W \leftarrow (1-\lambda)W - \eta\, U_\delta
        \frac{U_\delta^\top \langle G \rangle U_x}{\sqrt{\langle (U_\delta^\top G U_x)^2 \rangle}}
        U_x^\top .

    As in the released code the first gradient of a matrix makes its basis and moves nothing.

    Args:
        lr: η; [0, inf).
        betas: decays of the averages of the gradient and of its square, of which the second is the
            factors', too; [0, 1) each.
        weight_decay: decoupled, per unit of ``lr``; [0, inf).
        update_every: steps between two turns of the basis; [1, inf).
        max_dim: the longest side that is rotated; [1, inf).

    Returns:
        The composition.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch, filteropt
        >>> from filteropt.presets import soap
        >>> w = torch.nn.Parameter(torch.eye(3))
        >>> opt = filteropt.FilterOptimizer([w], soap, lr=0.01)
        >>> w.square().sum().backward()
        >>> opt.step()

    Source: Vyas et al. (2024); see :eq:`eq-eigenbasis`.
    """
    return eigenbasis_filter(
        lr, float("inf"), betas, weight_decay, update_every=update_every, transport="keep",
        max_dim=max_dim,
    )  # fmt: skip
