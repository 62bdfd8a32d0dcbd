"""Training the members of one chunk, all in the same steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from filteropt.execute import is_elementwise
from filteropt.sweeping.beliefs import Beliefs
from filteropt.sweeping.compiling import can_compile
from filteropt.sweeping.feed import feed, mapped
from filteropt.sweeping.models import Draws, Use, make
from filteropt.sweeping.numbers import Tables
from filteropt.sweeping.plan import Plan, Record
from filteropt.sweeping.settings import Setting
from filteropt.sweeping.whole import Whole

__all__ = ["Chunk"]

Tensors = dict[str, Tensor]
WORTH_COMPILING = 2 * 10**9
"""Numbers times steps from which on a compiled step saves more time than compiling takes."""


class Chunk:
    """Members that are trained together.

    Args:
        plan: what they have in common.
        settings: every setting of the sweep.
        members: the setting and the seed of each, those of one seed side by side.
        records: where each member's results go.
        tables: every step's numbers, of every setting.
    """

    def __init__(
        self,
        plan: Plan,
        settings: Sequence[Setting],
        members: Sequence[tuple[int, int]],
        records: Sequence[Record],
        tables: Tables,
    ) -> None:
        self.plan, self.records, self.tables = plan, list(records), tables
        self.seeds = list(dict.fromkeys(seed for _, seed in members))
        self.made = make(plan.factory, self.seeds, plan.device)
        self.model = self.made[self.seeds[0]].model
        self.use = Use(self.model, plan.loss, "the loss")
        self.live = list(range(len(members)))
        self.rows = list(self.live)
        """Where each of them is among the stacked tensors."""
        self.whole: Whole | None = None
        self.setting = torch.tensor([i for i, _ in members], device=plan.device)
        self.seed = torch.tensor([self.seeds.index(s) for _, s in members], device=plan.device)
        models = [self.made[seed] for _, seed in members]
        self.buffers = _stack([one.kept() for one in models])
        chosen = [settings[i] for i, _ in members]
        start = _stack([one.trained() for one in models])
        compiled = plan.compiled
        if compiled is None:
            work = plan.steps * sum(p.numel() for p in start.values())
            compiled = work >= WORTH_COMPILING and can_compile(plan.device)
        self._believe = partial(Beliefs, chosen, strict=plan.strict, compiled=compiled)
        self.beliefs = self._believe(start)
        self._wholly = compiled and is_elementwise(self.beliefs.filter)
        self.still: Tensors = {}
        self._losses = torch.full(
            (plan.steps, len(members)), float("nan"), dtype=torch.float64, device=plan.device
        )
        self._used: frozenset[str] | None = None
        self._done = 0

    def train(self) -> Iterator[int]:
        """Take the steps.

        Yields:
            How many members are still in training, after every step.
        """
        stream, due = feed(self.plan.batches, self.seeds, self.plan.device), self.plan.evaluated()
        for step in range(self.plan.steps):
            batch, dim = next(stream)
            self._step(step, batch, dim)
            self._done = step + 1
            if self.live and self.plan.evaluate is not None and self._done in due:
                self._evaluate()
            yield len(self.live)
            if not self.live:
                break

    def close(self) -> None:
        """Note what became of the members still in training."""
        whole = self._done == self.plan.steps
        self._settle(range(len(self.live)), "finished" if whole else "interrupted")
        losses = self._losses.cpu()
        for i, record in enumerate(self.records):
            taken = record.steps + (record.status == "diverged")
            record.losses = losses[:taken, i].tolist()

    def _step(self, step: int, batch: Any, dim: int | None) -> None:
        moving = self.plan.factors[step] > 0
        if self.whole is not None and moving and self._at_once(step, batch, dim):
            return
        before = self._traces() if self._wholly else []
        named = {**self.beliefs.parameters(), **self.still}
        parameters = {name: p.detach().requires_grad_() for name, p in named.items()}
        losses = self._loss(parameters, batch, dim)
        grads = self._gradients(losses, parameters)
        pure = self._wholly and before == self._traces()
        with torch.no_grad():
            self._note(step, losses.detach())
            if not moving:
                return
            joined, fine = self.beliefs.gather(grads)
            if not bool(fine.all()):
                self._drop(fine)
                joined = [g[self.rows] for g in joined]
                self._compact()
            if self.live:
                numbers = self.tables.at(step, self.setting)
                self.beliefs.advance(joined, numbers, once=pure)
                if pure:
                    self._assemble(grads)
            self._wholly = False

    def _traces(self) -> list[Any]:
        """What a model changes that draws random numbers or keeps running statistics."""
        drawn = [one.draws.place for one in self.made.values()]
        return [*drawn, *(x._version for x in self.buffers.values())]

    def _assemble(self, grads: Tensors) -> None:
        """Have one program for the members there are."""
        self.beliefs.separate(grads)
        names = [name for segment in self.beliefs.segments for name in segment.names]
        keys = [scheme.key for scheme in self.beliefs.schemes()]
        schemes = self.beliefs.recorded()
        self.whole = Whole(schemes, keys, names, self.plan.maximize)
        self.alive = torch.ones(len(self.live), dtype=torch.bool, device=self.plan.device)

    @torch.no_grad()
    def _at_once(self, step: int, batch: Any, dim: int | None) -> bool:
        """Take a step as one program; whether that could be done."""
        assert self.whole is not None
        batch = batch if dim is None else _pick(batch, self.seed)
        fixed, known = {**self.buffers, **self.still}, partial(self.tables.met, step, self.setting)
        found = self.whole.run(self.use, self.beliefs, fixed, known, self.alive, batch, dim)
        if found is None:
            self.whole = None
            self._compact()
            return False
        losses, fine = found
        self._note(step, losses)
        if not torch.equal(fine, self.alive):
            self._drop(fine)
            self.alive = fine
        if self.plan.strict:
            self.beliefs.look(self.tables.at(step, self.setting))
        return True

    def _note(self, step: int, losses: Tensor) -> None:
        """Keep the losses of the members in training."""
        if len(self.live) == len(self.records):
            self._losses[step] = losses
        else:
            self._losses[step, self.live] = losses[self.rows].double()

    def _loss(self, parameters: Tensors, batch: Any, dim: int | None) -> Tensor:
        """Every member's loss."""
        if self.plan.randomness == "different" or len(self.seeds) == 1:
            spread = batch if dim is None else _pick(batch, self.seed)
            with self.made[self.seeds[0]].draws.running():
                return self._at(parameters, self.buffers, spread, dim)
        found = []  # members of one seed draw what a run of its own would
        for i, seed in enumerate(self.seeds):
            rows = torch.nonzero(self.seed == i).flatten()
            if not len(rows):
                continue
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            mine, buffers = ({n: x[part] for n, x in d.items()} for d in (parameters, self.buffers))
            own = batch if dim is None else _pick(batch, i)
            with self.made[seed].draws.running():
                found.append(self._at(mine, buffers, own, None))
        return torch.cat(found)

    def _at(self, parameters: Tensors, buffers: Tensors, batch: Any, dim: int | None) -> Tensor:
        losses = self.use.at(
            parameters, buffers, batch, in_dims=(dim,), randomness=self.plan.randomness
        )
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            shape = tuple(losses.shape[1:]) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"sweep: the loss must be one number per model, not {shape}")
        return losses

    def _gradients(self, losses: Tensor, parameters: Tensors) -> Tensors:
        """The gradients of every member's own loss."""
        if not losses.requires_grad:
            raise ValueError("sweep: the loss does not depend on the model's parameters")
        total = -losses.sum() if self.plan.maximize else losses.sum()
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        grads = {n: g for n, g in zip(parameters, found, strict=True) if g is not None}
        used = frozenset(grads)
        if self._used not in {None, used}:
            name = sorted(used ^ (self._used or used))[0]
            raise ValueError(
                f"sweep: {name} has a gradient in some steps and none in others, so that its "
                f"belief has an age of its own; members of a sweep step together"
            )
        if self._used is None and used != parameters.keys():
            self.still = {n: p.detach().clone() for n, p in parameters.items() if n not in used}
            self.beliefs = self._believe({n: parameters[n].detach() for n in grads})
        self._used = used
        return grads

    def _drop(self, fine: Tensor) -> None:
        """Take members out whose gradient is not finite: nothing of theirs changes any more."""
        sound = fine.tolist()
        left = [i for i, row in enumerate(self.rows) if sound[row]]
        self._settle([i for i, row in enumerate(self.rows) if not sound[row]], "diverged")
        self.live, self.rows = [self.live[i] for i in left], [self.rows[i] for i in left]

    def _compact(self) -> None:
        """Go on with the tensors of the members in training alone."""
        places = torch.tensor(self.rows, dtype=torch.long, device=self.plan.device)
        self.setting, self.seed = self.setting[places], self.seed[places]
        self.buffers, self.still = (
            {name: x[places] for name, x in d.items()} for d in (self.buffers, self.still)
        )
        self.beliefs.keep(places)
        self.rows = list(range(len(places)))

    def _settle(self, which: Sequence[int], status: str) -> None:
        """Note the fate of members, by their places among those in training."""
        if not which:
            return
        means = {**self.beliefs.means(), **self.still}
        for i in which:
            row, record = self.rows[i], self.records[self.live[i]]
            sound = all(bool(x[row].isfinite().all()) for x in means.values())
            record.status, record.steps = status if sound else "diverged", self._done
            if self.plan.keep:
                record.parameters = {n: x[row].clone() for n, x in means.items()}
                record.buffers = {n: x[row].clone() for n, x in self.buffers.items()}

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Evaluate the members in training at their posterior means."""
        assert self.plan.evaluate is not None
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with Draws(self.plan.device).running():  # what training draws does not depend on it
                means = {**self.beliefs.means(), **self.still}
                buffers = {name: x.clone() for name, x in self.buffers.items()}
                look = partial(_numbers, self.plan.evaluate)
                found = Use(self.model, look, "evaluate").at(means, buffers)
        finally:
            for module, mode in modes:
                module.training = mode
        for name, value in found.items():
            for row, place in zip(self.rows, self.live, strict=True):
                self.records[place].curves.setdefault(name, []).append(value[row].tolist())


def _numbers(evaluate: Callable[..., Any], model: nn.Module) -> Tensors:
    """What is found about one model, by name."""
    found = evaluate(model)
    named = found if isinstance(found, dict) else {"value": found}
    return {name: torch.as_tensor(value) for name, value in named.items()}


def _stack(several: list[Tensors]) -> Tensors:
    return {name: torch.stack([one[name] for one in several]) for name in several[0]}


def _pick(tree: Any, rows: Any) -> Any:
    """Rows of every tensor of a minibatch."""
    return mapped(lambda x: x[rows], tree)
