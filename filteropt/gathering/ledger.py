"""What is gathered for each parameter between two steps, beside its gradient."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from filteropt.dtypes import belief_dtype

__all__ = ["Ledger"]

POWERS = {
    "squares": 2,
    "grad_squared": 2,
    "products": 1,
    "label_squares": 0,
    "inputs": 0,
    "deltas": 1,
}
"""How a factor on the gradient acts on what was gathered with it, or by another loss."""

ROWS = {"inputs": 0.0, "deltas": 0.5}
"""Entries whose rows are put together where others add up. Products of the rows are to be averaged
over samples, so that they are divided by this power of how many there are."""

SOME = 1024
"""How many numbers tell by which factor a tensor was multiplied."""


class Note(NamedTuple):
    """A gradient that entries came with, and its norm then."""

    grad: TensorWeakRef
    norm: float | Tensor


class Ledger:
    r"""Sums of what is gathered, which follow the gradient in everything that is done to it.

    Entries add up over backward passes, as ``p.grad`` does, and are averaged over the S Monte Carlo
    samples of the weights that a step may take:

    .. math:: \bar x = \frac1S \sum_{s=1}^S \sum_{b} x_{sb} .

    Entries of rows, whose products would add up, are concatenated.

    What happens to the gradient after it was gathered (a scaler that unscales it, a clipped norm)
    multiplies ``p.grad`` by some factor r. It is read off the gradient's norm, noted by
    :meth:`mark`; squares of gradients are then multiplied by r², products with one by r.

    Example:
        >>> p, ledger = torch.nn.Parameter(torch.zeros(2)), Ledger()
        >>> p.grad = torch.tensor([8.0, 0.0])
        >>> ledger.add(p, "squares", p.grad.square())
        >>> ledger.mark([p])
        >>> p.grad /= 4    # as a GradScaler unscales
        >>> ledger.look(p, "squares")
        tensor([4., 0.])

    Source: the accounting is this project's; see :eq:`eq-sampled-gradient`.
    """

    def __init__(self) -> None:
        self.paused = False  # whether gradients are another loss', and come and go unheeded
        self._stamps: dict[Tensor, tuple[Tensor | None, int]] = {}
        self._watched: set[Tensor] = set()  # whose gradients are seen to arrive
        self._own: dict[Tensor, dict[str, Tensor]] = {}
        self.spare: dict[Tensor, Tensor] = {}  # memory of the last squares, to be used again
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.samples = 1
        self.begun = False  # whether the present sample has passed a whole context
        self.spare.update({p: own["squares"] for p, own in self._own.items() if "squares" in own})
        self._own = {}
        self._finished: dict[Tensor, dict[str, Tensor]] = {}
        self._notes: dict[Tensor, Note] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: nothing that was gathered."""
        return {"samples": 1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back empty."""
        Ledger.__init__(self)

    def add(self, p: Tensor, field: str, value: Tensor) -> None:
        """Add to an entry of the present sample.

        Args:
            p: the parameter.
            field: the entry's name.
            value: what to add, shaped like this process' shard of ``p``, or rows; taken over.
        """
        own = self._own.setdefault(p, {})
        if field in own and field not in ROWS:
            own[field].add_(value)
        else:
            own[field] = _more(field, own[field], value) if field in own else value

    def mark(self, params: Iterable[Tensor]) -> None:
        """Note which ``p.grad`` it is that entries come with, and how long it is now.

        Args:
            params: the parameters.
        """
        found = {p: p.grad for p in params if p.grad is not None and p.requires_grad}
        norms = _norms([*found.values()])
        for (p, grad), norm in zip(found.items(), norms, strict=True):
            self._notes[p] = Note(TensorWeakRef(grad), norm)
            if p not in self._watched:
                self._watch(p)

    def _watch(self, p: Tensor) -> None:
        """Learn of gradients that arrive."""
        ledger = weakref.ref(self)  # a dropped optimizer's is not kept alive

        def arrive(grad: Tensor) -> None:
            if (alive := ledger()) is not None:
                alive.refresh(p)

        arrive.__torch_unserializable__ = True  # type: ignore[attr-defined]  # torch's own mark
        hook = p.register_hook(arrive)  # type: ignore[no-untyped-call]  # torch's own
        weakref.finalize(self, hook.remove)
        self._watched.add(p)

    def refresh(self, p: Tensor) -> None:
        """Drop the present sample's entries if the gradient that came with them was taken away."""
        if not self.paused and self._taken_away(p):
            self._own.pop(p, None)
            del self._notes[p]

    def _taken_away(self, p: Tensor) -> bool:
        if p not in self._notes:
            return False
        (noted, norm), grad = self._notes[p], p.grad
        if grad is None or (grad is not noted() and not grad.requires_grad):
            return True
        return bool(norm > 0) and not bool(grad.any())

    def begin(self, params: Iterable[Tensor]) -> None:
        """Prepare to gather at a draw: ``p.grad`` is the present sample's, not the average.

        Args:
            params: the parameters.
        """
        params = list(params)
        noted = [p for p in params if p in self._notes]
        gone = [p for p in noted if self._taken_away(p)]
        if gone and (self.samples > 1 or len(gone) == len(noted)):
            self.clear()
        for p in params:
            if self.samples > 1:
                p.grad = self.entry(p, "grad")
                self._notes.pop(p, None)
                self.mark([p])
            else:
                self.refresh(p)
            self._stamps[p] = _stamp(p)

    def end(self, params: Iterable[Tensor]) -> None:
        """Let ``p.grad`` be the average over the samples so far.

        Args:
            params: the parameters.
        """
        for p in params:
            grad, version = self._stamps.pop(p)
            now = _stamp(p)
            self.begun |= now[0] is not None and (now[0] is not grad or now[1] != version)
            self._rescale(p)
            if self.samples > 1:
                self.put(p, "grad", p.grad)
                mean = self.mean(p, "grad")
                p.grad = None if mean is None else mean.to(p.dtype, copy=True)
            self.mark([p])

    def _rescale(self, p: Tensor) -> None:
        """Scale the present sample's entries as its gradient was, inside of the context."""
        for field in self._own.get(p, {}).keys() & POWERS.keys():
            self._own[p][field] = self._scaled(p, field, self._own[p][field])

    def entry(self, p: Tensor, field: str) -> Tensor | None:
        """An entry of the present sample."""
        return self._own.get(p, {}).get(field)

    def put(self, p: Tensor, field: str, value: Tensor | None) -> None:
        """Replace an entry of the present sample; ``None`` removes it."""
        self._own.setdefault(p, {}).pop(field, None)
        if value is not None:
            self._own[p][field] = value

    def mean(self, p: Tensor, field: str) -> Tensor | None:
        """An entry's average over the samples so far, the present one included."""
        own, finished = self.entry(p, field), self._finished.get(p, {}).get(field)
        if field == "grad_squared" and (grad := self.entry(p, "grad")) is not None:
            own = grad.to(belief_dtype(p)).square()
        total = finished if own is None else own
        if own is not None and finished is not None:
            total = _more(field, finished, own)
        divisor = self._count ** ROWS.get(field, 1.0)
        return total if total is None or divisor == 1 else total / divisor

    @property
    def _count(self) -> int:
        """Samples, the present one if anything was gathered in it."""
        return max(1, self.samples - (not self.begun))

    def fold(self, params: Iterable[Tensor]) -> None:
        """Call the present sample complete: its gradients and entries become one term of the mean.

        Args:
            params: the parameters, whose ``p.grad`` may be the first sample's, not noted so far.
        """
        params = list(params)
        grads = [p.grad for p in params if p.grad is not None]
        if not all(bool(grad.isfinite().all()) for grad in grads):
            self.clear()  # its step was skipped, as a GradScaler does: it is no sample
        if not self.begun:
            self._own.clear()  # what was gathered is thrown away, as the gradients are
            return
        for p in params:
            grad = p.grad if self.samples == 1 else self.entry(p, "grad")
            if grad is not None:
                kept = grad.detach().to(belief_dtype(p), copy=True)
                self.put(p, "grad", kept)
                self.put(p, "grad_squared", kept.square())
        for p, own in self._own.items():
            finished = self._finished.setdefault(p, {})
            for field, value in own.items():
                old = finished.get(field)
                finished[field] = value if old is None else _more(field, old, value)
        self._own.clear()
        self.samples += 1
        self.begun = False

    def look(self, p: Tensor, field: str) -> Tensor | None:
        """An entry's average over samples, scaled as the gradient was since it was gathered.

        Args:
            p: the parameter.
            field: a name in ``POWERS``; ``"grad_squared"`` over several samples alone.

        Returns:
            The average, or ``None`` where nothing was gathered.
        """
        found = self.mean(p, field)
        return None if found is None else self._scaled(p, field, found)

    def _scaled(self, p: Tensor, field: str, found: Tensor) -> Tensor:
        """An entry, scaled as the gradient was since it was noted."""
        if p not in self._notes or p.grad is None or not POWERS[field]:
            return found
        then, now = self._notes[p].norm, _norms([p.grad])[0]
        if isinstance(now, float) and isinstance(then, float):
            usable = 0 < then < math.inf and now < math.inf
            return found * (now / then) ** POWERS[field] if usable and now != then else found
        then, now = torch.as_tensor(then), torch.as_tensor(now)
        known = (then > 0) & then.isfinite() & now.isfinite()
        factor = torch.where(known, now / then, 1.0) ** POWERS[field]
        return found * factor.to(found.dtype)


def _more(field: str, total: Tensor, value: Tensor) -> Tensor:
    """An entry with more added to it, or more rows put below it."""
    return torch.cat([total, value]) if field in ROWS else total + value


def _stamp(p: Tensor) -> tuple[Tensor | None, int]:
    """A parameter's gradient, and how often it was written to."""
    return p.grad, -1 if p.grad is None else p.grad._version


def _norms(tensors: list[Tensor]) -> list[Any]:
    """The Euclidean norms of tensors, or of some thousand of their numbers where they tell.

    Returns:
        Numbers where they are at hand, tensors where reading them would wait for a device.
    """
    tensors = [x.to_local() if hasattr(x, "to_local") else x for x in tensors]  # as is the factor
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    if not all(x.device.type == "cpu" for x in tensors):
        return list(torch._foreach_norm(tensors, dtype=dtype))
    some = [
        x.as_strided((SOME,), (1,)) if x.numel() > 2 * SOME and x.is_contiguous() else x
        for x in tensors
    ]
    norms = torch.stack(torch._foreach_norm(some, dtype=dtype)).tolist() if some else []
    for i, x in enumerate(tensors):
        if norms[i] == 0 and some[i] is not x:
            norms[i] = torch.linalg.vector_norm(x, dtype=dtype).item()
    return norms
