"""Functions with leading dimensions, which ``torch.func.vmap`` takes as one operation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from filteropt.trees import tree_map

__all__ = ["leading"]

P = ParamSpec("P")
T = TypeVar("T")


def leading(function: Callable[P, T]) -> Callable[P, T]:
    """Let ``torch.func.vmap`` call a function of tensors with leading dimensions once.

    ``vmap`` takes a function apart into operations, which must not look at numbers. Iterations that
    stop by their numbers, and operations without a rule of their own, are given all members'
    tensors instead, with the members' dimension first.

    Args:
        function: of tensors, or nested tuples of them, that all have the same leading dimensions;
            so have those that it returns. What is given by keyword is no tensor.

    Returns:
        The same function, for ``vmap`` a single operation. Where derivatives are wanted it is
        taken apart as usual.

    Example:
        >>> @leading
        ... def below_one(x):    # every member is halved until it is
        ...     while bool((large := x >= 1).any()):
        ...         x = torch.where(large, x / 2, x)
        ...     return x
        >>> torch.func.vmap(below_one)(torch.tensor([3.0, 8.0]))
        tensor([0.7500, 0.5000])
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        tensors: list[Tensor] = []
        tree_map(lambda x: tensors.append(x) if isinstance(x, Tensor) else None, args)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return function(*args, **kwargs)
        returned: list[Any] = []

        def flat(*given: Tensor) -> tuple[Tensor, ...]:
            rest, found = iter(given), list[Tensor]()
            again = tree_map(lambda x: next(rest) if isinstance(x, Tensor) else x, args)
            returned.append(function(*again, **kwargs))
            tree_map(found.append, returned[-1])
            return tuple(found)

        found = iter(_Leading.apply(flat, *tensors))  # type: ignore[no-untyped-call]
        made: T = tree_map(lambda _: next(found), returned[-1])
        return made

    return called


class _Leading(torch.autograd.Function):
    """A function of tensors with leading dimensions, of which every ``vmap`` adds one."""

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> Any:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: there are no derivatives."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Callable[..., Any], *tensors: Tensor) -> Any:
        stacked = (
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims[1:], strict=True)
        )
        found = _Leading.apply(function, *stacked)  # type: ignore[no-untyped-call]
        return found, (0,) * len(found)
