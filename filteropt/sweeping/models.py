"""Stacked models: every member's parameters and buffers side by side, and losses of them all."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

__all__ = ["Draws", "Made", "Use", "make"]

Tensors = dict[str, Tensor]
PREFIX = "model."


class Draws:
    """A stream of random numbers beside PyTorch's own, which is as it was after each use.

    Args:
        device: where random numbers are drawn, besides the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._state = self._read()

    @property
    def place(self) -> bytes:
        """How far the stream has come, the same as before if nothing was drawn."""
        return b"".join(x.numpy().tobytes() for x in self._state if x is not None)

    @contextmanager
    def running(self) -> Generator[None, None, None]:
        """Let PyTorch draw from this stream."""
        outside = self._read()
        self._write(self._state)
        try:
            yield
        finally:
            self._state = self._read()
            self._write(outside)

    def _read(self) -> tuple[Tensor, Tensor | None]:
        cuda = None if self._cuda is None else torch.cuda.get_rng_state(self._cuda)
        return torch.get_rng_state(), cuda

    def _write(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if self._cuda is not None and state[1] is not None:
            torch.cuda.set_rng_state(state[1], self._cuda)


class Made:
    """A seed's model, as the factory makes it, and the random numbers that come next.

    Attributes:
        model: the model.
        draws: the stream that goes on where the factory stopped.
    """

    def __init__(self, factory: Callable[[], nn.Module], seed: int, device: torch.device) -> None:
        self.draws = Draws(device)
        with self.draws.running():
            torch.manual_seed(seed)
            self.model = factory()
            if not isinstance(self.model, nn.Module):
                raise TypeError(
                    f"sweep: model={factory!r} must make a torch.nn.Module when it is called "
                    f"without arguments, not {type(self.model).__name__}"
                )
            self.model.to(device)

    def trained(self) -> Tensors:
        """The parameters that are trained."""
        found = self.model.named_parameters()
        return {name: p.detach() for name, p in found if p.requires_grad}

    def kept(self) -> Tensors:
        """The frozen parameters and the buffers."""
        frozen = {n: p.detach() for n, p in self.model.named_parameters() if not p.requires_grad}
        return {**frozen, **{name: b.detach() for name, b in self.model.named_buffers()}}


def make(
    factory: Callable[[], nn.Module], seeds: Sequence[int], device: torch.device
) -> dict[int, Made]:
    """One model for every seed.

    Args:
        factory: makes the model.
        seeds: what ``torch.manual_seed`` is given before.
        device: where the models go.

    Returns:
        Models by seed.

    Raises:
        TypeError: the factory makes no module, or complex parameters.
        ValueError: two seeds' models differ in names or shapes, or nothing is trained.
    """
    made = {seed: Made(factory, seed, device) for seed in seeds}
    forms = {}
    for seed, one in made.items():
        tensors = {**one.trained(), **one.kept()}
        forms[seed] = {name: (x.shape, x.dtype) for name, x in tensors.items()}
        first = forms[seeds[0]]
        if differ := [n for n in {**first, **forms[seed]} if first.get(n) != forms[seed].get(n)]:
            raise ValueError(
                f"sweep: seeds {seeds[0]} and {seed} make models that differ in {differ[0]}; "
                f"members of one sweep have one architecture"
            )
    trained = made[seeds[0]].trained()
    if not trained:
        raise ValueError("sweep: the model has no parameter that requires a gradient")
    for name, p in trained.items():
        if not p.dtype.is_floating_point:
            raise TypeError(f"sweep: parameter {name!r} is {p.dtype}; filters hold real weights")
    return made


class Use(nn.Module):
    """A function of a model as a module, so that it can be called at other tensors.

    Args:
        model: the model.
        function: called with the model and what else it is given.
        called: what to call the function in a message.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Any], called: str) -> None:
        super().__init__()
        self.model, self.function, self.called = model, function, called

    def forward(self, *args: Any) -> Any:
        """The function's result."""
        return self.function(self.model, *args)

    def at(
        self,
        parameters: Tensors,
        buffers: Tensors,
        *args: Any,
        in_dims: tuple[int | None, ...] = (),
        randomness: str = "different",
    ) -> Any:
        """The function's results for all members.

        Args:
            parameters: stacked, by their names in the model.
            buffers: stacked; what changes in place stays changed.
            *args: what else the function is given.
            in_dims: for each of these, 0 where members have their own, else ``None``.
            randomness: ``"different"`` for every member, or the ``"same"``.

        Returns:
            Its results, stacked.

        Raises:
            RuntimeError: ``vmap`` does not run it.
            torch.OutOfMemoryError: a GPU has no room for it.
        """
        try:
            return self.over(parameters, buffers, *args, in_dims=in_dims, randomness=randomness)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"sweep: torch.func.vmap does not run {self.called} of {type(self.model).__name__} "
                f"(it runs no recurrent layers, and no code that reads values, such as .item()): "
                f"{str(error).strip().splitlines()[0]}"
            ) from error

    def over(
        self,
        parameters: Tensors,
        buffers: Tensors,
        *args: Any,
        in_dims: tuple[int | None, ...],
        randomness: str,
    ) -> Any:
        """What :meth:`at` does, errors as they come."""
        named = [{PREFIX + n: x for n, x in d.items()} for d in (parameters, buffers)]

        def one(*given: Any) -> Any:
            return functional_call(self, given[:2], given[2:])

        return vmap(one, in_dims=(0, 0, *in_dims), randomness=randomness)(*named, *args)
