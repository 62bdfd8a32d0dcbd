"""Gathering what a likelihood needs before the step: the only impure reading of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn

from filteropt.blocks import Block
from filteropt.dtypes import belief_dtype
from filteropt.types import Raw

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "Reading",
    "capturing",
    "gather",
    "local",
    "several",
]


WHOLE = frozenset({torch.float32, torch.float64})
"""Dtypes in which beliefs about weights are kept as the weights are."""
NOTHING = (None,) * 4
"""What was gathered beside a gradient, where only that was."""
PLAIN = frozenset({Tensor, nn.Parameter})
"""Types of which it is known without a look that they are not distributed."""


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
    bias = block.bias
    if bias is None and not seen and not maximize and _plain(block.weight):
        return Raw(cast("Tensor", block.weight.grad))
    raw = _read(block.weight, name, maximize=maximize, **seen)
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


def _plain(p: Tensor) -> bool:
    """Whether a parameter's gradient is as it will be used, which is told soon."""
    grad = p.grad
    return (
        type(grad) is Tensor
        and grad.dtype in WHOLE
        and grad.dtype is p.dtype
        and grad.layout is torch.strided
    )


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
    if not p.is_floating_point():
        _require_real(p, name())
    if is_dtensor(p) and is_dtensor(grad) and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    grad = local(grad).to(belief_dtype(p))
    raw = Raw(**{"grad": grad, **seen}) if seen else Raw(grad)
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


def is_dtensor(x: Tensor) -> TypeGuard[DTensor]:
    """Whether ``x`` is a sharded or replicated distributed tensor."""
    return type(x) not in PLAIN and hasattr(x, "device_mesh")


def several() -> bool:
    """Whether several processes run together."""
    distributed = torch.distributed
    started = distributed.is_available() and distributed.is_initialized()
    return started and distributed.get_world_size() > 1


def capturing() -> bool:
    """Whether work for the present CUDA stream is recorded as a graph instead of done."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def local(x: Tensor) -> Tensor:
    """This process' shard of a distributed tensor, sharing its memory; else ``x`` itself."""
    return x.to_local() if is_dtensor(x) else x
