"""An elementwise composition's step as one program of vectors and numbers.

The engine's own step is recorded once, on a few weights, as a graph of tensor operations. What
depends on numbers alone is taken out of it and worked out once per step, in double precision; the
rest becomes one kernel, of which all numbers are inputs. So no number that changes from step to
step, and none of a hyperparameter, is part of what was recorded.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from filteropt.engine import Filter, Scalars
from filteropt.execute.arithmetic import of_floats
from filteropt.execute.flat import Run, advance
from filteropt.execute.inductor import compiler_options, waiting_less
from filteropt.execute.items import Ahead
from filteropt.execute.numbers import numbers_of, with_numbers
from filteropt.execute.replay import replay
from filteropt.linalg import scalar
from filteropt.trees import tree_map

__all__ = ["Program", "build", "inputs_of", "record"]

TRIAL = 2**20
"""Weights of the first call, which compiles: so many that the kernel uses all threads."""

FEW = 64
"""Weights on which a step is recorded, and steps whose numbers are remembered."""

PIECE = 3 * 2**16
"""Numbers of one call on a CPU, where a step is replayed: so few that they stay in the cache."""

LONGEST = 2**30
"""Numbers of any call, so that 32 bits count them."""


class Program(NamedTuple):
    """A recorded step, for runs of one kind.

    Attributes:
        prelude: from all numbers of a step, 0-d tensors, to those that the kernel uses.
        quick: the same of floats, where it can be had.
        used: which of the numbers the prelude looks at.
        known: what the kernel is given, for numbers met before.
        kernel: steps vectors in place, given those numbers and a run's columns.
        longest: the most weights that it should be given at a time.
    """

    prelude: Callable[..., list[Tensor]]
    quick: Callable[..., list[float]] | None
    used: list[int]
    known: dict[tuple[float, ...], Tensor]
    kernel: Callable[[list[Tensor]], object]
    longest: int

    def values(self, numbers: list[float], run: Run) -> Tensor:
        """The numbers that the kernel uses, one vector in the belief's dtype on its device."""
        key = tuple([numbers[i] for i in self.used])
        if key not in self.known:
            if len(self.known) >= FEW:
                self.known.clear()
            found = torch.tensor(self._worked_out(numbers), dtype=torch.float64)
            self.known[key] = found.to(run.p.device, run.grad.dtype)
        return self.known[key]

    def values_there(self, numbers: list[Any], run: Run) -> Tensor:
        """The same of numbers of which some are on the device, where they stay."""
        found = self.prelude(*[scalar(x, run.p.device) for x in numbers])
        return torch.stack(found).to(run.grad.dtype)

    def _worked_out(self, numbers: list[float]) -> list[float]:
        if self.quick is not None:
            with contextlib.suppress(ArithmeticError, ValueError):  # tensors may be infinite
                return self.quick(*numbers)
        tensors = self.prelude(*torch.tensor(numbers, dtype=torch.float64).unbind())
        return [float(x) for x in tensors]


def inputs_of(values: Tensor, run: Run) -> list[Tensor]:
    """What a kernel is given to step a run: vectors, of one number where its weights share it.

    Inductor's kernels forget what they write into a tensor without dimensions (torch 2.13).

    Args:
        values: the numbers, of :meth:`Program.values`.
        run: the weights.

    Returns:
        The kernel's arguments.
    """
    return [values, *[x if x.dim() else x.view(1) for x in run.columns]]


