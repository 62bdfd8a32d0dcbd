"""Draws from the belief: standard normal noise, and weights that come and go in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from filteropt.dtypes import belief_dtype
from filteropt.gathering.ledger import Ledger
from filteropt.measure import is_dtensor, local, several

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Draw", "multiply", "noise", "write"]


class Draw(NamedTuple):
    """One parameter's draw.

    Attributes:
        p: the parameter.
        mean: its mean, a copy.
        offset: the draw's offset from the mean, in the belief's dtype.
        score: the offset over the variance it was drawn with; ``None`` unless it is needed.
    """

    p: Tensor
    mean: Tensor
    offset: Tensor
    score: Tensor | None


def noise(params: list[Tensor], generator: torch.Generator | None) -> list[Tensor]:
    """Standard normal tensors, one draw for all the whole parameters of a device and dtype.

    Shards are drawn one by one, each with its own place in the mesh, so that processes seeded alike
    draw differently for different shards, and alike for replicas.

    Args:
        params: the parameters.
        generator: source of randomness on their device, or ``None`` for the default.

    Returns:
        A tensor like each parameter's shard, in the belief's dtype.
    """
    shards = [local(p.detach()) for p in params]
    kinds = dict.fromkeys((x.device, belief_dtype(x)) for x in shards)
    found: dict[int, Tensor] = {}
    for i, p in enumerate(params):
        if is_dtensor(p):
            found[i] = _of_shard(p, shards[i], generator)
    for device, dtype in kinds:
        members = [
            i
            for i, x in enumerate(shards)
            if i not in found and (x.device, belief_dtype(x)) == (device, dtype)
        ]
        sizes = [shards[i].numel() for i in members]
        flat = torch.randn(sum(sizes), generator=generator, device=device, dtype=dtype)
        for i, part in zip(members, torch.split(flat, sizes), strict=True):
            found[i] = part.view(shards[i].shape)
    return [found[i] for i in range(len(params))]


def _of_shard(p: DTensor, shard: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of a shard, of a seed that all shards share and of its place."""
    on = generator.device if generator is not None else torch.device("cpu")
    seed = int(torch.randint(2**31, (), generator=generator, device=on))
    place = 0
    where = tuple(p.device_mesh.get_coordinate() or ())
    for placement, i, n in zip(p.placements, where, p.device_mesh.shape, strict=False):
        place = place * n + (i if placement.is_shard() else 0)
    own = torch.Generator(shard.device).manual_seed(2**31 * place + seed)
    return torch.randn(shard.shape, generator=own, device=shard.device, dtype=belief_dtype(shard))


@torch.no_grad()
def write(draws: list[Draw], *, sampled: bool) -> None:
    """Put the draws, or the means, into the parameters, in place.

    Args:
        draws: the draws.
        sampled: whether to put the draws, else the means.
    """
    for draw in draws:
        local(draw.p).copy_(draw.mean + draw.offset if sampled else draw.mean)
    torch.clear_autocast_cache()  # else autocast goes on with the weights that it has cast


def multiply(draw: Draw, ledger: Ledger) -> list[Any]:
    """Gather the products of a draw's score and the gradients that arrive in its ``.grad``.

    Args:
        draw: the draw; without a score nothing is gathered.
        ledger: where to add them, as ``"products"``.

    Returns:
        Handles of hooks, to be removed.
    """
    score, arrived = draw.score, list[Tensor]()
    if score is None or not draw.p.requires_grad:
        return []

    def arrive(grad: Tensor) -> None:
        arrived[:] = [grad.detach()]  # also by autograd.grad, which leaves .grad alone

    def accumulate(p: Tensor) -> None:
        if arrived and not ledger.paused:
            grad = arrived.pop()
            ledger.add(p, "products", score * grad.to(score.dtype))
            if not several():  # else gradients are yet to be averaged over processes
                ledger.mark([p])

    return [
        draw.p.register_hook(arrive),  # type: ignore[no-untyped-call]  # torch's own
        draw.p.register_post_accumulate_grad_hook(accumulate),  # type: ignore[no-untyped-call]  # torch's own
    ]
