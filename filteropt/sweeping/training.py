"""Training the members of one chunk, all in the same steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from filteropt.sweeping.beliefs import Beliefs, can_compile
from filteropt.sweeping.feed import Minibatches, feed, mapped
from filteropt.sweeping.models import Draws, Use, make
from filteropt.sweeping.numbers import Tables
from filteropt.sweeping.settings import Setting

__all__ = ["Chunk", "Plan", "Record"]

Tensors = dict[str, Tensor]
WORTH_COMPILING = 10**9
"""Numbers times steps from which on a compiled step saves more time than compiling takes."""


@dataclass(frozen=True)
class Plan:
    """What all members have in common.

    Args:
        factory: makes a model.
        loss: from a model and a minibatch to its loss.
        batches: the minibatches.
        steps: how many are taken.
        factors: what a schedule multiplies learning rates by, step by step.
        evaluate: from a model to what is to be known about it, if anything.
        every: steps between two evaluations; the last step is followed by one in any case.
        strict: whether gradients are taken at the prediction.
        maximize: whether the objective is to be maximised.
        randomness: ``"different"`` or ``"same"``.
        compiled: whether steps are compiled; ``None`` where that saves time.
        keep: whether members' parameters are kept.
        device: where everything is.
    """

    factory: Callable[[], nn.Module]
    loss: Callable[..., Any]
    batches: Minibatches
    steps: int
    factors: list[float]
    evaluate: Callable[..., Any] | None
    every: int
    strict: bool
    maximize: bool
    randomness: str
    compiled: bool | None
    keep: bool
    device: torch.device

    def evaluated(self) -> list[int]:
        """Steps after which members are evaluated."""
        return [s for s in range(1, self.steps + 1) if s % self.every == 0 or s == self.steps]


@dataclass
class Record:
    """What became of one member.

    Attributes:
        status: ``"waiting"``, ``"finished"``, ``"diverged"`` or ``"interrupted"``.
        steps: how many it took.
        losses: before every step.
        curves: what was evaluated.
        parameters: its last posterior mean, on the CPU's side if it is there.
        buffers: its buffers.
    """

    status: str = "waiting"
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    curves: dict[str, list[Any]] = field(default_factory=dict)
    parameters: Tensors = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)


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
        named = {**self.beliefs.parameters(), **self.still}
        parameters = {name: p.detach().requires_grad_() for name, p in named.items()}
        losses = self._loss(parameters, batch, dim)
        grads = self._gradients(losses, parameters)
        with torch.no_grad():
            whole = len(self.live) == len(self.records)
            self._losses[step, slice(None) if whole else self.live] = losses.detach().double()
            if not self.plan.factors[step]:
                return
            joined, fine = self.beliefs.gather(grads)
            if not bool(fine.all()):
                joined = self._drop(joined, fine)
            if self.live:
                numbers = self.tables.at(step, self.setting)
                self.beliefs.advance(joined, numbers, gained=self.tables.gained)

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

    def _drop(self, joined: list[Tensor], fine: Tensor) -> list[Tensor]:
        """Take members out whose gradient is not finite: nothing of theirs changes any more."""
        self._settle((~fine).nonzero().flatten().tolist(), "diverged")
        places = fine.nonzero().flatten()
        self.live = [self.live[i] for i in places.tolist()]
        self.setting, self.seed = self.setting[places], self.seed[places]
        self.buffers, self.still = (
            {name: x[places] for name, x in d.items()} for d in (self.buffers, self.still)
        )
        self.beliefs.keep(places)
        return [g[places] for g in joined]

    def _settle(self, rows: Sequence[int], status: str) -> None:
        """Note the fate of members, by their rows among those in training."""
        if not rows:
            return
        means = {**self.beliefs.means(), **self.still}
        for row in rows:
            record = self.records[self.live[row]]
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
            for row, place in enumerate(self.live):
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
