"""Every member's belief side by side, and the engine's one step over them all."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from filteropt import engine
from filteropt.dtypes import belief_dtype
from filteropt.engine import Filter
from filteropt.execute.choice import is_elementwise
from filteropt.measure import limit
from filteropt.sweeping.compiling import attempt
from filteropt.sweeping.numbers import flat
from filteropt.sweeping.schemes import Recorded, Scheme, beside, largest
from filteropt.sweeping.settings import Setting
from filteropt.trees import leaves, restore
from filteropt.types import State

__all__ = ["Beliefs"]

Named = dict[str, Tensor]
Tensors = list[Tensor]


_RECORDED: dict[object, Recorded] = {}
"""Steps recorded in this process, by composition."""


class Segment:
    """Parameters that are stepped by one call, of all members.

    Attributes:
        names: the parameters.
        shapes: their shapes, each without the members.
        p: their values, ``(members, *shape)``, or laid side by side, ``(members, numbers)``.
        kept: the tensors of every member's state, stacked.
        form: a member's state, which holds nothing.
    """

    def __init__(self, stacked: Named, filters: Sequence[Filter]) -> None:
        self.names = list(stacked)
        self.shapes = [x.shape[1:] for x in stacked.values()]
        tensors = list(stacked.values())
        self.flat = len(tensors) > 1
        rows = zip(tensors, self.shapes, strict=True)
        laid = [x.reshape(len(x), shape.numel()) for x, shape in rows]
        self.p = torch.cat(laid, 1) if self.flat else tensors[0]
        self.form: State = engine.template(filters[0], self.p.shape[1:])
        states = [leaves(engine.init(f, p)) for f, p in zip(filters, self.p, strict=True)]
        self.kept = [torch.stack(found) for found in zip(*states, strict=True)]

    def views(self, x: Tensor) -> list[Tensor]:
        """Each parameter's part of a tensor laid out as the segment is."""
        if not self.flat:
            return [x]
        parts = torch.split(x, [shape.numel() for shape in self.shapes], 1)
        return [part.view(len(x), *s) for part, s in zip(parts, self.shapes, strict=True)]

    def join(self, grads: Tensors) -> Tensor:
        """Gradients laid out as the segment is, in the belief's dtype."""
        if not self.flat:
            return grads[0].to(belief_dtype(self.p))
        joined = torch.empty_like(self.p, dtype=belief_dtype(self.p))
        for part, grad in zip(self.views(joined), grads, strict=True):
            part.copy_(grad)  # which may be transposed: one pass
        return joined

    def apart(self, grads: Named) -> list[Segment]:
        """A segment for every parameter, which lies in memory as its gradient does."""
        whole, count = self.p.shape, len(self.names)
        columns = [self.views(x) if x.shape == whole else [x] * count for x in (self.p, *self.kept)]
        found = []
        for i, name in enumerate(self.names):
            one = copy(self)
            one.names, one.shapes, one.flat = [name], [self.shapes[i]], False
            one.p, *one.kept = (_lying_like(column[i], grads[name]) for column in columns)
            found.append(one)
        return found


