"""Hooks on a model's layers and parameters, which tell what passes through them."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from filteropt.gathering.example_gradients import Call
from filteropt.gathering.layer_uses import Seen, see
from filteropt.gathering.layers import kind_of
from filteropt.gathering.recorder import Recorder, hidden_tensors, is_transformed

__all__ = ["ModelWatch"]


class ModelWatch:
    """Watches a model's layers; who inherits from it says what to do with what they tell.

    Before its first training pass the model is called once more, on one example in eval mode.

    Args:
        model: the module whose output the loss is computed from.

    Attributes:
        wanted: the parameters that are watched, each with what was asked for it.
        names: every parameter's name.
        by_example: whether layers must tell examples apart.
        calls: whether calls of the model itself are of interest.
    """

    by_example: bool = True
    calls: ClassVar[bool] = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.wanted: dict[Tensor, Any] = {}
        self.names: dict[Tensor, str] = {}
        self._layers: set[nn.Module] = set()
        self._start()
        handles = [
            model.register_forward_pre_hook(EagerHook(self, "_enter"), with_kwargs=True),
            model.register_forward_hook(
                EagerHook(self, "_leave"), with_kwargs=True, always_call=True
            ),
        ]
        for handle in handles:
            weakref.finalize(self, handle.remove)

    def _start(self) -> None:
        self._armed: set[Tensor] = set()
        self._strangers: set[nn.Module] = set()  # layers whose first dimension is not the examples
        self._probing: bool | None = None  # in a probe, or not; None before it
        self._examples: int | None = None  # of the call that is running
        self._odd = False

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: hooks on parameters are made anew."""
        return {name: vars(self)[name] for name in ("model", "wanted", "names", "_layers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back with nothing seen."""
        vars(self).update(state)
        self._start()

    def watch(self, params: list[Tensor], asked: Any) -> None:
        """Watch parameters, and every layer that the model has by now.

        Args:
            params: the parameters.
            asked: what is asked for each of them.

        Raises:
            ValueError: a parameter that the model does not own.
        """
        self.names = {p: name for name, p in self.model.named_parameters()}
        for p in params:
            if p not in self.names:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is not model="
                    f"{type(self.model).__name__}'s; pass the module that owns every parameter"
                )
            self.wanted[p] = asked
        self._probing = None
        for layer in self.model.modules():
            if layer not in self._layers and kind_of(layer) is not None:
                self._layers.add(layer)
                hook = EagerHook(self, "_see")
                handle = layer.register_forward_hook(hook, prepend=True, with_kwargs=True)
                weakref.finalize(self, handle.remove)
        self._arm()

    def _arm(self) -> None:
        """Learn when a parameter's gradient was accumulated."""
        for p in self.wanted.keys() - self._armed:
            if p.requires_grad:
                hook = Hook(self, "_at_parameter")
                handle = p.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch's own
                weakref.finalize(self, handle.remove)
                self._armed.add(p)

    def _enter(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Note of how many examples the model is called."""
        if Recorder.measuring:
            return
        first = next(hidden_tensors([*args, *kwargs.values()]), None)
        self._examples = len(first) if first is not None and first.dim() else None
        self._odd = False
        if len(self._armed) < len(self.wanted):
            self._arm()
        train = self.by_example and torch.is_grad_enabled() and not is_transformed(first)
        if self._probing is None and train and self._examples is not None and self._examples > 1:
            self._probe(_one(args, self._examples), _one(kwargs, self._examples))

    def _probe(self, args: Any, kwargs: Any) -> None:
        """Find layers that see other numbers of things than examples, by one example's call.

        They may be as many as the examples by coincidence: times in a sequence, say.
        """
        training = [module for module in self.model.modules() if module.training]
        Recorder.measuring = self._probing = True
        try:
            for module in training:
                module.training = False
            devices = {x.device for x in hidden_tensors([args, kwargs]) if x.is_cuda}
            with torch.no_grad(), torch.random.fork_rng(list(devices)):
                self.model(*args, **kwargs)
        except Exception:  # a model may not run on one example: then nothing is found
            pass
        finally:
            Recorder.measuring = self._probing = False
            for module in training:
                module.training = True

    def _leave(self, model: nn.Module, args: Any, kwargs: Any, output: object) -> None:
        """Note the call, to be kept if a gradient reaches its output and it may be needed."""
        if Recorder.measuring:
            return
        odd, self._odd, self._examples = self._odd, False, None
        if not self.calls or not torch.is_grad_enabled() or is_transformed(output):
            return
        args = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
        for tensor in hidden_tensors([output]):
            if tensor.requires_grad:
                kind = "Tensor" if tensor is output else type(output).__name__
                call = Call(args, kwargs, kind, odd=odd)
                tensor.register_hook(partial(self._at_output, call))  # type: ignore[no-untyped-call]  # torch's own

    def _see(self, layer: nn.Module, args: Any, kwargs: Any, output: object) -> None:
        """Note what a layer saw, to be used if a gradient reaches its output."""
        inputs = [*args, *kwargs.values()]
        if self._probing and (inputs[0].dim() == 0 or len(inputs[0]) != 1):
            self._strangers.add(layer)
        if Recorder.measuring or not torch.is_grad_enabled():
            return
        if not isinstance(output, Tensor) or not output.requires_grad or is_transformed(output):
            return
        examples = -1 if layer in self._strangers else self._examples
        seen = see(layer, inputs, self.wanted, examples, by_example=self.calls)
        if seen is not None:
            self._odd |= bool(seen.odd or seen.apart)
            output.register_hook(partial(self._at_layer, seen))  # type: ignore[no-untyped-call]  # torch's own

    def _at_layer(self, seen: Seen, delta: Tensor) -> None:
        """A gradient reached a layer's output."""
        raise NotImplementedError

    def _at_output(self, call: Call, delta: Tensor) -> None:
        """A gradient reached an output of the model."""
        raise NotImplementedError

    def _at_parameter(self, p: Tensor) -> None:
        """A parameter's gradient was accumulated."""
        raise NotImplementedError


def _one(value: Any, examples: int) -> Any:
    """The first example of what are examples, in nested containers."""
    if isinstance(value, Tensor):
        return value[:1] if value.dim() and len(value) == examples else value
    if isinstance(value, dict):
        return {key: _one(item, examples) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_one(item, examples) for item in value)
    return value


class Hook:
    """A method as a hook that does not keep its object alive, and can be pickled and copied."""

    def __init__(self, owner: object, method: str) -> None:
        self.owner = weakref.ref(owner) if owner is not None else lambda: None
        self.method = method

    def __call__(self, *args: Any) -> None:
        """Call the method, while its object lives."""
        owner = self.owner()
        if owner is not None:
            getattr(owner, self.method)(*args)

    def __reduce__(self) -> tuple[type[Hook], tuple[object, str]]:
        return type(self), (self.owner(), self.method)


class EagerHook(Hook):
    """The same, which reads its inputs eagerly where the model is compiled."""

    def __call__(self, *args: Any) -> None:
        """Call the method, while its object lives."""
        if torch.compiler.is_dynamo_compiling():
            self._break(*args)
        else:
            super().__call__(*args)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own
    def _break(self, *args: Any) -> None:
        super().__call__(*args)
