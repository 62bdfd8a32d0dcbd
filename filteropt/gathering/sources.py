"""Who gathers what a likelihood needs beside the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from filteropt.dtypes import belief_dtype
from filteropt.gathering.example_squares import ExampleSquares
from filteropt.gathering.layer_watch import LayerWatch
from filteropt.gathering.ledger import Ledger
from filteropt.gathering.recorder import Recorder
from filteropt.measure import local, several

__all__ = ["Gathering"]

SOURCES = {
    "jacobians": {"rows", "squares"},
    "examples": {"squares"},
    "labels": {"squares"},
    "samples": {"squares", "products"},
    "layers": {"layer"},
}
"""Per-example Jacobians and gradients, sampled labels, draws from the belief, layers' inputs and
outputs; what each gives."""

MODEL = ("jacobians", "examples", "layers")
"""Sources that look into the model."""

Seen = dict[Tensor, dict[str, Any]]


class Gathering:
    """What an optimizer gathers between two steps, beside ``p.grad``."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.recorder: Recorder | None = None
        self.examples: ExampleSquares | None = None
        self.layers: LayerWatch | None = None

    def watch(self, owner: str, model: nn.Module | None, part: Any, params: Any) -> None:
        """Watch the model, if a part of the filter looks into it.

        Args:
            owner: the optimizer's name, for messages.
            model: the module whose output the loss is computed from.
            part: the group's likelihood, or its basis.
            params: the group's parameters.

        Raises:
            ValueError: no model, or parameters that are not the model's.
        """
        if part.needs <= {"grad"}:
            return
        core = getattr(part, "core", part)
        source, what = core.source, type(core).__name__
        if not part.needs - {"grad"} <= SOURCES.get(source, set()):
            raise ValueError(
                f"{owner}: {what} needs {sorted(part.needs)} of source={source!r}; sources give "
                f"{SOURCES}"
            )
        if source not in MODEL:
            return
        if model is None:
            raise ValueError(
                f"{owner}: pass model=, the module whose output the loss is computed from; "
                f"{what} looks into the model"
            )
        if source == "jacobians":
            self.recorder = self.recorder or Recorder(model)
            self.recorder.require(params)
        elif source == "examples":
            self.examples = self.examples or ExampleSquares(model, self.ledger)
            self.examples.require(params, core)
        else:
            self.layers = self.layers or LayerWatch(model, self.ledger)
            self.layers.require(params, core, vectors=not hasattr(core, "gives"))

    def look(self, part: Any, params: list[Tensor]) -> Seen:
        """What was gathered for a group, as fields of :class:`~filteropt.types.Raw`.

        Args:
            part: the group's likelihood, or its basis.
            params: its parameters that have a gradient.

        Returns:
            Fields by parameter.

        Raises:
            RuntimeError: nothing was gathered.
        """
        if part.needs <= {"grad"} or not params:
            return {}
        core = getattr(part, "core", part)
        if core.source == "jacobians":
            assert self.recorder is not None, "watched since construction"
            return self.recorder.look(params, core)
        if core.source == "examples":
            assert self.examples is not None, "watched since construction"
            return self.examples.look(params, core)
        if core.source == "layers":
            assert self.layers is not None, "watched since construction"
            return self.layers.look(params, core)
        return self._labels(params) if core.source == "labels" else self._samples(params, core)

    def _labels(self, params: list[Tensor]) -> Seen:
        found = {p: self.ledger.look(p, "label_squares") for p in params}
        if all(squares is None for squares in found.values()):
            raise RuntimeError(
                "no sampled labels were seen since the last step: inside of `with "
                "opt.fisher_pass():` call backward on the loss of filteropt.sample_labels(outputs)"
            )
        return {
            p: {"squares": torch.zeros_like(_local_grad(p)) if squares is None else squares}
            for p, squares in found.items()
        }

    def _samples(self, params: list[Tensor], core: Any) -> Seen:
        if not self.ledger.begun and self.ledger.samples == 1:
            raise RuntimeError(
                "no gradient was taken at a draw since the last step: compute loss and backward "
                "inside of `with opt.sampled_params(train=True):`"
            )
        seen: Seen = {p: {} for p in params}
        for p, fields in seen.items():
            grad = _local_grad(p)
            if "products" in core.needs:
                products = self.ledger.look(p, "products")
                if products is None and bool(grad.any()):
                    raise RuntimeError(
                        f"a parameter of shape {tuple(p.shape)} has a gradient that no backward() "
                        f"brought it at a draw, so that there is no curvature to go with it"
                    )
                fields["products"] = torch.zeros_like(grad) if products is None else products
            if "squares" in core.needs:
                several = self.ledger.samples > 1
                squares = self.ledger.look(p, "grad_squared") if several else None
                fields["squares"] = grad.square() if squares is None else local(squares)
            if _together(core):
                fields["grad"] = grad
                fields.update({name: _average(value) for name, value in fields.items()})
        return seen

    def settle(self) -> None:
        """Finish what is to be looked at where the weights are now."""
        if self.examples is not None:
            self.examples.settle()

    def pause(self, paused: bool) -> None:
        """Whether backward passes are of another loss.

        Args:
            paused: whether they are.
        """
        self.ledger.paused = paused
        for watcher in (self.examples, self.layers):
            if watcher is not None:
                watcher.paused = paused

    def restart(self, params: Iterable[Tensor]) -> None:
        """Start another Monte Carlo sample: gradients are about to be taken away.

        Args:
            params: all the parameters.
        """
        self.ledger.fold(params)
        if self.recorder is not None:
            self.recorder.clear()
        for watcher in (self.examples, self.layers):
            if watcher is not None:
                watcher.restart()

    def clear(self, state: Any = None) -> None:
        """Forget what was gathered.

        Args:
            state: the optimizer's, of which the next gathering counts the steps taken.
        """
        self.ledger.clear()
        if self.layers is not None and state is not None:
            self.layers.ages = {p: int(own["step"]) for p, own in state.items() if "step" in own}
        for watcher in (self.recorder, self.examples, self.layers):
            if watcher is not None:
                watcher.clear()


def _local_grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return local(p.grad).detach().to(belief_dtype(p))


def _average(value: Tensor) -> Tensor:
    """The mean over processes."""
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def _together(core: Any) -> bool:
    """Whether several processes are to be averaged over; they must, if there are several."""
    if several() and not getattr(core, "sync", False):
        raise RuntimeError(
            "several processes train here, each with its own draws; pass sync=True, which averages "
            "gradients and curvature over them"
        )
    return several()