class Beliefs:
    """The parameters and states of all members that are still in training.

    Args:
        settings: every member's setting.
        stacked: every trained parameter, ``(members, *shape)``.
        strict: whether gradients are taken at the prediction.
        compiled: whether the step is compiled.
    """

    def __init__(
        self, settings: Sequence[Setting], stacked: Named, *, strict: bool, compiled: bool
    ) -> None:
        filters = [setting.bound().filter for setting in settings]
        self.filter, self.strict, self.compiled = filters[0], strict, compiled
        self.form = engine.scalars(self.filter, 1)
        self.count = len(flat(self.form))
        groups: dict[Any, Named] = {}
        for name, p in stacked.items():
            groups.setdefault(p.dtype if is_elementwise(self.filter) else name, {})[name] = p
        self.segments = [Segment(group, filters) for group in groups.values()]
        self.ahead: list[Tensor] = []
        like = torch.empty(0, device="meta")
        bounds = [limit(f, like.to(belief_dtype(s.p))) for s in self.segments for f in filters]
        self.limits = torch.tensor(bounds, dtype=torch.float64).view(len(self.segments), -1)
        self.limits = self.limits.to(next(iter(stacked.values())).device)

    def parameters(self) -> Named:
        """The parameters, stacked, which share the segments' memory; where gradients are due."""
        found: Named = {}
        for segment in self.segments:
            found.update(zip(segment.names, segment.views(segment.p), strict=True))
        return found

    def means(self) -> Named:
        """The posterior means, stacked."""
        found: Named = {}
        for segment in self.segments:
            p = segment.p
            if self.ahead:
                decay, *drift = (beside(x, p) for x in self.ahead)
                aux = restore(segment.form, segment.kept).belief.aux
                moved = sum((f * m for f, m in zip(drift, aux, strict=True)), torch.zeros_like(p))
                p = ((p - moved.to(p.dtype)) / (1 - decay)).to(p.dtype)
            found.update(zip(segment.names, segment.views(p), strict=True))
        return found

    def gather(self, grads: Named) -> tuple[Tensors, Tensor]:
        """Gradients as the segments are laid out, and which members' can be used."""
        joined = [s.join([grads[name] for name in s.names]) for s in self.segments]
        fine = [largest(g) <= bound for g, bound in zip(joined, self.limits, strict=True)]
        return joined, torch.stack(fine).all(0)

    def keep(self, places: Tensor) -> None:
        """Go on with some members alone."""
        for segment in self.segments:
            segment.p = segment.p[places]
            segment.kept = [x[places] for x in segment.kept]
        self.ahead = [x[places] for x in self.ahead]
        self.limits = self.limits[:, places]

    def advance(self, joined: Tensors, numbers: Tensor, *, once: bool) -> None:
        """Step every member in place.

        Args:
            joined: what :meth:`gather` returned.
            numbers: the numbers of the step.
            once: whether this is done once alone, so that compiling is of no use.
        """
        self.look(numbers)
        schemes = self.schemes()
        for segment, scheme, grad in zip(self.segments, schemes, joined, strict=True):
            given = (segment.p, grad, segment.kept, numbers)
            if self.compiled and not once:
                self.compiled, _ = attempt("steps", scheme.key, scheme, *given, dynamic=True)
            if once or not self.compiled:
                scheme(*given)

    def look(self, numbers: Tensor) -> None:
        """Know how far the mean moved ahead with a step, where gradients are taken there."""
        if self.strict:
            self.ahead = list(numbers[self.count + 1 :].unbind())

    def schemes(self) -> list[Scheme]:
        """The step of every segment."""
        return [Scheme(self.filter, self.form, s.form, self.strict) for s in self.segments]

    def recorded(self) -> list[Recorded]:
        """The step of every segment, to be compiled with what comes before it."""
        found, count = [], self.count + 1 + (len(self.ahead) if self.strict else 0)
        for segment, scheme in zip(self.segments, self.schemes(), strict=True):
            key = *scheme.key, segment.p.dtype, segment.p.dim() > 1
            if key not in _RECORDED:
                _RECORDED[key] = Recorded(scheme, count, segment.p, segment.kept)
            found.append(_RECORDED[key])
        return found

    def separate(self, grads: Named) -> None:
        """Hold every parameter by itself, as its gradients lie in memory."""
        count = torch.tensor([len(segment.names) for segment in self.segments])
        self.limits = self.limits.repeat_interleave(count.to(self.limits.device), 0)
        self.segments = [one for segment in self.segments for one in segment.apart(grads)]


def _lying_like(x: Tensor, grad: Tensor) -> Tensor:
    """A copy with the strides of a tensor of the same shape, if that has no gaps."""
    alike = grad if grad.shape == x.shape else x
    return torch.empty_like(alike, dtype=x.dtype, memory_format=torch.preserve_format).copy_(x)
