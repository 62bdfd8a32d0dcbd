"""Running statistics of BatchNorm layers estimated anew, and a model left as it was."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

__all__ = ["Batches", "Inputs", "arguments", "estimate", "unchanged"]

Inputs: TypeAlias = Tensor | tuple[Any, ...] | dict[str, Any]
"""One argument of a model, all of them, or all of them by name."""
Batches: TypeAlias = Inputs | Iterable[Any]
"""One batch of a model's inputs, or an iterable of them that can be read again and again."""


@contextmanager
def unchanged(model: nn.Module) -> Generator[None, None, None]:
    """Give a model its modes, its buffers and its BatchNorm layers' momenta back afterwards."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    momenta = [(norm, norm.momentum) for norm in _norms(model)]
    buffers = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        if model.training != modes[0]:
            model.train(modes[0])
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for norm, momentum in momenta:
            norm.momentum = momentum
        for module, name, buffer, version, copy in buffers:
            module._buffers[name] = buffer
            if buffer._version != version:
                buffer.copy_(copy)


def _norms(model: nn.Module) -> list[Any]:
    """BatchNorm layers that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kind) and m.running_mean is not None]


def estimate(model: nn.Module, data: Batches) -> None:
    """Let running statistics be the averages over the data's batches, at the present weights."""
    norms = _norms(model)
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.training = True
    try:
        seen = 0
        for batch in _batches(data):
            args, kwargs = arguments(batch)
            model(*args, **kwargs)
            seen += 1
    finally:
        for norm in norms:
            norm.training = False
    if not seen:
        raise ValueError("predict: batch_stats has no batches")


def _batches(data: Any) -> Iterator[Inputs]:
    """The inputs of every batch."""
    if isinstance(data, (Tensor, tuple, dict)):
        yield data
        return
    if iter(data) is data:
        raise TypeError(
            f"predict: batch_stats is read once for every draw, which {type(data).__name__} cannot "
            f"be; give a list or a DataLoader"
        )
    for batch in data:
        yield batch[0] if isinstance(batch, list) else batch


def arguments(x: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments."""
    if isinstance(x, Tensor):
        return (x,), {}
    if isinstance(x, tuple):
        return x, {}
    if isinstance(x, dict):
        return (), x
    raise TypeError(
        f"predict: inputs must be a tensor, a tuple of the model's arguments or a dict of them by "
        f"name, not {type(x).__name__}"
    )
