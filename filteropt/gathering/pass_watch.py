"""Which uses of a parameter a backward pass comes by, until the parameter's gradient is there."""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from filteropt.gathering.layer_uses import Arrival, Seen
from filteropt.gathering.ledger import Ledger
from filteropt.gathering.model_watch import Hook, ModelWatch

__all__ = ["PassWatch", "coarsest"]

HELD = 2**24
"""Bytes of gradients at layers' outputs to wait for, before what is due is done in one go."""


class PassWatch(ModelWatch):
    """Collects a parameter's uses in a backward pass; who inherits makes entries of them.

    Args:
        model: the module whose output the loss is computed from.
        ledger: where to add what is gathered.

    Attributes:
        fields: the entries' names in the ledger.
        coverage: how each parameter, by name, was last looked at.
        paused: whether backward passes are of another loss, and are not to be looked at.
    """

    fields: ClassVar[tuple[str, ...]]

    def __init__(self, model: nn.Module, ledger: Ledger) -> None:
        super().__init__(model)
        self.ledger = ledger
        self.coverage: dict[str, str] = {}
        self._reset()

    def _reset(self) -> None:
        self.paused = False
        self._verified: dict[Tensor, set[int]] = {}  # with which numbers of uses
        self.clear()

    def clear(self) -> None:
        """Forget everything since the last step; the ledger is its owner's to clear."""
        self._failed: dict[Tensor, str] = {}
        self._spent: WeakSet[Seen] = WeakSet()
        self.restart()

    def restart(self) -> None:
        """Forget the backward passes of one Monte Carlo sample."""
        self._task = -1
        self._begun = False  # whether any gradient was accumulated since
        self._arrived: dict[Tensor, list[Arrival]] = {}
        self._due: dict[Tensor, list[Arrival]] = {}  # whose gradient is there
        self._held = 0
        self._before: dict[Tensor, Tensor | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: nothing that was seen."""
        return {**super().__getstate__(), "ledger": self.ledger, "coverage": self.coverage}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back with nothing seen."""
        super().__setstate__(state)
        self._reset()

    def _known(self, p: Tensor) -> bool:
        """Whether what is gathered for a parameter was checked before."""
        return p in self._verified

    def _begin(self) -> bool:
        """Notice a new backward pass: gradients taken away do not count, nor unfinished passes."""
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return False
        self._take_due(left=True)
        self._task = task
        self._arrived.clear()
        self._before.clear()
        for p in self.wanted:
            if p.grad is not None:
                self._before[p] = None if self._known(p) else p.grad.detach().clone()
            elif self._begun or self._failed:
                self._take_away(p)
        return True

    def _take_away(self, p: Tensor) -> None:
        """Forget what was gathered with a gradient that was taken away since."""
        for field in self.fields:
            self.ledger.put(p, field, None)
        if self.ledger.samples == 1:
            self._failed.pop(p, None)

    def _at_layer(self, seen: Seen, delta: Tensor) -> None:
        """A gradient reached a layer's output."""
        if self.paused:
            return
        self._begin()
        self._spent.add(seen)
        for name, p in seen.params.items():
            self._arrived.setdefault(p, []).append(Arrival(seen, name, delta.detach()))

    def _at_parameter(self, p: Tensor) -> None:
        """A parameter's gradient was accumulated, and with it what is gathered.

        Done in one go for many parameters, at the latest when the backward pass ends: by turns with
        a small model's own work, it costs twice as much.
        """
        if self.paused:
            return
        self._begin()
        self._begun = True
        arrived = self._arrived.pop(p, [])
        if not self._due:
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(Hook(self, "_take_due"))
        self._due[p] = arrived
        self._held += sum(arrival.delta.nbytes for arrival in arrived)
        if self._held > HELD:
            self._take_due()

    @torch.no_grad()
    def _take_due(self, *, left: bool = False) -> None:
        """Look at what is due, unless it is left of a pass that broke and its gradients gone."""
        due, self._due, self._held = self._due, {}, 0
        if left:
            due = {p: a for p, a in due.items() if p.grad is not None and p.grad.any()}
        refused = {p: why for p in due if (why := self._refusal(p))}
        self._failed.update(refused)
        due = {p: arrived for p, arrived in due.items() if p not in refused}
        self.ledger.mark(due)
        for p, arrived in due.items():
            if torch.is_autocast_enabled(p.device.type):
                with torch.autocast(p.device.type, enabled=False):
                    self._take(p, arrived)
            else:
                self._take(p, arrived)

    def _refusal(self, p: Tensor) -> str:
        """Why a parameter is not looked at at all; else nothing."""
        return "its gradient is sparse" if p.grad is None or p.grad.is_sparse else ""

    def _take(self, p: Tensor, arrived: list[Arrival]) -> None:
        """Make entries of a parameter's uses."""
        raise NotImplementedError

    def _growth(self, p: Tensor) -> Tensor | None:
        """What a parameter's gradient grew by in this backward pass, if that was noted."""
        if p.grad is None or p not in self._before:
            return None if p.grad is None else p.grad.detach()
        before = self._before[p]
        return None if before is None else p.grad.detach() - before

    def _cover(self, p: Tensor, arrived: list[Arrival]) -> None:
        """Note by which layers a parameter is looked at."""
        kinds = dict.fromkeys(type(seen.layer).__name__ for seen, _, _ in arrived)
        self.coverage[self.names[p]] = f"hooks: {', '.join(kinds)}"

    def _release(self) -> None:
        """Let go of the inputs that were looked at, unless a pass under way will again."""
        arrived = {arrival.seen for uses in self._arrived.values() for arrival in uses}
        for seen in {*self._spent} - arrived:
            seen.release()
            self._spent.discard(seen)


def coarsest(*tensors: Tensor) -> torch.dtype:
    """The least precise dtype of some tensors."""
    return max((x.dtype for x in tensors), key=lambda dtype: torch.finfo(dtype).eps)
