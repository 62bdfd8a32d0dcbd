"""Gathering what a likelihood needs before the step: the only impure reading of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeGuard

import torch
from torch import Tensor, nn

from filteropt.blocks import Block
from filteropt.dtypes import belief_dtype, squarable
from filteropt.types import Raw

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

__all__ = [
    "NonFiniteGradientError",
    "Reading",
    "all_finite",
    "gather",
    "local",
    "raise_nonfinite",
    "several",
]


KINDS = {
    "grad": "gradient",
    "rows": "Jacobian",
    "squares": "sum of squares",
    "products": "product with a draw",
    "inputs": "layer's input",
    "deltas": "gradient at a layer's output",
}


class NonFiniteGradientError(FloatingPointError):
    """A gradient was NaN or infinite, or its square overflowed; nothing was changed."""


class Reading(NamedTuple):
    """One parameter about to be updated, or a weight with its bias.

    Attributes:
        name: how to call the parameter in a message.
        block: the parameter, with its bias if that is filtered with it.
        raw: what was gathered for it, on this process' shard.
        limit: the largest ``|p.grad|`` that the likelihood can take.
    """

    name: Callable[[], str]
    block: Block
    raw: Raw
    limit: float

    @property
    def p(self) -> Tensor:
        """The parameter."""
        return self.block.weight


def gather(block: Block, name: Callable[[], str], *, maximize: bool, **seen: Any) -> Raw:
    """Read a block's gradient, which stays as it is.

    A bias without a gradient is no input of its layer in this step: its rows' ones become 0.

    Args:
        block: a parameter with a gradient, and perhaps its bias.
        name: how to call it in a message.
        maximize: whether the objective is to be maximised.
        **seen: as below.

    Returns:
        What was gathered for the block as one tensor.

    Raises:
        TypeError: a gradient is sparse or complex.
    """
    raw, bias = _read(block.weight, name, maximize=maximize, **seen), block.bias
    if bias is None:
        return raw
    if bias.grad is not None:
        column = _read(bias, name, maximize=maximize).grad
        return raw._replace(grad=block.whole(raw.grad, column))
    grad = block.whole(raw.grad, raw.grad.new_zeros(len(bias)))
    if raw.layer is None:
        return raw._replace(grad=grad)
    inputs = raw.layer.inputs.clone()
    inputs[:, -1] = 0
    return raw._replace(grad=grad, layer=raw.layer._replace(inputs=inputs))


def _read(p: Tensor, name: Callable[[], str], *, maximize: bool, **seen: Any) -> Raw:
    """Read ``p.grad``, which stays as it is.

    Args:
        p: a parameter with a gradient.
        name: how to call it in a message.
        maximize: whether the objective is to be maximised.
        **seen: fields of :class:`~filteropt.types.Raw` that were gathered, ``grad`` among them
            where it is not ``p.grad``. The rows of a layer keep their sign, which their outer
            products do not show.

    Returns:
        The gradient in the belief's dtype, on this process' shard, and what was seen.

    Raises:
        TypeError: the gradient is sparse or complex.
    """
    grad = p.grad
    assert grad is not None
    if grad.layout is not torch.strided:
        raise TypeError(
            f"the gradient of {name()} is sparse ({grad.layout}); filters need dense gradients: "
            f"use sparse=False in its layer, or train it with torch.optim.SparseAdam"
        )
    if not p.dtype.is_floating_point:
        _require_real(p, name())
    if is_dtensor(p) and is_dtensor(grad) and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    raw = Raw(**{"grad": local(grad).to(belief_dtype(p)), **seen})
    if not maximize:
        return raw
    products = None if raw.products is None else -raw.products
    return raw._replace(grad=-raw.grad, products=products)


def limit(filter: Any, grad: Tensor) -> float:
    """The largest magnitude of a gradient with which a step is finite.

    Args:
        filter: the composition; a basis that turns adds up squares of all the gradient's entries.
        grad: the gradient, of which shape and dtype matter.

    Returns:
        The magnitude.
    """
    most = min(torch.finfo(grad.dtype).max, filter.likelihood.gradient_limit(grad.dtype))
    return float(most) / max(1, grad.numel()) ** 0.5 if filter.basis.turns else float(most)


def reject_complex(group: dict[str, Any]) -> None:
    """Refuse a new group's complex parameters while nothing has been stored.

    Args:
        group: a parameter group; an iterator of parameters becomes a list.

    Raises:
        TypeError: naming the parameter that is not real floating-point.
    """
    params = group["params"]
    if isinstance(params, Tensor):
        params = [params]
    elif not isinstance(params, set):  # sets have no order: the base class refuses them
        params = group["params"] = list(params)
    for i, item in enumerate(params):
        name, p = item if isinstance(item, tuple) else (f"parameter {i} of the new group", item)
        if isinstance(p, Tensor):
            _require_real(p, name)


def tensors_of(group: dict[str, Any]) -> list[Tensor]:
    """A new group's parameters without their names; what is no tensor, the base class refuses.

    Args:
        group: a parameter group.

    Returns:
        The tensors.
    """
    params = group["params"]
    listed = [params] if isinstance(params, Tensor) else list(params)
    found = [item[1] if isinstance(item, tuple) else item for item in listed]
    return [p for p in found if isinstance(p, Tensor)]


def _require_real(p: Tensor, name: str) -> None:
    if not p.dtype.is_floating_point:
        raise TypeError(
            f"{name} is {p.dtype}; filters hold real weights: "
            f"give torch.view_as_real(p) of a complex parameter"
        )


def name_of(groups: list[dict[str, Any]], index: int, i: int, model: nn.Module | None) -> str:
    """What to call a parameter in a message.

    Args:
        groups: the optimizer's groups, which know names if named parameters were given.
        index: the parameter's group.
        i: its place there.
        model: the module that may know its name.

    Returns:
        The parameter's name, or its place and shape.
    """
    if "param_names" in groups[index]:
        return f"parameter {groups[index]['param_names'][i]!r}"
    p = groups[index]["params"][i]
    for name, q in model.named_parameters() if model is not None else ():
        if q is p:
            return f"parameter {name!r}"
    return f"parameter {i} of group {index} (shape {tuple(p.shape)})"


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
    for _, x, limit in (found for reading in readings for found in _bounded(reading)):
        if x.numel():
            buckets.setdefault((limit, x.device, x.dtype), []).append(x)
    fine = all(_largest(g) <= limit for (limit, _, _), g in buckets.items())
    for mesh in {r.p.device_mesh: None for r in readings if is_dtensor(r.p)}:
        fine = _everywhere(fine, mesh)
    return fine


def _largest(tensors: list[Tensor]) -> Tensor:
    """The largest magnitude, NaN where there is one."""
    if tensors[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm(tensors, float("inf"))
    extremes = torch.stack([x for tensor in tensors for x in torch.aminmax(tensor)])
    return extremes.abs().max()


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


def is_dtensor(x: Tensor) -> TypeGuard[DTensor]:
    """Whether ``x`` is a sharded or replicated distributed tensor."""
    return hasattr(x, "device_mesh")


def several() -> bool:
    """Whether several processes run together."""
    distributed = torch.distributed
    started = distributed.is_available() and distributed.is_initialized()
    return started and distributed.get_world_size() > 1


def local(x: Tensor) -> Tensor:
    """This process' shard of a distributed tensor, sharing its memory; else ``x`` itself."""
    return x.to_local() if is_dtensor(x) else x
