"""A recorded step, replayed one operation after the other in little memory.

Most operations take less time than memory that is not in the cache. So what makes a new vector is
given memory of which the processor has just let go, and a new state is worked out where it is kept.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

__all__ = ["replay"]

Owners = dict[Node, Node]

COPY = torch.ops.aten.copy_.default


def replay(recorded: GraphModule) -> Callable[[list[Tensor]], None]:
    """A recorded step of vectors of any one length as a function.

    Args:
        recorded: operations, the second of whose inputs is one of the vectors.

    Returns:
        A function of the inputs, which changes those that the operations change.
    """
    graph, dtypes = _planned(list(recorded.graph.nodes))
    run = GraphModule(recorded, graph).forward

    def replayed(inputs: list[Tensor]) -> None:
        run(*inputs, *[torch.empty_like(inputs[1], dtype=dtype) for dtype in dtypes])

    return replayed


def _planned(nodes: list[Node]) -> tuple[Graph, list[torch.dtype]]:
    """The same operations with memory as further inputs, and the dtypes of that."""
    owners = {node: node for node in nodes}
    for node in nodes:
        owners[node] = owners[_shared(node) or node]
    inputs = [node for node in nodes if node.op == "placeholder"]
    kept = _kept(nodes, owners)
    places, dtypes = _places(nodes, owners, kept, inputs[1])
    spared = {copy for _, copy in kept.values()}
    graph = Graph()
    new = {node: graph.node_copy(node) for node in inputs}
    memory = [graph.placeholder(f"memory_{i}") for i in range(len(dtypes))]
    for node in [node for node in nodes if node not in inputs]:
        if node in spared:
            new[node] = new[node.args[1]]  # type: ignore[index]  # a copy's second is what it copies
            continue
        new[node] = graph.node_copy(node, new.__getitem__)
        if node in places or node in kept:
            place = memory[places[node]] if node in places else new[kept[node][0]]
            new[node].target = _writer(node.target)
            new[node].kwargs = {**new[node].kwargs, "out": place}
    return graph, dtypes


def _places(
    nodes: list[Node], owners: Owners, kept: dict[Node, Any], vector: Node
) -> tuple[dict[Node, int], list[torch.dtype]]:
    """Which memory each new vector is written to, and the dtypes of all."""
    last = {owners[x]: i for i, node in enumerate(nodes) for x in node.all_input_nodes}
    places: dict[Node, int] = {}
    free, dtypes = list[int](), list[torch.dtype]()
    for i, node in enumerate(nodes):
        ending = dict.fromkeys(owners[x] for x in node.all_input_nodes)
        free += [places[x] for x in ending if last[x] == i and x in places]
        if node in kept or _writer(node.target) is None or not _alike(node, vector, dtype=False):
            continue
        dtype = node.meta["val"].dtype
        fits = [k for k in free if dtypes[k] is dtype]
        if fits:  # the last one is an input that ends here, if there is any
            free.remove(fits[-1])
        else:
            dtypes.append(dtype)
        places[node] = fits[-1] if fits else len(dtypes) - 1
    return places, dtypes


def _kept(nodes: list[Node], owners: Owners) -> dict[Node, tuple[Node, Node]]:
    """New vectors that can be worked out where they are copied to: that place, and the copy."""
    found: dict[Node, tuple[Node, Node]] = {}
    for i, copy in enumerate(nodes):
        if copy.target is not COPY:
            continue
        place, copied = copy.all_input_nodes
        source = owners[copied]
        if (
            place.op != "placeholder"
            or source in found
            or _writer(source.target) is None
            or not all(_alike(x, place) for x in (source, copied))
        ):
            continue
        between, after = nodes[nodes.index(source) + 1 : i], nodes[i + 1 :]
        looked = any(owners[x] is place for node in between for x in node.all_input_nodes)
        changed = any(owners[x] is source for node in after for x in _changed(node))
        if not looked and not changed:
            found[source] = place, copy
    return found


def _alike(node: Node, other: Node, *, dtype: bool = True) -> bool:
    """Whether two results are tensors of one shape, and of one dtype."""
    a, b = node.meta["val"], other.meta["val"]
    return bool(a.shape == b.shape and (not dtype or a.dtype is b.dtype))


def _shared(node: Node) -> Node | None:
    """The operation's input in whose memory its result lies, if it is one."""
    if node.target is operator.getitem:
        return node.all_input_nodes[0]
    return next((x for x, _ in _aliased(node)), None)


def _changed(node: Node) -> list[Node]:
    """The operation's inputs that it changes."""
    return [x for x, written in _aliased(node) if written]


def _aliased(node: Node) -> Iterator[tuple[Node, bool]]:
    """The operation's inputs in whose memory a result may lie, and whether that is written to."""
    if isinstance(node.target, torch._ops.OpOverload):
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
            if argument.alias_info is not None and isinstance(value, Node):
                yield value, argument.alias_info.is_write


@functools.cache
def _writer(target: Any) -> Any:
    """The same operation with memory for its result, if it treats every number on its own."""
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return None
    wanted = [(x.name, str(x.type)) for x in target._schema.arguments]
    packet = target.overloadpacket
    for other in (getattr(packet, name) for name in packet.overloads()):
        given = [(x.name, str(x.type)) for x in other._schema.arguments if not x.is_out]
        if given == wanted and len(other._schema.arguments) == len(wanted) + 1:
            return other
    return None
