"""A recorded step, replayed one operation after the other in little memory.

Most operations take less time than memory that is not in the cache. So what makes a new vector is
given memory of which the processor has just let go, and a new state is worked out where it is kept.
Which results share memory, and what an operation changes, is seen in a trial.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

__all__ = ["replay"]

COPY = torch.ops.aten.copy_.default


def replay(recorded: GraphModule, inputs: list[Tensor]) -> Callable[[list[Tensor]], None]:
    """A recorded step of vectors of any one length as a function.

    Args:
        recorded: operations on such inputs. They treat every weight on its own: an operation that
            makes a vector reads of vectors no other numbers than those of its place.
        inputs: some that can be tried, of which the second is one of the vectors; they are changed.

    Returns:
        A function of the inputs, which changes those that the operations change.
    """
    trial = Trial(recorded)
    with torch.inference_mode(False), torch.no_grad():  # where changes are counted
        trial.run(*[x.clone() for x in inputs])
    graph, dtypes = _planned(trial)
    run = GraphModule(recorded, graph).forward

    def replayed(inputs: list[Tensor]) -> None:
        run(*inputs, *[torch.empty_like(inputs[1], dtype=dtype) for dtype in dtypes])

    replayed(inputs)
    return replayed


@dataclass
class Seen:
    """What an operation did.

    Attributes:
        owner: the operation, or input, that made the memory in which the result lies.
        changed: whose memory was written to.
    """

    owner: Node
    changed: set[Node] = field(default_factory=set)


class Trial(Interpreter):
    """Runs a graph, and keeps all results, so that memory tells them apart."""

    def __init__(self, recorded: GraphModule) -> None:
        super().__init__(recorded, garbage_collect_values=False)
        self.nodes = list(recorded.graph.nodes)
        self.results: dict[Node, Tensor] = {}
        self.seen: dict[Node, Seen] = {}
        self._made: dict[int, Node] = {}

    def run_node(self, n: Node) -> Any:
        """Run an operation, and look at what it did."""
        before = {node: x._version for node, x in self.results.items()}
        result = super().run_node(n)
        seen = self.seen[n] = Seen(n)
        if isinstance(result, Tensor):
            seen.owner = self._made.setdefault(result.untyped_storage()._cdata, n)
            self.results[n] = result
        seen.changed = {
            self.seen[node].owner
            for node, old in before.items()
            if self.results[node]._version != old
        }
        return result

    def users(self, node: Node) -> list[Node]:
        """Whose memory an operation reads or writes, each once."""
        return list(dict.fromkeys(self.seen[x].owner for x in node.all_input_nodes))

    def whole(self, node: Node) -> bool:
        """Whether a result is all that lies in its memory, number by number."""
        owner = self.seen[node].owner
        if node not in self.results or owner not in self.results:
            return False
        a, b = self.results[node], self.results[owner]
        return (a.data_ptr(), a.dtype, a.shape, a.stride()) == (
            b.data_ptr(),
            b.dtype,
            b.shape,
            b.stride(),
        )

    def alike(self, node: Node, other: Node, *, dtype: bool = True) -> bool:
        """Whether two results are tensors of one shape, and of one dtype."""
        a, b = self.results.get(node), self.results.get(other)
        if a is None or b is None:
            return False
        return a.shape == b.shape and (not dtype or a.dtype is b.dtype)


def _planned(trial: Trial) -> tuple[Graph, list[torch.dtype]]:
    """The same operations with memory as further inputs, and the dtypes of that."""
    inputs = [node for node in trial.nodes if node.op == "placeholder"]
    kept = _kept(trial)
    places, dtypes = _places(trial, kept, inputs[1])
    spared = {copy for _, copy in kept.values()}
    graph = Graph()
    new = {node: graph.node_copy(node) for node in inputs}
    memory = [graph.placeholder(f"memory_{i}") for i in range(len(dtypes))]
    for node in [node for node in trial.nodes if node not in inputs]:
        if node in spared:
            new[node] = new[node.args[1]]
            continue
        new[node] = graph.node_copy(node, new.__getitem__)
        if node in places or node in kept:
            place = memory[places[node]] if node in places else new[kept[node][0]]
            new[node].target = _writer(node.target)
            new[node].kwargs = {**new[node].kwargs, "out": place}
    for node in graph.nodes:
        node.meta.clear()
    return graph, dtypes


def _places(
    trial: Trial, kept: dict[Node, Any], vector: Node
) -> tuple[dict[Node, int], list[torch.dtype]]:
    """Which memory each new vector is written to, and the dtypes of all."""
    last = {x: i for i, node in enumerate(trial.nodes) for x in trial.users(node)}
    places: dict[Node, int] = {}
    free, dtypes = list[int](), list[torch.dtype]()
    for i, node in enumerate(trial.nodes):
        ending = [x for x in trial.users(node) if last[x] == i and x in places]
        partly = {trial.seen[x].owner for x in node.all_input_nodes if not trial.whole(x)}
        free += [places[x] for x in ending if x not in partly]
        if node not in kept and _makes(trial, node) and trial.alike(node, vector, dtype=False):
            dtype = trial.results[node].dtype
            fits = [k for k in free if dtypes[k] is dtype]
            if fits:  # the last one is an input that ends here, if there is any
                free.remove(fits[-1])
            else:
                dtypes.append(dtype)
            places[node] = fits[-1] if fits else len(dtypes) - 1
        free += [places[x] for x in ending if x in partly]
    return places, dtypes


def _kept(trial: Trial) -> dict[Node, tuple[Node, Node]]:
    """New vectors that can be worked out where they are copied to: that place, and the copy."""
    found: dict[Node, tuple[Node, Node]] = {}
    nodes, seen = trial.nodes, trial.seen
    for i, copy in enumerate(nodes):
        if copy.target is not COPY or not all(isinstance(x, Node) for x in copy.args[:2]):
            continue
        place, copied = copy.args[:2]
        assert isinstance(place, Node)
        assert isinstance(copied, Node)
        source = seen[copied].owner
        if (
            place.op != "placeholder"
            or not _makes(trial, source)
            or not trial.whole(copied)
            or not trial.alike(source, place)
            or any(seen[x].owner is place and not trial.whole(x) for x in source.all_input_nodes)
        ):
            continue
        between, after = nodes[nodes.index(source) + 1 : i], nodes[i + 1 :]
        looked = any(place in trial.users(node) for node in between)
        changed = any(seen[node].changed & {source, place} for node in after)
        if not looked and not changed:
            found[source] = place, copy
    return found


def _makes(trial: Trial, node: Node) -> bool:
    """Whether an operation makes a tensor, and could be given memory for it."""
    return trial.seen[node].owner is node and _writer(node.target) is not None


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
