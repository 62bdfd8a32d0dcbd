"""Per-example Jacobians of the minibatches that a step's gradients come from."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from filteropt.dtypes import belief_dtype
from filteropt.measure import several

__all__ = ["Recorder", "hidden_tensors", "is_transformed"]


class Loss(Protocol):
    """What a likelihood says of its loss, and of the memory that it may take."""

    needs: frozenset[str]
    memory: float

    def root(self, output: Tensor) -> Tensor:
        """A square root of the loss' Hessian at one example's outputs."""


class Minibatch(NamedTuple):
    """The inputs of one forward pass, the shape of its output, and what stands in the way."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: torch.Size
    versions: list[int]
    obstacle: str


class Recorder:
    """Remembers the inputs of the model whose outputs were backpropagated into.

    A forward pass counts once a gradient reaches its output, so that evaluation does not count and
    accumulated gradients count together; those before count no longer where the model's gradients
    have been taken away meanwhile.

    Args:
        model: the module whose output the loss is computed from.
    """

    measuring: ClassVar[bool] = False  # whether any recorder is running the model itself

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.minibatches: list[Minibatch] = []
        handle = model.register_forward_hook(_Watch(self), with_kwargs=True)
        weakref.finalize(self, handle.remove)

    def clear(self) -> None:
        """Forget the minibatches."""
        self.minibatches.clear()

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: no data."""
        return {**self.__dict__, "minibatches": []}

    def watch(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        """Note a forward pass, to be counted when a gradient reaches its output."""
        if self.measuring or not torch.is_grad_enabled() or is_transformed(output):
            return
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned {type(output).__name__}; per-example Jacobians need a model "
                f"that returns one tensor, with the examples in its first dimension"
            )
        if output.requires_grad:
            args = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
            versions = [x._version for x in args if isinstance(x, Tensor)]
            seen = Minibatch(args, kwargs, output.shape, versions, _obstacle(self.model))
            output.register_hook(partial(self._count, seen))  # type: ignore[no-untyped-call]  # torch's own

    def _count(self, seen: Minibatch, _: Tensor) -> None:
        if all(p.grad is None for p in self.model.parameters()):
            self.minibatches.clear()
        if not any(minibatch is seen for minibatch in self.minibatches):
            self.minibatches.append(seen)

    def look(self, params: list[Tensor], loss: Any) -> dict[Tensor, dict[str, Tensor]]:
        """Compute what the likelihood needs of the minibatches' Gauss–Newton matrix.

        Args:
            params: the parameters, all of them the model's (see :meth:`require`).
            loss: the likelihood, which knows the loss' Hessian and how much memory to take.

        Returns:
            ``rows`` or ``squares`` of every parameter, in the belief's dtype, summed over examples.

        Raises:
            RuntimeError: no minibatch was seen, or several processes train together.
            TypeError: inputs that do not have the examples in their first dimension.
            ValueError: a layer that mixes examples.
        """
        named: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        if not self.minibatches:
            raise RuntimeError(
                "no minibatch was seen since the last step: the loss must come from calling the "
                "optimizer's model itself, as in loss_function(model(x), y).backward()"
            )
        self._refuse()
        chosen = {named[p]: p for p in params}
        sums = {name: _Sum(p, rows="rows" in loss.needs) for name, p in chosen.items()}
        for minibatch in self.minibatches:
            for block in self._blocks(chosen, minibatch, loss):
                for name, rows in block.items():
                    sums[name].add(rows.flatten(0, 1).to(belief_dtype(rows)))
        return {p: sums[name].result() for name, p in chosen.items()}

    def require(self, params: list[Tensor]) -> None:
        """Refuse parameters that are not the model's.

        Args:
            params: the parameters.

        Raises:
            ValueError: a parameter that the model does not own.
        """
        known = set(self.model.parameters())
        for p in params:
            if p not in known:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is not one of "
                    f"model={type(self.model).__name__}'s; pass the module that owns every "
                    f"parameter and makes the loss (wrap a model in Flat before taking them)"
                )

    def _refuse(self) -> None:
        """Refuse what per-example Jacobians do not exist for."""
        for minibatch in self.minibatches:
            if minibatch.obstacle:
                raise ValueError(minibatch.obstacle)
            tensors = [x for x in minibatch.args if isinstance(x, Tensor)]
            if [x._version for x in tensors] != minibatch.versions:
                raise RuntimeError(
                    "an input of the model was changed in place between its forward pass and the "
                    "step, which looks at it again; give the model a copy"
                )
        if several():
            raise RuntimeError(
                "Gauss–Newton curvature is gathered on one process; several are training here"
            )

    def _blocks(
        self, params: dict[str, Tensor], minibatch: Minibatch, loss: Loss
    ) -> Iterator[dict[str, Tensor]]:
        """Rows of the Gauss–Newton matrix, ``(examples, outputs, *shape)``, within the memory."""
        args, kwargs, shape, *_ = minibatch
        tensors = [x for x in args if isinstance(x, Tensor)]
        apart = [x for x in args if not isinstance(x, Tensor)]
        if hidden := list(hidden_tensors([apart, kwargs])):
            raise TypeError(
                f"the model was called with {len(hidden)} tensors as keywords or in containers; "
                f"per-example Jacobians need every tensor as an argument of its own"
            )
        if not tensors or not shape or any(x.shape[:1] != shape[:1] for x in tensors):
            raise TypeError(
                f"the model's inputs have shapes {[tuple(x.shape) for x in tensors]} and its "
                f"output {tuple(shape)}; per-example Jacobians need the examples in the first "
                f"dimension of each"
            )
        weights = {name: p.detach() for name, p in params.items()}

        def rows_of_one(*example: Any) -> dict[str, Tensor]:
            """The rows of one example, whitened by the loss' Hessian: ``(outputs, *shape)``."""
            one = tuple(x.unsqueeze(0) if isinstance(x, Tensor) else x for x in example)
            output, pull_back, *_ = vjp(
                lambda w: functional_call(self.model, w, one, kwargs).squeeze(0), weights
            )
            root = loss.root(output)
            directions = root.mT.reshape(-1, *output.shape)
            found: dict[str, Tensor] = vmap(lambda v: pull_back(v)[0])(directions)
            return found

        outputs = max(1, shape.numel() // max(1, shape[0]))
        per_example = outputs * sum(p.numel() * p.element_size() for p in weights.values())
        size = max(1, int(loss.memory // max(1, per_example)))
        in_dims = tuple(0 if isinstance(x, Tensor) else None for x in args)
        for start in range(0, shape[0], size):
            chunk = [x[start : start + size] if isinstance(x, Tensor) else x for x in args]
            Recorder.measuring = True
            try:
                with torch.enable_grad():
                    block = vmap(rows_of_one, in_dims=in_dims)(*chunk)
            except RuntimeError as error:
                raise RuntimeError(
                    f"per-example Jacobians of {type(self.model).__name__} failed. torch.func.vmap "
                    f"runs no recurrent layers, functional dropout, buffers that change, branches "
                    f"on values, hooks that read them, or DataParallel: {error}"
                ) from error
            finally:
                Recorder.measuring = False
            yield {name: rows.detach() for name, rows in block.items()}


class _Sum:
    """A running sum of rows' outer products, or of their squares, for one parameter."""

    def __init__(self, p: Tensor, *, rows: bool) -> None:
        self.shape, self.rows = p.shape, rows
        size = (0, p.numel()) if rows else (p.numel(),)
        self.total = torch.zeros(size, dtype=belief_dtype(p), device=p.device)

    def add(self, rows: Tensor) -> None:
        """Take in more rows, ``(r, *p.shape)``."""
        rows = rows.flatten(1) if rows.dim() > 1 else rows[:, None]
        if not self.rows:
            self.total += rows.square().sum(0)
            return
        self.total = torch.cat([self.total, rows])
        if len(self.total) > self.shape.numel():  # JᵀJ has no more directions than weights
            self.total = torch.linalg.qr(self.total, mode="r").R

    def result(self) -> dict[str, Tensor]:
        if self.rows:
            return {"rows": self.total.reshape(len(self.total), *self.shape)}
        return {"squares": self.total.reshape(self.shape)}


def hidden_tensors(value: object) -> Iterator[Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from hidden_tensors(item)


def _obstacle(model: nn.Module) -> str:
    """Why a forward pass in the model's present mode has no per-example Jacobians; else nothing."""
    mixing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, module in model.named_modules():
        idle = getattr(module, "p", 1) == 0  # a dropout that drops nothing
        if module.training and isinstance(module, mixing) and not idle:
            return (
                f"layer {name!r} ({type(module).__name__}) mixes examples or draws noise while "
                f"training, so that the loss has no per-example Jacobians; call its eval(), or "
                f"use a layer such as GroupNorm"
            )
    return ""


def is_transformed(output: object) -> bool:
    """Whether a pass with this output runs in a transform of torch.func (no public test exists)."""
    wrapped: bool = isinstance(output, Tensor) and (
        torch._C._functorch.is_functorch_wrapped_tensor(output)  # type: ignore[no-untyped-call, unused-ignore]  # untyped in some releases
    )
    return wrapped


class _Watch:
    """A forward hook that does not keep its recorder alive, and can be pickled and copied."""

    def __init__(self, recorder: Recorder | None) -> None:
        self.recorder = weakref.ref(recorder) if recorder is not None else lambda: None

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a hook reads its inputs eagerly
    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        recorder = self.recorder()
        if recorder is not None:
            recorder.watch(args, kwargs, output)

    def __reduce__(self) -> tuple[type[_Watch], tuple[Recorder | None]]:
        return _Watch, (self.recorder(),)
