"""What an optimizer believes about every parameter, as a table: scale, regime, memory, warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from filteropt.approximations import SquareRooted
from filteropt.dtypes import belief_dtype
from filteropt.engine import Filter, initial_variance
from filteropt.linalg import lost_variance, scalar, stationary_variance
from filteropt.measure import local
from filteropt.types import Transition

__all__ = ["Report", "Row", "report", "variance_without_evidence"]

NAN = float("nan")
Fractions: TypeAlias = tuple[float, float, float]
POOR = 0.9
RICH = {"Adam": 1 - 0.9**2, "whitening": 1 - 0.9**2, "natural gradient": 1 - 0.9}
"""Variances, over that without evidence, from which they are within a tenth of either limit."""
FALLEN, WIDE = 1e-6, 10.0
"""The fraction of the first variance, and the multiple of the weights, that are warned of."""
LIKE = {
    "Adam": "as Adam moves them",
    "whitening": "along the whitened gradient",
    "natural gradient": "by natural gradient",
}
GATHERED = {"jacobians": "Jacobians", "labels": "fisher passes", "samples": "draws"}


class Row(NamedTuple):
    """One parameter's row; NaN where there is nothing to say.

    Attributes:
        name: the parameter's name, or its group and place.
        shape: its shape.
        steps: steps taken with a gradient.
        rms: root of the weights' mean square.
        sd: median standard deviation of the weights' posterior, in weight units.
        sd_low: its 5 % quantile.
        sd_high: its 95 % quantile.
        relative: ``sd`` over ``rms``.
        settled: median of the variance over that without evidence.
        data_poor: the fraction of weights that move as SGD moves them.
        between: the fraction in between.
        data_rich: the fraction that move as Adam, or natural gradient, moves them.
        limit: which of them, ``"Adam"``, for matrices in both of their factors' coordinates
            ``"whitening"``, or ``"natural gradient"``; empty if none is meant.
        state_bytes: what is kept of each weight beside itself, in bytes; of a weight and a bias
            that are filtered together, on average.
        gathered: where the curvature comes from; ``"never"`` before any gradient.
        warnings: signs that a belief has collapsed.
    """

    name: str
    shape: tuple[int, ...]
    steps: int
    rms: float
    sd: float
    sd_low: float
    sd_high: float
    relative: float
    settled: float
    data_poor: float
    between: float
    data_rich: float
    limit: str
    state_bytes: float
    gathered: str
    warnings: tuple[str, ...]


class Report(tuple[Row, ...]):
    """The rows of all parameters; printed, a table."""

    __slots__ = ()

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns by name, as ``pandas.DataFrame`` takes them."""
        return {name: [getattr(row, name) for row in self] for name in Row._fields}

    def __str__(self) -> str:
        """The table, then the warnings."""
        head = ("parameter", "shape", "steps", "sd", "5 %", "95 %", "sd/rms", "data-poor",
                "between", "data-rich", "bytes", "curvature")  # fmt: skip
        lines = [head, *(tuple(_cells(row)) for row in self)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        left = {0, 1, len(head) - 1}
        text = [
            "  ".join(
                cell.ljust(width) if i in left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        text.insert(1, "-" * max(map(len, text)))
        for limit in sorted({row.limit for row in self if row.limit}):
            text.append(f"data-poor weights move as SGD moves them, data-rich ones {LIKE[limit]}")
        text += [f"warning: {row.name}: {warning}" for row in self for warning in row.warnings]
        return "\n".join(text)


def _cells(row: Row) -> Iterator[str]:
    yield row.name
    yield "×".join(map(str, row.shape)) or "scalar"
    yield str(row.steps)
    for number in (row.sd, row.sd_low, row.sd_high, row.relative):
        yield "–" if math.isnan(number) else f"{number:.2g}"
    for fraction in (row.data_poor, row.between, row.data_rich):
        yield "–" if math.isnan(fraction) else f"{fraction:.0%}"
    yield "–" if math.isnan(row.state_bytes) else f"{row.state_bytes:.3g}"
    yield row.gathered


@torch.no_grad()
def report(opt: Any) -> Report:
    """The table of an optimizer; see :meth:`filteropt.FilterOptimizer.report`."""
    return Report(
        _row(opt, group, p, name)
        for index, group in enumerate(opt.param_groups)
        for p, name in zip(group["params"], _names(opt, index), strict=True)
    )


def _names(opt: Any, index: int) -> list[str]:
    """What a group's parameters are called."""
    group = opt.param_groups[index]
    if "param_names" in group:
        return list(group["param_names"])
    known = {p: name for name, p in opt.model.named_parameters()} if opt.model is not None else {}
    return [known.get(p, f"{index}.{i}") for i, p in enumerate(group["params"])]


def _row(opt: Any, group: dict[str, Any], p: Tensor, name: str) -> Row:
    """One parameter's row."""
    filter: Filter = opt._bind(group).filter
    state = opt.state.get(p) or {}
    steps = int(state.get("step", 0))
    weights = local(p.detach()).to(belief_dtype(p))
    rms = float(weights.square().mean().sqrt())
    size = _bytes(opt, group, p)
    believes = bool(group["base_lr"] or group["lr"]) and weights.numel() > 0
    variance = local(opt.posterior_variance(p)) if believes else weights.new_empty(0)
    low, sd, high = _quantiles(variance, (0.05, 0.5, 0.95))
    limit, settled, fractions = (
        _regime(filter, variance) if believes else ("", NAN, (NAN, NAN, NAN))
    )
    if not steps and filter.dynamics.transition(scalar(1)).pull is not None:
        fractions = (NAN, NAN, NAN)  # curvature to start from is no data
    wide = sd / rms if rms > 0 else NAN
    return Row(
        name, tuple(p.shape), steps, rms, sd, low, high, wide, settled, *fractions, limit, size,
        _gathered(opt, group, filter, p, steps),
        tuple(_warnings(filter, variance, wide if steps else NAN)),
    )  # fmt: skip


def _bytes(opt: Any, group: dict[str, Any], p: Tensor) -> float:
    """What is kept of each weight of the block that a parameter is in."""
    block = opt._block(group, opt._bind(group), p)
    kept = [(opt.state.get(q) or opt._fresh(group, block, q)).values() for q in block.members]
    tensors = [local(x) for values in kept for x in values if isinstance(x, Tensor)]
    total = sum(local(q).numel() for q in block.members)
    return sum(x.numel() * x.element_size() for x in tensors) / max(1, total)


def _quantiles(variance: Tensor, chances: tuple[float, ...]) -> list[float]:
    """Quantiles of finite standard deviations, each one of them; NaN where there are none."""
    finite = variance[variance.isfinite()].sort().values
    if not finite.numel():
        return [NAN] * len(chances)
    places = [round(chance * (finite.numel() - 1)) for chance in chances]
    return [math.sqrt(float(finite[i])) for i in places]


def _regime(filter: Filter, variance: Tensor) -> tuple[str, float, Fractions]:
    """The data-rich limit, the median settled fraction, and how many weights are where."""
    transition = filter.dynamics.transition(scalar(1))
    alone = variance_without_evidence(transition)
    if (
        alone is None or transition.mixing is not None
    ):  # which adds what the other weights' means say
        return "", NAN, (NAN, NAN, NAN)
    ratio = variance / alone
    settled = _quantiles(ratio, (0.5,))[0] ** 2
    if isinstance(filter.posterior, SquareRooted):  # its mean does not move by its variance
        return "", settled, (NAN, NAN, NAN)
    poor = float((ratio > POOR).double().mean())
    limit = _limit(transition)
    matrices = filter.posterior.mixes or (filter.basis.turns and variance.dim() > 1)
    if limit == "Adam" and matrices:
        limit = "whitening"
    if not limit:
        return "", settled, (poor, NAN, NAN)
    rich = float((ratio < RICH[limit]).double().mean())
    return limit, settled, (poor, max(0.0, 1 - poor - rich), rich)


def _limit(transition: Transition) -> str:
    """As what data-rich weights move, where that is known in closed form."""
    if len(transition.F) > 1:
        return ""
    driven, pulled = float(transition.Q[0]) > 0, bool(transition.pull)
    if driven == pulled:
        return ""
    return "Adam" if driven else "natural gradient"


def variance_without_evidence(transition: Transition) -> float | None:
    """The variance of a weight at which the dynamics alone come to rest.

    Args:
        transition: the dynamics.

    Returns:
        The variance, in squared weight units; ``None`` where there is none or any would do.

    Example:
        >>> from filteropt.models import FixedNoise, RandomWalk
        >>> exact = FixedNoise(lr=0.1, prior_variance=0.5, discretization="exact")
        >>> round(variance_without_evidence(exact.transition(1)), 12)
        0.5
        >>> variance_without_evidence(RandomWalk(0.1).transition(1)) is None
        True
    """
    k, c = len(transition.F), float(transition.c)
    lost = float(lost_variance(transition))
    if k == 1 and transition.pull:
        pull = torch.tensor(float(transition.pull), dtype=torch.float64)
        return float(stationary_variance(pull, 1 - lost, float(transition.Q[0]), lost))
    if k == 1:
        return float(transition.Q[0]) / lost if lost > 0 and float(transition.Q[0]) > 0 else None
    factor = torch.tensor([[float(f) for f in row] for row in transition.F], dtype=torch.float64)
    if transition.pull or c * float(torch.linalg.eigvals(factor).abs().max()) ** 2 >= 1:
        return None
    upper = iter(transition.Q)
    noise = torch.zeros(k, k, dtype=torch.float64)
    for i in range(k):
        for j in range(i, k):
            noise[i, j] = noise[j, i] = float(next(upper))
    kept = torch.eye(k * k, dtype=torch.float64) - c * torch.kron(factor, factor)
    return float(torch.linalg.solve(kept, noise.reshape(-1))[0])


def _gathered(opt: Any, group: dict[str, Any], filter: Filter, p: Tensor, steps: int) -> str:
    """Where a parameter's curvature comes from, and the coordinates of its basis."""
    likelihood = filter.likelihood
    if not steps:
        return "never" if p.requires_grad and group["lr"] else "frozen"
    block = opt._block(group, opt._bind(group), p)
    rows = _seen(opt._gathering.layers, block.weight).replace("hooks", "rows")
    basis = f", basis of {rows}" if filter.basis.needs > {"grad"} and p.dim() > 1 else ""
    if not likelihood.informative:
        return "nothing" + basis
    if likelihood.needs <= {"grad"}:
        return "gradient" + basis
    source = likelihood.core.source
    if source == "layers":
        return rows
    return _seen(opt._gathering.examples, p) if source == "examples" else GATHERED[source]


def _seen(watcher: Any, p: Tensor) -> str:
    """How a parameter's examples were last looked at."""
    seen = "" if watcher is None else watcher.coverage.get(watcher.names.get(p), "")
    return seen or "not seen"


def _warnings(filter: Filter, variance: Tensor, wide: float) -> Iterator[str]:
    """Signs that a belief has collapsed, or was never one."""
    total = variance.numel()
    if not total:
        return
    if odd := int((~variance.isfinite()).sum()):
        yield f"{odd} of {total} variances are not finite: neither data nor a prior bound them"
    floor = 2 * torch.finfo(variance.dtype).tiny
    low = int((variance <= floor).sum())
    if low:
        yield f"{low} of {total} variances are at the smallest number of {variance.dtype}"
    given = initial_variance(filter)
    first = float(given[0] if isinstance(given, tuple) else given)
    fallen = int((variance < FALLEN * first).sum()) - low if math.isfinite(first) else 0
    if fallen > 0:
        yield (
            f"{fallen} of {total} variances have fallen below {FALLEN:g} of the first, "
            f"{first:.2g}: these weights hardly learn any more"
        )
    if wide > WIDE:
        yield f"the posterior is {wide:.2g} times as wide as the weights are large"
