"""How much memory a member takes, and so how many are trained together."""

from __future__ import annotations

import torch
from torch import Tensor

from filteropt import engine
from filteropt.sweeping.feed import feed, tensors_of
from filteropt.sweeping.models import Use, make
from filteropt.sweeping.plan import Plan
from filteropt.sweeping.settings import Setting
from filteropt.trees import leaves

__all__ = ["bytes_of", "bytes_per_member", "together"]

TEMPORARIES = 6
"""Tensors like the parameters that a step makes: gradients, and what is in between."""
ON_CPU = 2**31


def together(plan: Plan, setting: Setting, members: int, memory: float | None) -> int:
    """How many members fit.

    Args:
        plan: what they have in common.
        setting: any setting.
        members: how many there are.
        memory: bytes that they may take; ``None`` for 2 GiB, or half of what a GPU has free.

    Returns:
        At least 1.
    """
    if memory is None:
        cuda = plan.device.type == "cuda"
        memory = torch.cuda.mem_get_info(plan.device)[0] / 2 if cuda else ON_CPU
    return int(max(1, min(members, memory // max(1, bytes_per_member(plan, setting)))))


def bytes_per_member(plan: Plan, setting: Setting) -> int:
    """Bytes that one member takes: its tensors, and what its backward pass has to remember.

    Args:
        plan: what members have in common.
        setting: any setting.

    Returns:
        About as many, measured on one forward pass.
    """
    seed = 0
    made = make(plan.factory, [seed], plan.device)[seed]
    filter, saved = setting.bound().filter, 0
    trained, kept = made.trained(), made.kept()
    state = sum(bytes_of(leaves(engine.template(filter, p.shape))) for p in trained.values())
    count = bytes_of(list(trained.values()))

    def note(x: Tensor) -> Tensor:
        nonlocal saved
        saved += bytes_of([x])
        return x

    stacked = {name: p[None].clone().requires_grad_() for name, p in trained.items()}
    buffers = {name: b[None].clone() for name, b in kept.items()}
    batch, dim = next(feed(plan.batches, [seed], plan.device))
    with made.draws.running(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        Use(made.model, plan.loss, "the loss").at(stacked, buffers, batch, in_dims=(dim,))
    own = tensors_of(batch) if callable(plan.batches) else []
    fixed = state + bytes_of([*kept.values(), *own])
    return (1 + TEMPORARIES) * count + fixed + 2 * saved


def bytes_of(tensors: list[Tensor]) -> int:
    """The bytes of tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)
