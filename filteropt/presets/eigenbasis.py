"""The eigenbasis filter: scalar filters in the eigenbasis of Kronecker factors."""

from __future__ import annotations

from typing import Literal

from filteropt.approximations import (
    AveragedSquaredGradient,
    Diagonal,
    FixedPoint,
    KroneckerEigenbasis,
    SquaredGradient,
)
from filteropt.engine import Filter
from filteropt.hyperparameters import (
    Count,
    LearningRate,
    Momenta,
    Momentum,
    Nonnegative,
    Positive,
    ScheduledRateOrInf,
    checked,
)
from filteropt.models import FixedNoise
from filteropt.optimizer import FilterOptimizer

__all__ = ["EigenbasisFilter", "eigenbasis_filter"]


@checked
def eigenbasis_filter(
    lr: LearningRate = 3e-3,
    lr_sgd: ScheduledRateOrInf = 0.1,
    betas: Momenta = (0.95, 0.95),
    weight_decay: Nonnegative | None = 0.01,
    *,
    batch_size: Positive = 1,
    update_every: Count = 10,
    stationary: bool = True,
    factors: Literal["gradients", "layers"] = "gradients",
    factor_beta: Momentum | None = None,
    refresh: Literal["qr", "eigh"] = "qr",
    transport: Literal["project", "keep"] = "project",
    max_dim: Count = 2048,
    eps: Nonnegative = 0.0,
    sharing: Literal["expand", "reduce"] = "expand",
    rows: Count | None = 1024,
) -> Filter:
    """The composition of :class:`~filteropt.EigenbasisFilter` (same arguments)."""
    if eps and not stationary:
        raise ValueError(
            f"eigenbasis_filter: eps={eps!r} is added to the average that stationary=True keeps; "
            f"leave it out, or pass stationary=True"
        )
    beta = betas[1] if factor_beta is None else factor_beta
    return Filter(
        FixedNoise(lr, lr_sgd / batch_size, weight_decay),
        AveragedSquaredGradient(batch_size, betas, eps)
        if stationary
        else SquaredGradient(batch_size, betas[0]),
        FixedPoint() if stationary else Diagonal(),
        KroneckerEigenbasis(
            factors, beta, update_every, refresh, transport, max_dim, sharing, rows
        ),
    )


class EigenbasisFilter(FilterOptimizer):
    r"""AdaBayes-FP, or AdaBayes, in the eigenbasis of each matrix' Kronecker factors.

    With the eigenvectors :math:`U_\delta` and :math:`U_x` of the running averages of
    :math:`GG^\top` and :math:`G^\top G`, and :math:`\tilde G = U_\delta^\top G U_x`,

    .. math::
        W \leftarrow (1-\lambda) W
        - U_\delta \bigl(\Sigma^+ \odot \langle\tilde G\rangle\bigr) U_x^\top ,

    where every entry of :math:`\Sigma^+` is that of the scalar filter with the squares of
    :math:`\tilde G` (:class:`~filteropt.AdaBayesFP`, or :class:`~filteropt.AdaBayes` with
    ``stationary=False``). ``lr_sgd = inf`` is SOAP in the same basis (with ``transport="keep"`` and
    without its ε); a basis that stays the identity is AdaBayes itself. Vectors, and sides longer
    than ``max_dim``, are not rotated. What is approximated: correlations that the basis does not
    take away are dropped, at every turn, too.

    A matrix of M×N weights keeps two numbers per weight and 2 (M² + N²) of its basis. Any other
    preset runs in this basis by ``variant(preset, basis=KroneckerEigenbasis())``.

    Args:
        params: parameters, named parameters or groups of them.
        lr: η, the rate in the data-rich limit (Adam's, SOAP's); [0, inf). 0 freezes the group.
        lr_sgd: the rate in the data-poor limit (SGD's, for the mean loss); (0, inf], and finite
            unless ``stationary``.
        betas: decays of the averages of the gradient and of its square in the basis; [0, 1) each.
            With ``stationary=False`` the second is the factors' alone.
        weight_decay: decoupled, per unit of ``lr`` as in AdamW; [0, inf). ``None`` takes the decay
            that the dynamics themselves imply, η²/(2σ²) per step.
        batch_size: B, the examples that the loss averages over: the batch size for a mean loss, 1
            for a summed one; (0, inf).
        update_every: steps between two turns of the basis; [1, inf).
        stationary: whether variances are always at their fixed point, else filtered step by step.
        factors: ``"gradients"`` as above, or ``"layers"``: the second moments of each layer's
            inputs and of the gradients at its outputs, which takes ``model=``.
        factor_beta: decay of the factors; [0, 1). ``None`` takes that of the squares.
        refresh: ``"qr"``, a step of orthogonal iteration per turn, or ``"eigh"``.
        transport: what becomes of variances and squares at a turn; see
            :class:`~filteropt.approximations.KroneckerEigenbasis`.
        max_dim: the longest side that is rotated; [1, inf).
        eps: added to the average square of the summed loss' gradient; [0, inf).
        sharing: with ``factors="layers"``, what becomes of the places of an example: ``"expand"``
            or ``"reduce"``.
        rows: with ``factors="layers"``, the most rows per layer and backward pass, a sample;
            [1, inf), or ``None`` for all.
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"posterior"`` or ``"prediction"``, the strict filter.
        maximize: maximise instead of minimise.
        on_nonfinite: ``"raise"``, ``"skip"`` the step, or ``"ignore"``: look at no gradient.
        fused: ``None`` or ``False``; steps of matrices are not compiled.
        capturable: ``False``; steps of matrices are not captured.
        belief_dtype: ``None``; matrices need all their bits.
        model: the module that owns the parameters; needed for ``factors="layers"``, else for their
            names.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind, or a sharded parameter.
        ValueError: a hyperparameter outside its range.

    Example:
        >>> import torch, filteropt
        >>> layer = torch.nn.Linear(3, 2)
        >>> opt = filteropt.EigenbasisFilter(layer.parameters(), lr=1e-2, batch_size=4)
        >>> layer(torch.eye(4, 3)).square().mean().backward()
        >>> opt.step()
        >>> opt.posterior_variance(layer.weight).shape
        torch.Size([2, 3])

    Source: this project; the parts are those of Aitchison (2020) and Vyas et al. (2024). Derived in
    :eq:`eq-eigenbasis`.
    """

    preset = staticmethod(eigenbasis_filter)
