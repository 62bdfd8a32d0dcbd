"""Forward passes of a model at weights drawn from an optimizer's belief."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from filteropt.batch_statistics import Batches, Inputs, arguments, estimate, unchanged
from filteropt.measure import is_dtensor

__all__ = ["Plan", "at_mean", "perform"]

_REFUSED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models that ``vmap`` was found not to run, of which it has been told."""


class Plan(NamedTuple):
    """What to run, and where.

    Attributes:
        model: the model.
        opt: the optimizer that believes something about its weights.
        x: the model's inputs.
        n_samples: how many draws; 0 for the posterior mean.
        generator: source of randomness.
        temperature: factor on the covariance.
        batch_stats: data to estimate the statistics of BatchNorm layers from, if any.
        memory: bytes for the draws that are looked at together.
    """

    model: nn.Module
    opt: Any
    x: Inputs
    n_samples: int
    generator: torch.Generator | None
    temperature: float
    batch_stats: Batches | None
    memory: float

    def params(self) -> dict[str, Tensor]:
        """The model's parameters that are the optimizer's, by name."""
        owned = {p for group in self.opt.param_groups for p in group["params"]}
        return {name: p for name, p in self.model.named_parameters() if p in owned}

    def run(self) -> Tensor:
        """The model's output at its present weights."""
        if self.batch_stats is not None:
            estimate(self.model, self.batch_stats)
        args, kwargs = arguments(self.x)
        output = self.model(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"predict: {type(self.model).__name__} returned {type(output).__name__}; wrap it "
                f"in a module that returns one tensor, such as the logits"
            )
        return output

    def draw(self) -> Any:
        """Let the parameters hold the next draw."""
        return self.opt.sampled_params(generator=self.generator, temperature=self.temperature)


def perform(plan: Plan, take: Callable[[Tensor], None]) -> None:
    """Run the model at every draw, several at a time where that works, and hand on what it says.

    The first draw is looked at on its own, which tells how much memory a draw takes and what
    ``vmap`` is to find for it.

    Args:
        plan: what to run.
        take: called with outputs, ``(draws, *output.shape)``, until all draws have been handed on.
    """
    with unchanged(plan.model):
        plan.model.eval()
        if not plan.n_samples or not plan.temperature:
            with at_mean(plan.opt):
                take(plan.run().unsqueeze(0))
            return
        params = plan.params()
        with plan.draw(), _traffic(plan.model) as traffic:
            output = plan.run()
            first = {name: p.detach().clone() for name, p in params.items()}
        size = _together(plan, first, traffic[0])
        if size < 2:
            take(output.unsqueeze(0))
            for _ in range(1, plan.n_samples):
                with plan.draw():
                    output = plan.run()
                take(output.unsqueeze(0))
            return
        for start in range(0, plan.n_samples, size):
            count = min(size, plan.n_samples - start)
            weights = {name: p.new_empty(count, *p.shape) for name, p in first.items()}
            for i in range(count):
                _keep(plan, params, weights, i, None if start or i else first)
            take(_outputs(plan, params, weights, None if start else output))


def _together(plan: Plan, weights: dict[str, Tensor], traffic: int) -> int:
    """How many draws to look at together."""
    if (
        plan.batch_stats is not None
        or plan.model in _REFUSED
        or any(map(is_dtensor, weights.values()))
    ):
        return 1
    per_draw = traffic + sum(p.numel() * p.element_size() for p in weights.values())
    return min(plan.n_samples, int(plan.memory // max(1, per_draw)))


def _keep(
    plan: Plan,
    params: dict[str, Tensor],
    weights: dict[str, Tensor],
    i: int,
    known: dict[str, Tensor] | None,
) -> None:
    """Put the next draw, or one that is known already, in the i-th place."""
    if known is not None:
        for name, p in known.items():
            weights[name][i].copy_(p)
        return
    with plan.draw():
        for name, p in params.items():
            weights[name][i].copy_(p.detach())


def _outputs(
    plan: Plan, params: dict[str, Tensor], weights: dict[str, Tensor], known: Tensor | None
) -> Tensor:
    """Outputs at stacked weights, of which the first one's may be known; by a loop if need be."""
    args, kwargs = arguments(plan.x)
    if plan.model not in _REFUSED:
        try:
            found: Tensor = vmap(lambda w: functional_call(plan.model, w, args, kwargs))(weights)
            if known is None or _agree(found[0], known):
                return found
            why = "what it finds for one draw is not what the model says at that draw"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the model itself ran: whatever this is, it is vmap's
            why = str(error).strip().split("\n")[0]
        _REFUSED.add(plan.model)
        warnings.warn(
            f"predict: draws of {type(plan.model).__name__} are looked at one after the other, "
            f"since torch.func.vmap does not run it: {why}",
            stacklevel=5,
        )
    means = {name: p.detach().clone() for name, p in params.items()}
    try:
        outputs = []
        for i in range(len(next(iter(weights.values())))):
            _write(params, {name: stacked[i] for name, stacked in weights.items()})
            outputs.append(plan.run())
        return torch.stack(outputs)
    finally:
        _write(params, means)


def _write(params: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    for name, p in params.items():
        p.copy_(weights[name])
    torch.clear_autocast_cache()  # else autocast goes on with the weights that it has cast


def _agree(found: Tensor, known: Tensor) -> bool:
    """Whether two ways to the same outputs lead there, but for rounding."""
    if found.shape != known.shape:
        return False
    x, y = found.detach().double(), known.detach().double()
    far = (x - y).abs().nan_to_num(0.0).sum()
    return bool(far <= torch.finfo(known.dtype).eps ** 0.5 * y.abs().nan_to_num(0.0).sum())


@contextmanager
def at_mean(opt: Any) -> Generator[None, None, None]:
    """Let an optimizer's parameters hold their posterior mean, then what they held, bit for bit.

    Args:
        opt: the optimizer.

    Yields:
        Nothing.

    Raises:
        RuntimeError: the parameters hold a draw.
    """
    if opt._drawn:
        raise RuntimeError("the parameters hold a draw; leave sampled_params first")
    turned = opt._hold_means()
    try:
        yield
    finally:
        opt._hold_again(turned)


@contextmanager
def _traffic(model: nn.Module) -> Generator[list[int], None, None]:
    """Measure the most bytes that go into and out of any one layer."""
    most = [0]

    def note(_: nn.Module, args: Any, output: Any) -> None:
        tensors = [x for x in (*args, output) if isinstance(x, Tensor)]
        most[0] = max(most[0], sum(x.numel() * x.element_size() for x in tensors))

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        yield most
    finally:
        for handle in handles:
            handle.remove()
