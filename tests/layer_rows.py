"""Rows of layers, gathered as an optimizer would, and by explicit Jacobians of every place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.func import functional_call, jacrev

from filteropt.gathering.layer_homes import biases, covered
from filteropt.gathering.layer_watch import LayerWatch
from filteropt.gathering.ledger import Ledger


@dataclass(frozen=True)
class Asks:
    """What a part that asks for rows has to say."""

    sharing: str = "expand"
    rows: int | None = None
    joint: bool = False


def watch(model, part=None, params=None):
    """A watcher of all weights of which there are rows, and of their biases if they are joint."""
    watcher, known = LayerWatch(model, Ledger()), biases(model)
    if params is None:
        params = [q for p in covered(model) for q in (p, known.get(p)) if q is not None]
        params = params if part is not None and part.joint else list(covered(model))
    watcher.require(params, part or Asks())
    return watcher


def look(watcher, part=None):
    """Rows by name."""
    params = [p for p in watcher.wanted if p.grad is not None]
    found = watcher.look(params, part or Asks())
    return {watcher.names[p]: fields["layer"] for p, fields in found.items()}


def forget(watcher):
    """What an optimizer does at the end of a step."""
    watcher.clear()
    watcher.ledger.clear()


def sum_of_products(rows):
    """The gradient that rows add up to, M×N."""
    return rows.deltas.mT @ rows.inputs


def curvature(rows):
    r"""Σ_r g_r g_rᵀ, with g_r = δ_r x_rᵀ flattened."""
    grads = torch.einsum("rm,rn->rmn", rows.deltas, rows.inputs).flatten(1)
    return grads.mT @ grads


def loss_of(output):
    """A sum of one term per example, of which no two are alike."""
    weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return (weights * output).sin().sum()


def output_grad(layer, x):
    """The gradient of :func:`loss_of` at a layer's output."""
    output = layer(x).detach().requires_grad_()
    (delta,) = torch.autograd.grad(loss_of(output), output)
    return delta


def by_place(layer, x, channels):
    """The Jacobian of the output by the weight, ``(channels, examples, places, *p.shape)``.

    It knows nothing of the layer but which dimension of its output are channels.
    """
    weight = layer.weight.detach()
    jacobian = jacrev(lambda w: functional_call(layer, {"weight": w}, (x,)))(weight)
    jacobian = jacobian.flatten(-weight.dim())
    jacobian = jacobian.movedim(channels % (jacobian.dim() - 1), 0)
    jacobian = jacobian[:, :, None] if jacobian.dim() == 3 else jacobian.flatten(2, -2)
    return jacobian.unflatten(-1, weight.shape)
