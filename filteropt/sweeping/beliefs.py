"""Every member's belief side by side, and the engine's one step over them all."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from filteropt import engine
from filteropt.dtypes import belief_dtype
from filteropt.engine import Filter, Scalars
from filteropt.execute.choice import is_elementwise
from filteropt.measure import limit
from filteropt.sweeping.numbers import flat
from filteropt.sweeping.settings import Setting, structure
from filteropt.trees import leaves, names, restore, tree_map
from filteropt.types import Raw, State

__all__ = ["Beliefs", "can_compile"]

Named = dict[str, Tensor]
Tensors = list[Tensor]


def can_compile(device: torch.device) -> bool:
    """Whether there is what compiling takes: on a CPU a C++ compiler, on a GPU Triton."""
    if device.type == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++"))
    return find_spec("triton") is not None


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
                decay, *drift = (_beside(x, p) for x in self.ahead)
                aux = restore(segment.form, segment.kept).belief.aux
                moved = sum((f * m for f, m in zip(drift, aux, strict=True)), torch.zeros_like(p))
                p = ((p - moved.to(p.dtype)) / (1 - decay)).to(p.dtype)
            found.update(zip(segment.names, segment.views(p), strict=True))
        return found

    def gather(self, grads: Named) -> tuple[Tensors, Tensor]:
        """Gradients as the segments are laid out, and which members' can be used."""
        joined = [s.join([grads[name] for name in s.names]) for s in self.segments]
        largest = [_largest(g).to(torch.float64) for g in joined]
        fine = [size <= bound for size, bound in zip(largest, self.limits, strict=True)]
        return joined, torch.stack(fine).all(0)

    def keep(self, places: Tensor) -> None:
        """Go on with some members alone."""
        for segment in self.segments:
            segment.p = segment.p[places]
            segment.kept = [x[places] for x in segment.kept]
        self.ahead = [x[places] for x in self.ahead]
        self.limits = self.limits[:, places]

    def advance(self, joined: Tensors, numbers: Tensor, *, gained: bool) -> None:
        """Step every member in place.

        Args:
            joined: what :meth:`gather` returned.
            numbers: the numbers of the step.
            gained: whether their factor on displacements is not 1.
        """
        if self.strict:
            self.ahead = list(numbers[self.count + 1 :].unbind())
        for segment, grad in zip(self.segments, joined, strict=True):
            scheme = Scheme(self.filter, self.form, segment.form, gained, self.strict)
            given = (segment.p, grad, segment.kept, numbers)
            if not self.compiled or not _run(scheme, *given):
                self.compiled = False
                scheme(*given)


class Scheme:
    """The step of one composition over stacked members, in place.

    Args:
        filter: the composition; its numbers are not read.
        scalars: the form of its numbers.
        state: the form of a member's state.
        gained: whether displacements are multiplied.
        strict: whether the mean then moves ahead.
    """

    def __init__(
        self, filter: Filter, scalars: Scalars, state: State, gained: bool, strict: bool
    ) -> None:
        self.filter, self.scalars, self.state = filter, scalars, state
        self.gained, self.strict = gained, strict

    def __call__(self, p: Tensor, grad: Tensor, kept: Tensors, numbers: Tensor) -> None:
        """Step: parameters and states change, gradients and numbers do not."""
        found, new = vmap(self._one, in_dims=(0, 0, 0, 1))(p, grad, kept, numbers)
        p.copy_(found)
        for old, leaf in zip(kept, new, strict=True):
            old.copy_(leaf)

    def _one(
        self, p: Tensor, grad: Tensor, kept: Tensors, numbers: Tensor
    ) -> tuple[Tensor, Tensors]:
        """One member's parameter and state after the step."""
        mean, rest = p.to(grad.dtype), iter(numbers.unbind())
        scalars = tree_map(lambda _: next(rest), self.scalars)
        disp, state = engine.step(self.filter, scalars, restore(self.state, kept), Raw(grad), mean)
        gain = next(rest)
        found = p + (gain * disp if self.gained else disp)
        if self.strict:
            found = found * (1 - next(rest))
            for factor, latent in zip(rest, state.belief.aux, strict=True):
                found = found + factor * latent
        return found, leaves(state)


BACKEND: Any = "inductor"
_COMPILED: dict[object, Callable[..., None]] = {}
"""Compiled steps by composition, however many sweeps there are."""


def _compiled(scheme: Scheme) -> Callable[..., None]:
    """The compiled step of a composition."""
    numbers = tree_map(type, scheme.scalars)
    forms = (repr(numbers), tuple(names(scheme.state)), scheme.gained, scheme.strict)
    key = (tuple(structure("", scheme.filter)), *forms)
    if key not in _COMPILED:
        _COMPILED[key] = torch.compile(scheme.__call__, dynamic=True, backend=BACKEND)
    return _COMPILED[key]


def _run(scheme: Scheme, *given: Any) -> bool:
    """Run a step compiled; whether that could be done."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's, to nobody's use
            _compiled(scheme)(*given)
    except Exception as error:
        why = str(error).strip().split("\n")[0]
        warnings.warn(f"sweep: steps are not compiled, since that fails: {why}", stacklevel=2)
        return False
    return True


def _largest(grad: Tensor) -> Tensor:
    """The largest magnitude of every member's gradient, NaN where there is one."""
    if not grad.numel():
        return grad.new_zeros(len(grad))
    rows = grad.flatten(1) if grad.dim() > 1 else grad[:, None]
    return torch.maximum(rows.amax(1), -rows.amin(1))  # several times faster than the norm


def _beside(x: Tensor, p: Tensor) -> Tensor:
    """Members' numbers, to multiply their stacked tensors with."""
    return x.view(-1, *[1] * (p.dim() - 1))
