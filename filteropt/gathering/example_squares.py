"""Squared gradients of single examples, from what passes through the model's layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from filteropt.dtypes import belief_dtype
from filteropt.gathering.example_gradients import Call, NoExampleGradients, adds_up, example_sums
from filteropt.gathering.layer_uses import Arrival, objection, sums, use_of
from filteropt.gathering.pass_watch import PassWatch, coarsest
from filteropt.measure import several

__all__ = ["ExampleSquares"]


class Debt(NamedTuple):
    """A parameter whose layers tell too little: why, and what its gradient grew by."""

    why: str
    grad: Tensor | None


class ExampleSquares(PassWatch):
    r"""Gathers :math:`\sum_i g_i^2` over the examples i of all backward passes since the last step.

    A layer's input and the gradient at its output give its parameters' gradients for every example
    (:mod:`filteropt.gathering.layers`); uses of a parameter add up before they are squared. Other
    parameters are looked at by ``torch.func``, which runs the model on one example at a time. The
    gradients found must add up to the parameter's own: for the layers this is checked when a
    parameter is first seen, or first seen with as many uses, for ``torch.func`` always.

    What is assumed: the loss is a sum or mean of one term per example, and examples are the first
    dimension of the model's tensors. Outputs of calls that are backpropagated together belong to
    the same examples. Through a layer that mixes examples, such as BatchNorm while training,
    an example's gradient is what passes through its own row, given the batch's statistics.

    Args:
        model: the module whose output the loss is computed from.
        ledger: where to add the squares, as ``"squares"``.

    Attributes:
        coverage: how each parameter, by name, was last looked at.
        paused: whether backward passes are of another loss, and are not to be looked at.
    """

    fields = ("squares",)

    def _reset(self) -> None:
        self._settled = False  # whether it is known of every parameter how to look at it
        self._hopeless: dict[Tensor, str] = {}
        super()._reset()

    def restart(self) -> None:
        """Forget the backward passes of one Monte Carlo sample, settled or thrown away."""
        super().restart()
        self._calls: dict[int, list[Call]] = {}
        self._owed: dict[int, dict[Tensor, Debt]] = {}

    def require(self, params: list[Tensor], likelihood: Any) -> None:
        """Watch parameters, and refuse those that are not the model's.

        Args:
            params: the parameters.
            likelihood: says by ``memory`` how many bytes to take for the gradients of examples.

        Raises:
            ValueError: a parameter that the model does not own.
        """
        memory = likelihood.core.memory
        if any(self.wanted.get(p) != memory for p in params):
            self._settled = False
            self.watch(params, memory)
            for p in params:
                self.coverage.setdefault(self.names[p], "not seen")

    # Backward passes ----------------------------------------------------------------------------

    def _known(self, p: Tensor) -> bool:
        """Whether it is known how to look at a parameter."""
        return super()._known(p) or p in self._hopeless

    def _begin(self) -> bool:
        """Notice a new backward pass, and let go of calls that owe nothing."""
        new = super()._begin()
        if new and (self._owed or self._calls):
            self._owed = {t: owed for t, owed in self._owed.items() if owed}
            self._calls = {t: calls for t, calls in self._calls.items() if t in self._owed}
        return new

    def _take_away(self, p: Tensor) -> None:
        """Forget what was gathered with a gradient that was taken away since."""
        super()._take_away(p)
        for owed in self._owed.values():
            owed.pop(p, None)

    def _at_output(self, call: Call, delta: Tensor) -> None:
        """A gradient reached an output of the model, which is kept where it may be needed."""
        if self.paused:
            return
        self._begin()
        if call.odd or not self._settled:
            kept = call if call.output != "Tensor" else call._replace(delta=delta.detach())
            self._calls.setdefault(self._task, []).append(kept)

    def _refusal(self, p: Tensor) -> str:
        """Why a parameter is not looked at at all; else nothing."""
        return self._hopeless.get(p, "") or super()._refusal(p)

    def _take(self, p: Tensor, arrived: list[Arrival]) -> None:
        """A parameter's gradient was accumulated: so are its squares."""
        why = objection(arrived) or self._add(p, arrived)
        if why:
            grew = self._growth(p)
            debt = Debt(why, None if grew is None else grew.clone())
            self._owed.setdefault(self._task, {})[p] = debt

    def _add(self, p: Tensor, arrived: list[Arrival]) -> str:
        """Add a parameter's squares to the ledger, unless something is amiss: then return that."""
        uses = [use_of(arrival, belief_dtype(p)) for arrival in arrived]
        grew = None if len(uses) in self._verified.get(p, ()) else self._growth(p)
        spare = self.ledger.spare.pop(p, None)
        if spare is not None and spare.dtype != uses[0].delta.dtype:
            spare = None
        squares, total = sums(p, uses, self.wanted[p], total=grew is not None, out=spare)
        if grew is not None and total is not None:
            if not adds_up(total, squares, grew, coarsest(p, arrived[0].delta)):
                return "its layers' gradients do not add up to its own: it is used elsewhere"
            self._verified.setdefault(p, set()).add(len(uses))
        if grew is not None or not self.coverage[self.names[p]].startswith("hooks"):
            self._cover(p, arrived)
        self.ledger.add(p, "squares", squares)
        return ""

    # The step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self) -> None:
        """Look at what the layers did not tell, by ``torch.func`` and at the present weights."""
        self._take_due()
        for task, owed in self._owed.items():
            try:
                self._settle(self._calls.get(task, []), owed)
            except NoExampleGradients as error:
                self._failed.update({p: f"{debt.why}; {error}" for p, debt in owed.items()})
        self._owed.clear()
        self._calls.clear()

    def _settle(self, calls: list[Call], owed: dict[Tensor, Debt]) -> None:
        """Add the squares of one backward pass' debts."""
        params = {self.names[p]: p for p in owed}
        memory = min(self.wanted[p] for p in owed)
        for name, (squares, total) in example_sums(self.model, params, calls, memory).items():
            why, grad = owed[params[name]]
            coarse = coarsest(params[name], *(c.delta for c in calls if c.delta is not None))
            if grad is None or adds_up(total, squares, grad, coarse):
                self.coverage[name] = "torch.func"
                self.ledger.add(params[name], "squares", squares)
            else:
                self._failed[params[name]] = (
                    f"{why}; and what torch.func finds does not add up to its gradient: the loss "
                    f"has terms that are no example's, or the weights were changed since"
                )

    @torch.no_grad()
    def look(self, params: list[Tensor], likelihood: Any) -> dict[Tensor, dict[str, Tensor]]:
        """What was gathered since the last step.

        Args:
            params: parameters that have a gradient, all of them required before.
            likelihood: says by ``uncovered`` what to do where gradients of single examples are not
                to be had.

        Returns:
            ``squares`` of every parameter, in units of ``p.grad`` squared.

        Raises:
            RuntimeError: nothing was gathered, or could be; or several processes train together.
        """
        if several():
            raise RuntimeError(
                "squared gradients of single examples are gathered on one process; several are "
                "training here"
            )
        self.settle()
        self._release()
        found = {p: {"squares": self._squares(p, likelihood.core.uncovered)} for p in params}
        if not self._settled:
            self._settled = self.wanted.keys() <= self._verified.keys() | self._hopeless.keys()
        return found

    def _squares(self, p: Tensor, uncovered: str) -> Tensor:
        """One parameter's squares."""
        name, grad = self.names[p], p.grad
        assert grad is not None, "only parameters with a gradient are looked at"
        if p in self._failed and uncovered == "batch":
            self._hopeless[p] = self._failed[p]
            self.coverage[name] = "batch gradient"
            samples = self.ledger.look(p, "grad_squared") if self.ledger.samples > 1 else None
            return grad.detach().to(belief_dtype(p)).square() if samples is None else samples
        if p in self._failed:
            raise RuntimeError(
                f"parameter {name!r} has no gradients of single examples: {self._failed[p]}. Use "
                f"layers that filteropt.gathering.layers knows, or another likelihood for it, or "
                f"uncovered='batch', which takes its squared batch gradient"
            )
        squares = self.ledger.look(p, "squares")
        if squares is None:
            raise RuntimeError(
                f"parameter {name!r} has a gradient, but none that was backpropagated since the "
                f"last step or zero_grad: squared gradients of examples are gathered in backward()"
            )
        return squares
