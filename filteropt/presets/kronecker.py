"""The Kronecker filter: weight matrices with a covariance of inputs and one of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from filteropt.approximations import Diagonal, Kronecker, LayerGradients, SquaredGradient
from filteropt.engine import Filter
from filteropt.gathering.layer_homes import biases, covered
from filteropt.hyperparameters import (
    Count,
    LearningRate,
    Momentum,
    Nonnegative,
    Positive,
    ScheduledRate,
    check_values,
    checked,
    hints_of,
)
from filteropt.models import KroneckerDrift
from filteropt.optimizer import FilterOptimizer

__all__ = ["KroneckerFilter", "kronecker_filter"]


@checked
def kronecker_filter(
    lr: LearningRate = 1e-3,
    lr_sgd: ScheduledRate = 0.1,
    beta1: Momentum = 0.9,
    weight_decay: Nonnegative | None = 0.05,
    *,
    batch_size: Positive = 1,
    projection: Literal["first-order", "forward", "reverse"] = "reverse",
    rounds: Count = 3,
    left: Nonnegative = 0.0,
    right: Nonnegative = 0.0,
    drift_every: Count = 1,
    sharing: Literal["expand", "reduce"] = "expand",
    rows: Count | None = 1024,
    bias: Literal["joint", "diagonal"] = "joint",
    dtype: Literal["float32", "float64"] | None = None,
    max_dim: Count = 2048,
    structure: Literal["kronecker", "diagonal"] = "kronecker",
) -> Filter:
    """The composition of :class:`~filteropt.KroneckerFilter`, which chooses ``structure``."""
    drift = KroneckerDrift(
        lr, lr_sgd / batch_size, weight_decay, left=left, right=right, every=drift_every
    )
    if structure == "diagonal":  # what is no layer's matrix
        alone = KroneckerDrift(lr, lr_sgd / batch_size, weight_decay)
        return Filter(alone, SquaredGradient(batch_size, beta1), Diagonal())
    return Filter(
        drift,
        LayerGradients(batch_size, beta1, rows=rows, sharing=sharing, joint=bias == "joint"),
        Kronecker(projection, rounds, max_dim=max_dim + 1, dtype=dtype),  # and a bias
    )


class KroneckerFilter(FilterOptimizer):
    r"""The Kalman filter of whole weight matrices, with Kronecker-factored covariances.

    For a layer's matrix W of gradient G, inputs x and gradients δ at its outputs,

    .. math::
        W \leftarrow (1-\lambda) W - \Sigma_\delta^+ \langle G \rangle \Sigma_x^+ , \qquad
        \Sigma^+ = \Sigma_x^+ \otimes \Sigma_\delta^+ \approx
        \Bigl((\Sigma^-)^{-1} + \sum_r x_r x_r^\top \otimes \delta_r\delta_r^\top\Bigr)^{-1} ,

    projected onto Kronecker products; between steps the belief drifts by fixed noise, as in
    :class:`~filteropt.AdaBayes`, or as a whole matrix does (``left``, ``right``). Where data are
    many it whitens the gradient from both sides, where they are few it takes SGD's steps. The
    matrices are those of Linear, Conv1d to Conv3d and Embedding layers, with a layer's bias as one
    more column, whose input is 1; every other parameter is filtered as AdaBayes does, and
    :meth:`report` says which is which. What is approximated: the examples' squared gradients stand
    for the curvature, places (times, pixels) of an example for examples, and correlations between
    tensors are dropped.

    A matrix of M×N weights keeps M² + N² numbers (of its bias, too: N + 1 for N) and one average
    per weight. A bias without a gradient in a step stays where it is; one whose weight has none
    is an error.

    Args:
        model: the module that owns the parameters and whose output the loss is computed from.
        lr: η, the rate of drift per step; [0, inf). 0 freezes the groups.
        lr_sgd: the rate in the data-poor limit (SGD's, for the mean loss); (0, inf).
        beta1: decay of the gradient's running average; [0, 1).
        weight_decay: decoupled, per unit of ``lr`` as in AdamW; [0, inf). ``None`` takes the decay
            that the dynamics themselves imply, η²/(2σ²) per step.
        batch_size: B, the examples that the loss averages over: the batch size for a mean loss, 1
            for a summed one; (0, inf).
        projection: how beliefs return to Kronecker products; see
            :class:`~filteropt.approximations.Kronecker`.
        rounds: the most rounds of an exact projection; [1, inf).
        left: variance of a random matrix' entries that multiplies W from the left in every step;
            [0, inf). See :class:`~filteropt.models.KroneckerDrift`.
        right: the same from the right.
        drift_every: steps between two drifts of the matrices, each of which is worth as many;
            [1, inf). A drift is the dearest part of a step.
        sharing: ``"expand"`` or ``"reduce"``, what becomes of the places of an example.
        rows: the most rows per layer and backward pass, a sample; [1, inf), or ``None`` for all.
        bias: ``"joint"``, a layer's bias is a column of its weight, which is that of no other
            layer; or ``"diagonal"``, filtered weight by weight.
        dtype: ``"float32"`` or ``"float64"``, of the factors; ``None`` for the belief's.
        max_dim: the longest side of a matrix that gets factors; [1, inf). Others are filtered
            weight by weight.
        diagonal: parameters, or their names, that are to be filtered weight by weight, such as
            weights that the model uses without calling their layer. What attention does so with,
            its output's projection, is among them anyway.
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"posterior"`` or ``"prediction"``, the strict filter.
        maximize: maximise instead of minimise.
        on_nonfinite: ``"raise"``, ``"skip"`` the step, or ``"ignore"``: look at no gradient.
        fused: ``None`` or ``False``; steps of matrices are not compiled.
        capturable: ``False``; steps of matrices are not captured.
        belief_dtype: ``None``; matrices need all their bits.

    Raises:
        TypeError: no module, an unknown hyperparameter or one of the wrong kind.
        ValueError: a hyperparameter outside its range.

    Example:
        >>> import torch, filteropt
        >>> model = torch.nn.Linear(3, 2)
        >>> opt = filteropt.KroneckerFilter(model, lr=1e-2, batch_size=5)
        >>> model(torch.eye(5, 3)).square().mean().backward()
        >>> opt.step()
        >>> [factor.shape for factor in opt.posterior_covariance(model.weight)]
        [torch.Size([4, 4]), torch.Size([2, 2])]

    Source: Aitchison (2018) Sec. 2.1.3 and 4.3; derived in :eq:`eq-kronecker-minibatch` and
    :eq:`eq-kronecker-drift`.
    """

    preset = staticmethod(kronecker_filter)

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        lr_sgd: float = 0.1,
        beta1: float = 0.9,
        weight_decay: float | None = 0.05,
        *,
        batch_size: float = 1,
        projection: Literal["first-order", "forward", "reverse"] = "reverse",
        rounds: int = 3,
        left: float = 0.0,
        right: float = 0.0,
        drift_every: int = 1,
        sharing: Literal["expand", "reduce"] = "expand",
        rows: int | None = 1024,
        bias: Literal["joint", "diagonal"] = "joint",
        dtype: Literal["float32", "float64"] | None = None,
        max_dim: int = 2048,
        diagonal: Sequence[str | Tensor] = (),
        **keywords: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"KroneckerFilter: model={type(model).__name__} must be the torch.nn.Module that "
                f"owns the parameters; its layers' inputs and outputs are gathered"
            )
        check_values("KroneckerFilter", {"max_dim": max_dim}, {"max_dim": Count})
        check_values("KroneckerFilter", {"bias": bias}, hints_of(kronecker_filter))
        if "structure" in keywords:
            raise TypeError(
                f"KroneckerFilter: structure={keywords['structure']!r} is chosen by layer; name "
                f"the parameters that are to be filtered weight by weight in diagonal"
            )
        alone = _named(model, diagonal)
        groups = _structures(model, max_dim, alone, joint=bias == "joint")
        super().__init__(
            [{"params": some, "structure": name} for name, some in groups.items() if some],
            kronecker_filter, lr=lr, lr_sgd=lr_sgd, beta1=beta1, weight_decay=weight_decay,
            batch_size=batch_size, projection=projection, rounds=rounds, left=left, right=right,
            drift_every=drift_every, sharing=sharing, rows=rows, bias=bias, dtype=dtype,
            max_dim=max_dim, model=model, **keywords,
        )  # fmt: skip


def _named(model: nn.Module, diagonal: Sequence[str | Tensor]) -> set[Tensor]:
    """The parameters that are given, also by name, and those that layers never tell of."""
    known, alone = dict(model.named_parameters(remove_duplicate=False)), set()
    for given in diagonal:
        if isinstance(given, str) and given not in known:
            raise ValueError(
                f"KroneckerFilter: diagonal={given!r} is no parameter of the model; those are "
                f"{', '.join(known)}"
            )
        alone.add(known[given] if isinstance(given, str) else given)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):  # uses its projection's weight by itself
            alone.update(module.out_proj.parameters())
    return alone


def _structures(
    model: nn.Module, max_dim: int, alone: set[Tensor], *, joint: bool
) -> dict[str, list[Any]]:
    """Matrices, each with its bias after it, and all other parameters, with their names."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    columns = biases(model) if joint else {}
    groups: dict[str, list[Any]] = {"kronecker": [], "diagonal": []}
    for p in covered(model):
        if p in alone or not p.numel() or max(len(p), p[0].numel()) > max_dim:
            continue
        bias = columns.get(p) if p.requires_grad and columns.get(p) not in alone else None
        groups["kronecker"] += [(names[q], q) for q in (p, bias) if q is not None]
    taken = {p for _, p in groups["kronecker"]}
    groups["diagonal"] = [(name, p) for p, name in names.items() if p not in taken]
    return groups
