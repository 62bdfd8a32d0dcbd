"""Whether all that was gathered can be used, looked at before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from filteropt.dtypes import squarable
from filteropt.measure import NOTHING, Reading, is_dtensor, several

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["NonFiniteGradientError", "all_finite", "raise_nonfinite"]

KINDS = {
    "grad": "gradient",
    "rows": "Jacobian",
    "squares": "sum of squares",
    "products": "product with a draw",
    "inputs": "layer's input",
    "deltas": "gradient at a layer's output",
}


SMALL = 2**15
"""Tensors of fewer numbers are copied together, which costs less than a look at each."""


class NonFiniteGradientError(FloatingPointError):
    """A gradient was NaN or infinite, or its square overflowed; nothing was changed."""


def raise_nonfinite(readings: Iterable[Reading]) -> NoReturn:
    """Raise for a gradient that is not finite, or whose square in the belief's dtype is not.

    Args:
        readings: every parameter that the step would update.

    Raises:
        NonFiniteGradientError: naming the first offending parameter.
    """
    offender = next(
        (r for r in readings if not all(_within(x, m) for _, x, m in _bounded(r))), None
    )
    which = "a gradient on another process" if offender is None else _describe(offender)
    raise NonFiniteGradientError(
        f"{which} is not finite, or its square overflows; nothing was changed. Find its origin "
        f"with torch.autograd.detect_anomaly, clip it, or pass on_nonfinite='skip'"
    )


def _describe(reading: Reading) -> str:
    kind, tensor, limit = next(found for found in _bounded(reading) if not _within(*found[1:]))
    worst = tensor.abs().max().item()
    return f"the {KINDS[kind]} of {reading.name()} (magnitude {worst:.3g}, limit {limit:.3g})"


def all_finite(readings: list[Reading]) -> bool:
    """Whether all that was gathered is finite, squares too, on every process that shares some."""
    buckets: dict[tuple[float, torch.device, torch.dtype], list[Tensor]] = {}
    for reading in readings:
        grad = reading.raw.grad
        alone = reading.raw[1:] == NOTHING
        for x, limit in [(grad, reading.limit)] if alone else [y[1:] for y in _bounded(reading)]:
            if x.numel():
                buckets.setdefault((limit, x.device, x.dtype), []).append(x)
    fine = all(_bounded_by(limit, g) for (limit, _, _), g in buckets.items())
    if several():
        for mesh in {r.p.device_mesh: None for r in readings if is_dtensor(r.p)}:
            fine = _everywhere(fine, mesh)
    return fine


def _bounded_by(limit: float, tensors: list[Tensor]) -> bool:
    """Whether no magnitude exceeds a limit, nor is NaN."""
    if tensors[0].device.type != "cpu":
        return bool(torch.nn.utils.get_total_norm(tensors, float("inf")) <= limit)
    bound = min(limit * limit, torch.finfo(tensors[0].dtype).max) / 2
    rows = _rows(tensors)
    if rows and all(torch.dot(x, x).item() <= bound for x in rows):
        return True  # as sums of squares tell in most cases
    extremes = torch.stack([x for tensor in tensors for x in torch.aminmax(tensor)])
    return bool(extremes.abs().max() <= limit)


def _rows(tensors: list[Tensor]) -> list[Tensor]:
    """All entries as a few vectors; nothing where that would take a copy of a large tensor."""
    small: list[Tensor] = []
    rows: list[Tensor] = []
    for x in reversed(tensors):  # the first is stepped first
        if x.numel() < SMALL:
            small.append(x if x.dim() == 1 else x.reshape(-1))
        elif x.is_contiguous() and x.numel() < 2**31:
            rows.append(x.view(-1))
        else:
            return []
    return [torch.cat(small), *rows] if small else rows


def _bounded(reading: Reading) -> Iterator[tuple[str, Tensor, float]]:
    """What was gathered: its kind, and each tensor with the largest magnitude that can be used."""
    raw = reading.raw
    yield "grad", raw.grad, reading.limit
    if raw.rows is not None:
        yield "rows", raw.rows, squarable(raw.rows.dtype)
    if raw.squares is not None:
        largest = torch.finfo(raw.squares.dtype).max
        yield "squares", raw.squares, min(largest, reading.limit * reading.limit)
    if raw.products is not None:
        yield "products", raw.products, reading.limit
    if raw.layer is not None:
        yield "inputs", raw.layer.inputs, squarable(raw.layer.inputs.dtype)
        largest = squarable(raw.layer.deltas.dtype)
        yield "deltas", raw.layer.deltas, min(largest, reading.limit)


def _within(x: Tensor, limit: float) -> bool:
    return bool((x.abs() <= limit).all())


def _everywhere(fine: bool, mesh: DeviceMesh) -> bool:
    """Whether ``fine`` holds on every process of the mesh, so that all of them agree to step."""
    flag = torch.tensor(int(fine), device=mesh.device_type)
    for dim in range(mesh.ndim):
        torch.distributed.all_reduce(
            flag, op=torch.distributed.ReduceOp.MIN, group=mesh.get_group(dim)
        )
    return bool(flag)
