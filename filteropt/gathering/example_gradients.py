"""Gradients of one example at a time by ``torch.func``, for models whose layers tell too little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from filteropt.dtypes import belief_dtype
from filteropt.gathering.recorder import Recorder, hidden_tensors

__all__ = ["Call", "NoExampleGradients", "adds_up", "example_sums"]

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 2e-2}
"""How far sums taken in another order may lie apart, relative to their terms."""
COARSE = 1e-1
"""The same for bfloat16."""


class NoExampleGradients(Exception):  # ruff: ignore[error-suffix-on-exception-name] - the name states the fact
    """There are no gradients of one example at a time; the message says why."""


class Call(NamedTuple):
    """One call of the model whose output was backpropagated into.

    Attributes:
        args: its arguments.
        kwargs: its keyword arguments.
        output: what it returned, without data; other types than tensors by their name.
        delta: the loss' gradient at the output; ``None`` before it is known.
        odd: whether a layer in it saw something else than examples.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: str
    delta: Tensor | None = None
    odd: bool = False


def example_sums(
    model: nn.Module, params: dict[str, Tensor], calls: list[Call], memory: float
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""Sums over examples of squared gradients and gradients, by running the model on each.

    .. math:: \sum_i g_i^2, \quad \sum_i g_i, \qquad g_i = \sum_c J_{ci}^\top \delta_{ci}

    over the calls c that were backpropagated together, with :math:`J_{ci}` the Jacobian of the
    outputs for example i and δ the loss' gradient there.

    Args:
        model: the model, with the weights that the calls were made with.
        params: parameters by name.
        calls: the calls.
        memory: bytes that the gradients of the examples worked on at a time may take.

    Returns:
        Both sums by name, in the belief's dtype.

    Raises:
        NoExampleGradients: the model cannot be run on one example at a time.
    """
    sums = {}
    for name, p in params.items():
        zero = torch.zeros_like(p, dtype=belief_dtype(p))
        sums[name] = zero, zero.clone()
    for block in _blocks(model, params, calls, memory):
        for name, (squares, total) in sums.items():
            grads = block[name].to(total.dtype)
            squares += torch.linalg.vecdot(grads, grads, dim=0)
            total += grads.sum(0)
    return sums


def _blocks(
    model: nn.Module, params: dict[str, Tensor], calls: list[Call], memory: float
) -> Iterator[dict[str, Tensor]]:
    """Gradients by name, ``(examples, *p.shape)``, for a few examples at a time."""
    sizes = {len(_delta(call)) for call in calls}
    if len(sizes) != 1:
        raise NoExampleGradients(
            "calls of different numbers of examples were backpropagated together"
            if sizes
            else "no output of the model itself was backpropagated into"
        )
    (examples,) = sizes
    each = sum(p.numel() * p.element_size() for p in params.values())
    size = max(1, int(memory // max(1, each)))
    for start in range(0, examples, size):
        some = slice(start, start + size)
        blocks = [_block(model, params, call, some) for call in calls]
        yield {name: sum(block[name] for block in blocks[1:]) + blocks[0][name] for name in params}


def _delta(call: Call) -> Tensor:
    """The gradient at the output, if the call can be repeated for one example."""
    tensors = [x for x in call.args if isinstance(x, Tensor)]
    if call.delta is None or not call.delta.dim():
        raise NoExampleGradients(f"the model returned {call.output}, not one tensor of examples")
    if any(hidden_tensors([*[x for x in call.args if not isinstance(x, Tensor)], call.kwargs])):
        raise NoExampleGradients("the model was called with tensors as keywords or in containers")
    if not tensors or any(x.shape[:1] != call.delta.shape[:1] for x in tensors):
        raise NoExampleGradients(
            f"the model's inputs have shapes {[tuple(x.shape) for x in tensors]} and its output "
            f"{tuple(call.delta.shape)}, whose first dimensions are not all the examples"
        )
    return call.delta


def _block(
    model: nn.Module, params: dict[str, Tensor], call: Call, some: slice
) -> dict[str, Tensor]:
    """The gradients of some examples through one call."""
    weights = {name: p.detach() for name, p in params.items()}

    def of_one(delta: Tensor, *example: Any) -> dict[str, Tensor]:
        """One example's gradients, by name."""
        one = tuple(x.unsqueeze(0) if isinstance(x, Tensor) else x for x in example)
        output, pull_back, *_ = vjp(lambda w: functional_call(model, w, one, call.kwargs), weights)
        found: dict[str, Tensor] = pull_back(delta.unsqueeze(0).to(output.dtype))[0]
        return found

    chunk = [x[some] if isinstance(x, Tensor) else x for x in call.args]
    in_dims = (0, *(0 if isinstance(x, Tensor) else None for x in call.args))
    Recorder.measuring = True
    try:
        with torch.enable_grad():
            found = vmap(of_one, in_dims=in_dims)(_delta(call)[some], *chunk)
    except Exception as error:  # whatever a model may do on one example, under a transform
        raise NoExampleGradients(
            f"torch.func.vmap runs no recurrent layers, random or mixing layers in training mode, "
            f"buffers that change or branches on values ({type(error).__name__}: {error})"
        ) from error
    finally:
        Recorder.measuring = False
    return {name: grads.detach() for name, grads in found.items()}


def adds_up(total: Tensor, squares: Tensor, grad: Tensor, dtype: torch.dtype) -> bool:
    r"""Whether :math:`\sum_i g_i` is the gradient, up to rounding.

    Args:
        total: :math:`\sum_i g_i`.
        squares: :math:`\sum_i g_i^2`, which says how large its terms are.
        grad: the gradient.
        dtype: the least precise dtype that was used.

    Returns:
        Whether it is. A gradient that is not finite is not looked at.
    """
    grad = (grad.to_dense() if grad.is_sparse else grad).to(total.dtype)
    scale = torch.linalg.vector_norm(grad) + squares.sum().sqrt()
    error = torch.linalg.vector_norm(total - grad)
    close = error <= TOLERANCE.get(dtype, COARSE) * scale
    return bool(close | ~scale.isfinite())
