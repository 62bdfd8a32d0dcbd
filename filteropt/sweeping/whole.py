"""A sweep's whole step as one function: losses, gradients, their check and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.func import grad

from filteropt.dtypes import belief_dtype
from filteropt.sweeping.beliefs import Beliefs
from filteropt.sweeping.compiling import attempt
from filteropt.sweeping.models import Use
from filteropt.sweeping.schemes import Recorded, largest

__all__ = ["Whole"]

Tensors = dict[str, Tensor]


class Whole:
    """A minibatch's losses and gradients, their check and the step of all members.

    In one program nothing of the gradients' size is allocated, copied or read twice. It has a fixed
    number of members: one that diverges stays in, and only its update is left out.

    Args:
        schemes: the step of every parameter, recorded.
        keys: what each of these programs depends on.
        names: the parameters.
        maximize: whether the objective is to be maximised.
    """

    def __init__(
        self, schemes: list[Recorded], keys: Sequence[object], names: list[str], maximize: bool
    ) -> None:
        self.schemes, self.names, self.maximize = schemes, names, maximize
        self.key = ("whole", *names, maximize, *keys)

    def run(
        self,
        use: Use,
        beliefs: Beliefs,
        fixed: Tensors,
        known: Callable[[Callable[[Tensor], Tensor]], Tensor],
        alive: Tensor,
        batch: Any,
        dim: int | None,
    ) -> tuple[Tensor, Tensor] | None:
        """Step as a compiled program.

        Args:
            use: the loss of a model.
            beliefs: of all members; those that are ``alive`` may change.
            fixed: other tensors of their models, stacked.
            known: from what a scheme makes of numbers to the step's.
            alive: the members in training.
            batch: the minibatch.
            dim: its dimension of the members, if it has one.

        Returns:
            The losses before the step and the members that took it; ``None`` if there is no
            program, with a warning.
        """
        parameters = [segment.p for segment in beliefs.segments]
        kept, limits = [segment.kept for segment in beliefs.segments], [*beliefs.limits]
        met = {scheme: known(scheme.values) for scheme in {*self.schemes}}
        values = [met[scheme] for scheme in self.schemes]
        given = (use, parameters, kept, fixed, values, limits, alive, batch, dim)
        done, found = attempt("losses", self.key, self, *given, dynamic=False)
        return found if done else None

    def __call__(
        self,
        use: Use,
        parameters: list[Tensor],
        kept: list[list[Tensor]],
        fixed: Tensors,
        values: list[Tensor],
        limits: list[Tensor],
        alive: Tensor,
        batch: Any,
        dim: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Step; the losses before it, and the members that took it."""

        def total(given: Tensors) -> tuple[Tensor, Tensor]:
            losses = use.over(given, fixed, batch, in_dims=(dim,), randomness="error")
            return (-losses if self.maximize else losses).sum(), losses

        found, losses = grad(total, has_aux=True)(dict(zip(self.names, parameters, strict=True)))
        grads = [found[n].to(belief_dtype(p)) for n, p in zip(self.names, parameters, strict=True)]
        for g, bound in zip(grads, limits, strict=True):
            alive = alive & (largest(g) <= bound)
        steps = zip(self.schemes, parameters, grads, kept, values, strict=True)
        for scheme, p, g, state, known in steps:
            scheme(p, g, state, known, alive)
        return losses, alive
