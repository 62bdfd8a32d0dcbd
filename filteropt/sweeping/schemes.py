"""The engine's one step over stacked members, as it is or recorded to be compiled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from filteropt import engine
from filteropt.dtypes import belief_dtype
from filteropt.engine import Filter, Scalars
from filteropt.execute.program import record
from filteropt.sweeping.settings import structure
from filteropt.trees import leaves, names, restore, tree_map
from filteropt.types import Raw, State

__all__ = ["Recorded", "Scheme", "beside", "largest"]

Tensors = list[Tensor]


class Scheme:
    """The step of one composition over stacked members, in place.

    Args:
        filter: the composition; its numbers are not read.
        scalars: the form of its numbers.
        state: the form of a member's state.
        strict: whether the mean then moves ahead.
    """

    def __init__(self, filter: Filter, scalars: Scalars, state: State, strict: bool) -> None:
        self.filter, self.scalars, self.state = filter, scalars, state
        self.strict = strict

    @property
    def key(self) -> tuple[object, ...]:
        """What decides its program, which is the composition without its numbers."""
        form = (repr(tree_map(type, self.scalars)), tuple(names(self.state)))
        return *structure("", self.filter), *form, self.strict

    def __call__(
        self, p: Tensor, grad: Tensor, kept: Tensors, numbers: Tensor, fine: Tensor | None = None
    ) -> None:
        """Step: parameters and states change, of all members or of those that are ``fine``."""
        one = vmap(lambda p, g, k, n: self._one(p, g, k, n.unbind()), in_dims=(0, 0, 0, 1))
        found, new = one(p, grad, kept, numbers)
        for old, x in zip([p, *kept], [found, *new], strict=True):
            old.copy_(x if fine is None else torch.where(beside(fine, old), x, old))

    def _one(
        self, p: Tensor, grad: Tensor, kept: Tensors, numbers: Iterable[Any]
    ) -> tuple[Tensor, Tensors]:
        """One member's parameter and state after the step."""
        mean, rest = p.to(grad.dtype), iter(numbers)
        scalars = tree_map(lambda _: next(rest), self.scalars)
        disp, state = engine.step(self.filter, scalars, restore(self.state, kept), Raw(grad), mean)
        found = p + next(rest) * disp
        if self.strict:
            found = found * (1 - next(rest))
            for factor, latent in zip(rest, state.belief.aux, strict=True):
                found = found + factor * latent
        return found, leaves(state)


class Recorded:
    """A scheme of an elementwise composition whose numbers are worked out beside it.

    In double precision and once for each member, instead of once more for each of its weights.

    Args:
        scheme: the step.
        count: its numbers.
        p: a parameter of all members.
        kept: the tensors of their states.
    """

    def __init__(self, scheme: Scheme, count: int, p: Tensor, kept: Tensors) -> None:
        def program(*inputs: Tensor) -> tuple[Tensor, ...]:
            mean, grad, *held = inputs[count:]
            found, new = scheme._one(mean, grad, held, inputs[:count])
            return found, *new

        self._dtype = belief_dtype(p)
        few = [torch.ones(64 if x.shape == p.shape else (), dtype=x.dtype) for x in (p, *kept)]
        columns = [few[0], torch.ones_like(few[0], dtype=self._dtype), *few[1:]]
        self._prelude, self._rest = record(program, count, columns)
        shapes = torch.ops.aten.sym_size.int
        self._flat = any(node.target is shapes for node in self._rest.graph.nodes)

    def values(self, numbers: Tensor) -> Tensor:
        """The numbers that weights meet, in the belief's dtype.

        Args:
            numbers: the schemes' numbers, ``(steps, numbers, settings)``.

        Returns:
            ``(steps, settings, numbers)``, of other numbers.
        """
        one = vmap(lambda x: torch.stack(self._prelude(*x.unbind())), in_dims=1)
        found: Tensor = vmap(one)(numbers)
        return found.to(self._dtype)

    def __call__(
        self, p: Tensor, grad: Tensor, kept: Tensors, values: Tensor, fine: Tensor
    ) -> None:
        """Step the members that are ``fine``: parameters and states change."""
        rows = [_rows(x) if self._flat and x.shape == p.shape else x for x in (p, grad, *kept)]
        found = vmap(self._rest)(values, *rows)
        for old, x in zip([p, *kept], found, strict=True):
            old.copy_(torch.where(beside(fine, old), x.view(old.shape), old))


def _rows(x: Tensor) -> Tensor:
    """Every member's numbers as a vector."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def largest(grad: Tensor) -> Tensor:
    """The largest magnitude of every member's gradient, NaN where there is one."""
    if not grad.numel():
        return grad.new_zeros(len(grad))
    over = tuple(range(1, grad.dim()))
    if not over:
        return grad.abs()
    return torch.maximum(grad.amax(over), -grad.amin(over))  # several times faster than the norm


def beside(x: Tensor, p: Tensor) -> Tensor:
    """Members' numbers, to multiply their stacked tensors with."""
    return x.view(-1, *[1] * (p.dim() - 1))