def build(
    filter: Filter, scalars: Scalars, ahead: Ahead | None, run: Run, *, compiled: bool
) -> Program:
    """Record a composition's step; to compile it, try it on weights of its own.

    Args:
        filter: an elementwise composition.
        scalars: a step's numbers.
        ahead: how the mean then moves, where gradients are taken at the prediction.
        run: vectors of the dtypes, and on the device, that it is for.
        compiled: whether the kernel is compiled; else it is replayed.

    Returns:
        The program, for any number of weights from 2 on.
    """
    numbers = numbers_of(filter, scalars, 1.0, ahead)

    def program(*inputs: Tensor) -> None:
        given = iter(inputs[: len(numbers)])
        traced: Scalars = tree_map(lambda _: next(given), scalars)
        gain = next(given)
        then: Ahead | None = tree_map(lambda _: next(given), ahead)
        parts = with_numbers(filter, lambda _: next(given))
        advance(parts, traced, run.of(list(inputs[len(numbers) :])), gain, then)

    few = run.map(lambda x: x.new_ones(FEW if x.dim() else 1))
    prelude, rest = record(program, len(numbers), few.columns)
    asked = [node for node in prelude.graph.nodes if node.op == "placeholder"]
    used = [i for i, node in enumerate(asked) if node.users]
    made = Program(prelude, of_floats(prelude), used, {}, rest, LONGEST)
    values = made.values(numbers, few)
    if not compiled:
        piece = PIECE if run.p.device.type == "cpu" else LONGEST
        return made._replace(kernel=replay(rest, inputs_of(values, few)), longest=piece)
    trial = run.map(lambda x: x.new_ones(TRIAL if x.dim() else 1))
    inputs = inputs_of(values, trial)
    kernel = _compiled(rest, inputs)
    kernel(inputs)
    return made._replace(kernel=kernel.current_callable)


def record(
    program: Callable[..., Any], count: int, columns: list[Tensor]
) -> tuple[GraphModule, GraphModule]:
    """Record what a program does to tensors, and take out of it what depends on numbers alone.

    Args:
        program: of so many numbers, 0-d tensors in double precision, and of vectors.
        count: the numbers.
        columns: a few weights' vectors.

    Returns:
        From all numbers to the list of those that the rest uses; and the rest, of a vector of these
        in any dtype and of vectors of any length.
    """
    given = torch.ones(count, dtype=torch.float64).unbind()
    recorded = make_fx(program, tracing_mode="symbolic")(*given, *columns)
    return _split(recorded, count)


def _compiled(graph: GraphModule, inputs: list[Tensor]) -> Any:
    """A graph compiled for vectors of any one length, as long as the second input is here."""
    # torch.compile would look at every input in every call, which takes longer than stepping some
    # thousand weights; here kind_of has told inputs apart before. What is left of a call is what
    # Inductor itself makes, which neither looks at inputs nor counts that they were changed.
    from torch._functorch import config as functorch
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # takes a second

    mode, length = FakeTensorMode(shape_env=ShapeEnv()), inputs[1].numel()
    lengths: Any = StatelessSymbolicContext([DimDynamic.DUCK])
    fake: list[Any] = [
        mode.from_tensor(x, symbolic_context=lengths)
        if x.numel() == length
        else mode.from_tensor(x, static_shapes=True)
        for x in inputs
    ]
    made: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        made.append(compile_fx_inner(*args, **kwargs))
        return made[-1]

    options = {"size_asserts": False, **compiler_options()}
    # AOTAutograd's cache would give what surrounds a kernel.
    with waiting_less(), functorch.patch(enable_autograd_cache=False):
        compile_fx(graph, fake, inner_compile=keep, config_patches=options)
    (kernel,) = made
    return kernel


def _split(recorded: GraphModule, count: int) -> tuple[GraphModule, GraphModule]:
    """What depends on the first ``count`` inputs alone, and the rest, given a vector of it."""
    nodes = list(recorded.graph.nodes)
    early, handed = _early(nodes, count)
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


def _early(nodes: list[Node], count: int) -> tuple[set[Node], list[Node]]:
    """What depends on the first ``count`` nodes alone, and those of it that the rest needs."""
    # A comparison that the rest needs is left to it: numbers alone are handed on.
    late: set[Node] = set()
    while True:
        early = set(nodes[:count])
        for node in nodes[count:]:
            known = node.op == "call_function" and early.issuperset(node.all_input_nodes)
            if known and node not in late and _is_number(node):
                early.add(node)
        handed = [node for node in nodes if node in early and not early.issuperset(node.users)]
        comparisons = {node for node in handed if node.meta["val"].dtype == torch.bool}
        if not comparisons:
            return early, handed
        late |= comparisons


def _is_number(node: Node) -> bool:
    """Whether a node's result is one number in double precision, or one comparison."""
    value = node.meta.get("val")
    kinds = torch.float64, torch.bool
    return isinstance(value, Tensor) and value.dtype in kinds and not value.dim()
