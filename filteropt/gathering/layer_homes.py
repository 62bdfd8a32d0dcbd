"""Which layers own a parameter, and of which weights and biases rows can be had."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor, nn

from filteropt.gathering.layer_rows import matrix_of

__all__ = ["biases", "covered", "describe", "owners"]

Home: TypeAlias = tuple[str, nn.Module, str]
"""A module's name, the module, and what it calls a parameter."""


def covered(model: nn.Module) -> dict[Tensor, str]:
    """The weights of which rows can be had, each with the layers that own it.

    They are the matrices of Linear, Conv1d to Conv3d and Embedding layers whose options and size
    :data:`~filteropt.gathering.layer_rows.MATRICES` covers, if no other module owns them too.

    Args:
        model: the module.

    Returns:
        Names and kinds of layers by weight, in the model's order.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
        >>> list(covered(model).values())
        ['0 (Linear)']
    """
    found = {}
    for p, homes in owners(model).items():
        lazy = nn.parameter.is_lazy(p)
        if all(place == "weight" and matrix_of(layer) for _, layer, place in homes) and not lazy:
            found[p] = describe(homes)
    return found


def biases(model: nn.Module) -> dict[Tensor, Tensor]:
    """The biases that may be taken for one more column of a weight of which rows can be had.

    Args:
        model: the module.

    Returns:
        Biases by weight, where all layers that own the weight and have a bias have the same, and
        no other module has it.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> biases(model)[model.weight] is model.bias
        True
    """
    homes, found = owners(model), {}
    for p in covered(model):
        theirs = [getattr(layer, "bias", None) for _, layer, _ in homes[p]]
        distinct = {bias for bias in theirs if bias is not None}
        if len(distinct) == 1:
            (bias,) = distinct
            layers = {layer for _, layer, _ in homes[p]}
            if all(layer in layers for _, layer, _ in homes[bias]):
                found[p] = bias
    return found


def owners(model: nn.Module) -> dict[Tensor, list[Home]]:
    """Which modules own a parameter, and as what.

    Args:
        model: the module.

    Returns:
        The homes of every parameter.
    """
    homes: dict[Tensor, list[Home]] = {}
    for name, module in model.named_modules():
        for place, p in module._parameters.items():
            if p is not None:
                homes.setdefault(p, []).append((name, module, place))
    return homes


def describe(homes: list[Home]) -> str:
    """Layers by name and kind, for messages.

    Args:
        homes: a parameter's.

    Returns:
        The text.
    """
    return ", ".join(f"{name or 'model'} ({type(layer).__name__})" for name, layer, _ in homes)
