"""Arithmetic of a few numbers without tensors, of which each operation would take a microsecond."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

__all__ = ["of_floats"]

aten = torch.ops.aten
MAKE = aten.scalar_tensor.default

FUNCTIONS: dict[object, Callable[..., Any]] = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor: operator.truediv,
    aten.neg.default: operator.neg,
    aten.rsub.Scalar: lambda x, y, alpha=1: y - alpha * x,
    aten.reciprocal.default: lambda x: 1 / x,
    aten.sqrt.default: math.sqrt,
    aten.pow.Tensor_Scalar: lambda x, power: x * x if power == 2 else math.pow(x, power),
    aten.expm1.default: math.expm1,
    aten.clamp_min.default: lambda x, least: least if x < least else x,
    aten.clamp_max.default: lambda x, most: most if x > most else x,
    aten.gt.Scalar: operator.gt,
    aten.lt.Scalar: operator.lt,
    aten.where.self: lambda condition, x, y: x if condition else y,
    MAKE: float,
}
"""What a tensor operation is in double precision; in clamps NaN stays what it is."""


def of_floats(graph: GraphModule) -> Callable[..., list[float]] | None:
    """A recorded program of numbers as a function of floats.

    Args:
        graph: from 0-d tensors in double precision to a list of such tensors.

    Returns:
        The same function of floats, which raises ``ArithmeticError`` or ``ValueError`` where Python
        does, such as for 1/0; ``None`` if it has other operations than those above.
    """
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    bare = (node.target is MAKE or not node.kwargs for node in nodes)
    if not all(bare) or any(node.target not in FUNCTIONS for node in nodes):
        return None
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    (returned,) = next(node for node in graph.graph.nodes if node.op == "output").args
    functions = [(node, FUNCTIONS[node.target], node.args) for node in nodes]

    def program(*numbers: float) -> list[float]:
        known: dict[Any, float] = dict(zip(inputs, numbers, strict=True))
        for node, function, args in functions:
            known[node] = function(*[known[x] if isinstance(x, Node) else x for x in args])
        return [known[node] for node in returned]

    return program
