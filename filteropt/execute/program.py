"""An elementwise composition's step as one compiled program of vectors and numbers.

The engine's own step is recorded once, on a few weights, as a graph of tensor operations. What
depends on numbers alone is taken out of it and worked out once per step, in double precision; the
rest becomes one kernel, of which all numbers are inputs. So no number that changes from step to
step, and none of a hyperparameter, is part of what was compiled.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from filteropt.engine import Filter, Scalars
from filteropt.execute.flat import Run, advance
from filteropt.hyperparameters import hints_of
from filteropt.trees import tree_map

__all__ = ["Program", "build", "kind_of", "numbers_of", "structure_of"]

TRIAL = 2**20
"""Weights of the first call, which compiles: so many that the kernel uses all threads."""

Take = Callable[[float], Any]


class Program(NamedTuple):
    """A compiled step.

    Attributes:
        prelude: from all numbers of a step to those that the kernel uses.
        kernel: steps vectors in place, given those numbers and a run's columns.
    """

    prelude: Callable[..., list[Tensor]]
    kernel: Callable[..., None]

    def values(self, numbers: list[float], run: Run) -> Tensor:
        """The numbers that the kernel uses, one vector in the belief's dtype on its device."""
        found = self.prelude(*torch.tensor(numbers, dtype=torch.float64).unbind())
        return torch.stack(found).to(run.p.device, run.grad.dtype)

    def apply(self, values: Tensor, run: Run) -> None:
        """Step a run of vectors in place; what its weights share goes in as a vector of one.

        Inductor's kernels forget what they write into a tensor without dimensions (torch 2.13).
        """
        self.kernel(values, *(x if x.dim() else x.view(1) for x in run.columns))


def build(filter: Filter, scalars: Scalars, run: Run) -> Program:
    """Record and compile a composition's step, and try it on weights of its own.

    Args:
        filter: an elementwise composition.
        scalars: a step's numbers.
        run: vectors of the dtypes, and on the device, that it is for.

    Returns:
        The program, for any number of weights from 2 on.
    """
    numbers = numbers_of(filter, scalars, 1.0)

    def program(*inputs: Tensor) -> None:
        given = iter(inputs[: len(numbers)])
        traced: Scalars = tree_map(lambda _: next(given), scalars)
        gain = next(given)
        parts = _with_numbers(filter, lambda _: next(given))
        advance(parts, traced, run.of(list(inputs[len(numbers) :])), gain)

    trial = run.map(lambda x: x.new_ones(TRIAL if x.dim() else 1))
    given = torch.tensor(numbers, dtype=torch.float64).unbind()
    few = trial.map(lambda x: x[:64].clone())
    graph = make_fx(program, tracing_mode="symbolic")(*given, *few.columns)
    prelude, rest = _split(graph, len(numbers))
    forward: Callable[..., None] = type(rest).forward  # a call of a module takes twice as long
    compiled = torch.compile(forward, dynamic=True, fullgraph=True)
    made = Program(prelude, functools.partial(compiled, rest))
    made.apply(made.values(numbers, trial), trial)
    return made


def _split(recorded: GraphModule, count: int) -> tuple[GraphModule, GraphModule]:
    """What depends on the first ``count`` inputs alone, and the rest, given a vector of it."""
    nodes = list(recorded.graph.nodes)
    early = set(nodes[:count])
    for node in nodes[count:]:
        if node.all_input_nodes and early.issuperset(node.all_input_nodes) and _is_number(node):
            early.add(node)
    handed = [node for node in nodes if node in early and not early.issuperset(node.users)]
    prelude, rest = Graph(), Graph()
    first: dict[Node, Node] = {}
    for node in nodes:
        if node in early:
            first[node] = prelude.node_copy(node, first.__getitem__)
    prelude.output([first[node] for node in handed])
    prelude.eliminate_dead_code()
    values = rest.call_function(torch.ops.aten.unbind.int, (rest.placeholder("values"),))
    second = {
        node: rest.call_function(operator.getitem, (values, i)) for i, node in enumerate(handed)
    }
    for node in nodes:
        if node not in early:
            second[node] = rest.node_copy(node, second.__getitem__)
    return GraphModule(recorded, prelude), GraphModule(recorded, rest)


def _is_number(node: Node) -> bool:
    """Whether a node's result is one number in double precision."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float64 and not value.dim()


# Numbers and structure ----------------------------------------------------------------------------


def numbers_of(filter: Filter, scalars: Scalars, gain: float) -> list[float]:
    """All numbers that a step depends on, in order.

    Args:
        filter: the composition, whose parts' own numbers count.
        scalars: the step's.
        gain: the factor on displacements.

    Returns:
        Floats.
    """
    found: list[float] = []
    tree_map(lambda x: found.append(float(x)), scalars)
    found.append(gain)
    _with_numbers(filter, lambda x: found.append(float(x)))
    return found


def structure_of(filter: Filter, scalars: Scalars) -> tuple[object, ...]:
    """What a program is compiled for: a composition without its numbers.

    Args:
        filter: the composition.
        scalars: a step's numbers, of which it matters which there are.

    Returns:
        A key, the same for all compositions that a program can serve.
    """
    return tree_map(lambda _: 0, scalars), *(_structure(part) for part in _parts(filter))


def kind_of(run: Run) -> tuple[object, ...]:
    """What a program is compiled for: vectors of these dtypes on this device.

    Args:
        run: vectors.

    Returns:
        A key, the same for all runs that a program can serve.
    """
    return run.p.device, run.names, *((x.dtype, x.dim()) for x in run.columns)


def _parts(filter: Filter) -> Iterator[Any]:
    """The parts that an element program is made of."""
    yield from (filter.likelihood, filter.posterior, filter.basis, *filter.projections)


def _with_numbers(filter: Filter, take: Take) -> Filter:
    """A filter whose parts' numbers are what ``take`` makes of them, in order."""
    likelihood, posterior, basis, *projections = (_replaced(x, take) for x in _parts(filter))
    return replace(filter, likelihood=likelihood, posterior=posterior, basis=basis,
                   projections=tuple(projections))  # fmt: skip


def _replaced(part: Any, take: Take) -> Any:
    """A copy of a part, unchecked, with other numbers."""
    copy = object.__new__(type(part))
    for name, value, numeric in _fields(part):
        if numeric:
            value = tuple(map(take, value)) if isinstance(value, tuple) else take(value)
        elif is_dataclass(value):
            value = _replaced(value, take)
        object.__setattr__(copy, name, value)
    return copy


def _structure(part: Any) -> tuple[object, ...]:
    """A part without its numbers."""
    found: list[object] = [type(part)]
    for _, value, numeric in _fields(part):
        if numeric:
            found.append(len(value) if isinstance(value, tuple) else "number")
        else:
            found.append(_structure(value) if is_dataclass(value) else value)
    return tuple(found)


def _fields(part: Any) -> Iterator[tuple[str, Any, bool]]:
    """A part's fields by name, and whether they are numbers: floats by their annotation."""
    hints = hints_of(type(part), metadata=False)
    for field in fields(part):
        value, hint = getattr(part, field.name), hints.get(field.name)
        numeric = float in (hint, *get_args(hint)) and value is not None
        yield field.name, value, numeric
