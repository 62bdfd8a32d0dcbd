"""A model whose weights lie in one tensor, so that a dense posterior is joint over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Flat"]


class Flat(nn.Module):
    r"""A model with all its weights in one parameter, ``flat``.

    .. math:: f(x;\, w), \qquad w = (\operatorname{vec} W_1, \operatorname{vec} b_1, \dots)

    A :class:`~filteropt.approximations.Dense` posterior keeps the covariance of one tensor; this
    makes that tensor the whole model. The model is taken over, not copied: its layers stay, with
    their buffers and modes, but own no parameters outside of a forward pass until
    :meth:`unflatten`: load a checkpoint of theirs before, and do not recompute their activations
    (``torch.utils.checkpoint``) in the backward pass. Weights that were shared stay shared. Nothing
    is approximated.

    Args:
        model: the module to take over. All of its parameters must share one dtype and device.

    Raises:
        ValueError: no parameters, several dtypes or devices, frozen parameters, or a recurrent
            layer, which keeps aliases of its parameters.

    Example:
        >>> import torch, filteropt
        >>> model = filteropt.Flat(torch.nn.Linear(3, 2))
        >>> [(name, tuple(p.shape)) for name, p in model.named_parameters()]
        [('flat', (8,))]
        >>> model(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
        >>> model.unflatten()
        Linear(in_features=3, out_features=2, bias=True)

    Source: the global extended Kalman filter, :eq:`eq-ekf`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = list(model.named_parameters())
        if len({(p.dtype, p.device) for _, p in named}) != 1:
            kinds = sorted({f"{p.dtype} on {p.device}" for _, p in named})
            raise ValueError(f"Flat: the model's parameters must be of one kind, not {kinds}")
        if frozen := [name for name, p in named if not p.requires_grad]:
            raise ValueError(
                f"Flat: parameters {frozen} are frozen, which part of one tensor cannot be; "
                f"make them buffers, or set requires_grad"
            )
        for name, module in model.named_modules():
            if isinstance(module, nn.RNNBase):
                raise ValueError(f"Flat: layer {name!r} ({type(module).__name__}) is recurrent")
        self.flat = nn.Parameter(torch.cat([p.detach().flatten() for _, p in named]))
        self.shapes = {name: p.shape for name, p in named}
        index = {p: i for i, (_, p) in enumerate(named)}
        self._places = [
            (module, name, index[p])
            for module in model.modules()
            for name, p in module._parameters.items()
            if p is not None
        ]
        for module, name, _ in self._places:
            module._parameters[name] = None
        self.model = model

    def views(self) -> dict[str, Tensor]:
        """The weights by the names and in the shapes that the model gave them, as views."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = torch.split(self.flat, sizes)
        return {
            name: part.view(shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward pass, with its weights read from ``flat``."""
        weights = list(self.views().values())
        for module, name, i in self._places:
            module.__dict__[name] = weights[i]  # found before the empty parameter of that name
        try:
            return self.model(*args, **kwargs)
        finally:
            for module, name, _ in self._places:
                module.__dict__.pop(name, None)

    def unflatten(self) -> nn.Module:
        """Give the model its own parameters back.

        Returns:
            The model, with the present weights; this module is then of no further use.
        """
        weights = [nn.Parameter(view.detach().clone()) for view in self.views().values()]
        for module, name, i in self._places:
            module._parameters[name] = weights[i]
        return self.model
