"""Parameters' uses in a forward pass, and what came back to them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filteropt.gathering.layers import Kind, Rule, kind_of

__all__ = ["Arrival", "Seen", "Use", "fault", "objection", "see", "sums", "use_of"]


@dataclass(eq=False)
class Seen:
    """What a layer was seen to do in a forward pass.

    Attributes:
        kind: the layer's kind.
        layer: the layer.
        params: its parameters that are wanted, by their names in it.
        x: its input, where that is needed.
        version: how often the input had been changed in place.
        training: whether the layer was training.
        odd: why it does not tell gradients; else nothing.
        apart: why it does not tell them by example; else nothing.
    """

    kind: Kind
    layer: nn.Module
    params: Mapping[str, Tensor]
    x: Tensor | None
    version: int
    training: bool
    odd: str
    apart: str

    def release(self) -> None:
        """Let go of the input, which the loss' graph would hold as long as the loss is held."""
        self.x, self.odd = None, "its graph was backpropagated into again after a step"


class Arrival(NamedTuple):
    """One use of a parameter: what the layer saw, and the loss' gradient at its output."""

    seen: Seen
    name: str
    delta: Tensor


class Use(NamedTuple):
    """One use of a parameter in a forward pass, and what came back.

    Attributes:
        rule: how the parameter's gradients follow.
        layer: the layer that it was used in.
        x: the layer's prepared input.
        delta: the loss' gradient at the layer's output.
    """

    rule: Rule
    layer: Any
    x: Tensor
    delta: Tensor


def sums(
    p: Tensor, uses: list[Use], memory: float, *, total: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    r"""Sums over examples of squared gradients, each example's gradient summed over its uses.

    .. math:: \sum_i \Bigl(\sum_u g_{iu}\Bigr)^2, \qquad \sum_i \sum_u g_{iu} .

    Args:
        p: the parameter.
        uses: how it was used, of equally many examples each.
        memory: bytes that the gradients of the examples worked on at a time may take.
        total: whether the second sum is needed.
        out: a tensor like the first sum to write it to, where that saves memory.

    Returns:
        Both sums, shaped like ``p``, in the dtype of what was seen; ``None`` for the second where
        it is not needed.
    """
    rule, layer, x, delta = uses[0]
    if len(uses) == 1 and rule.squares is not None and (rule.total is not None or not total):
        squares = rule.squares(layer, x, delta, out)
        if squares is not None:
            return squares, rule.total(layer, x, delta) if total and rule.total else None
    work = p.numel() + sum(use.rule.work(use.layer, use.delta) for use in uses)
    size = max(1, int(memory // max(1, work * delta.element_size())))
    squares = summed = None
    for start in range(0, max(1, delta.shape[0]), size):
        grads = _grads(uses, slice(start, start + size))
        squares = _plus(squares, torch.linalg.vecdot(grads, grads, dim=0))
        summed = _plus(summed, grads.sum(0)) if total else None
    assert squares is not None, "there is at least one block, if an empty one"
    return squares, summed


def _grads(uses: list[Use], some: slice) -> Tensor:
    """The gradients of some examples, each summed over its uses."""
    rule, layer, x, delta = uses[0]
    if len(uses) == 1 and some.stop >= delta.shape[0] and not some.start:
        return rule.grads(layer, x, delta)
    total = rule.grads(layer, x[some], delta[some])
    for rule, layer, x, delta in uses[1:]:
        total = total + rule.grads(layer, x[some], delta[some])
    return total


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)


def see(
    layer: nn.Module,
    inputs: list[Any],
    wanted: Container[Tensor],
    examples: int | None,
    *,
    by_example: bool = True,
) -> Seen | None:
    """What a layer that just ran has seen.

    Args:
        layer: the layer.
        inputs: its arguments.
        wanted: the parameters to look at.
        examples: how many examples the model was called with, if that is known; -1 for a layer
            that is known to see something else.
        by_example: whether its input is of no use where its first dimension is not the examples.

    Returns:
        What it saw; ``None`` where no rule is known or none of its parameters is wanted.
    """
    kind, owned = kind_of(layer), layer._parameters.items()
    params = {n: p for n, p in owned if p is not None and p.requires_grad and p in wanted}
    if kind is None or not params or len(inputs) != 1:
        return None
    x, odd, apart = inputs[0].detach(), "", ""
    if x.dim() < kind.dims(layer) or examples not in {None, len(x)}:
        whose = "examples" if examples in {None, -1} else f"{examples} examples"
        apart = (
            f"{type(layer).__name__} was given {tuple(x.shape)}, whose first dimension is not the "
            f"{whose}"
        )
    if torch._C._current_graph_task_id() != -1:  # which is how a checkpoint may run it
        odd = "it ran inside of a backward pass (checkpoint it with use_reentrant=False)"
    known = not odd and not (by_example and apart) and not x.is_inference()
    kept = x if "weight" in params and known else None
    version = 0 if kept is None else kept._version
    return Seen(kind, layer, params, kept, version, layer.training, odd, apart)


def objection(arrived: list[Arrival]) -> str:
    """Why uses do not tell a parameter's gradients by example; else nothing."""
    if not arrived:
        return "no layer whose rule is known uses it"
    for seen, _, _ in arrived:
        if why := seen.apart or fault(seen):
            return why
    if len(arrived) > 1 and len({delta.shape[0] for *_, delta in arrived}) > 1:
        return "calls of different numbers of examples were backpropagated together"
    return ""


def fault(seen: Seen) -> str:
    """Why a use does not tell gradients at all; else nothing."""
    if not seen.odd and seen.x is not None and seen.x._version != seen.version:
        return f"the input of {type(seen.layer).__name__} was changed in place"
    return seen.odd


def use_of(arrival: Arrival, dtype: torch.dtype) -> Use:
    """A use, ready for its rule, in a precision fit for squares."""
    seen, name, delta = arrival
    delta = delta if delta.dtype == dtype else delta.to(dtype)
    x = delta if seen.x is None else seen.x
    if name == "weight":
        x = x.to(dtype) if x.dtype != dtype and x.is_floating_point() else x
        x = seen.kind.prepare(seen.layer, x, seen.training)
    return Use(seen.kind.rules[name], seen.layer, x, delta)
