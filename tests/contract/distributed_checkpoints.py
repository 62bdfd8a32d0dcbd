"""What two processes check together about checkpoints of sharded models."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.device_mesh import DeviceMesh

from .distributed_checks import (
    HIDDEN,
    assert_equals_unsharded,
    fsdp,
    run,
    whole,
)
from .problems import assert_close, assert_same, batch, network, trained
from .subjects import Subject


def sharded_checkpoint(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Saved by `torch.distributed.checkpoint`, loaded into a fresh sharded run, bit by bit."""
    model = fsdp(mesh)
    opt = subject(model.parameters(), lr=2e-3)
    run(model, opt, 2)
    opt.zero_grad()
    names = ("model", "optim")
    checkpoint.save(
        dict(zip(names, dcp.get_state_dict(model, opt), strict=True)), checkpoint_id=folder
    )
    other = fsdp(mesh)
    resumed = subject(other.parameters(), lr=2e-3)
    state = dict(zip(names, dcp.get_state_dict(other, resumed), strict=True))
    checkpoint.load(state, checkpoint_id=folder)
    dcp.set_state_dict(
        other, resumed, model_state_dict=state["model"], optim_state_dict=state["optim"]
    )
    run(model, opt, 2, start=2)
    run(other, resumed, 2, start=2)
    assert_same(
        [p.to_local() for p in other.parameters()], [p.to_local() for p in model.parameters()]
    )
    assert_close([whole(p) for p in model.parameters()], trained(subject, 4, lr=2e-3).parameters())


def checkpoint_of_the_whole(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """A full state dict gathered from shards is that of unsharded training."""
    model, alone = fsdp(mesh), network(hidden=HIDDEN)
    opt, single = subject(model.parameters()), subject(alone.parameters())
    run(model, opt, 2)
    for t in range(2):
        x, y = batch(t)
        single.zero_grad()
        nn.functional.mse_loss(alone(x), y).backward()
        single.step()
    opt.zero_grad()
    single.zero_grad()
    options = dcp.StateDictOptions(full_state_dict=True)
    gathered = dcp.get_optimizer_state_dict(model, opt, options=options)["state"]
    if dist.get_rank() == 0:
        expected = dcp.get_optimizer_state_dict(alone, single)["state"]
        assert gathered.keys() == expected.keys()
        for name, values in expected.items():
            assert_close([gathered[name][k] for k in values], values.values())


def fresh_sharded_state_dict_leaves_no_trace(
    subject: Subject, mesh: DeviceMesh, folder: Path
) -> None:
    """The zero step that materialises sharded state is not noticed by training."""
    model = fsdp(mesh)
    opt = subject(model.parameters())
    dcp.get_optimizer_state_dict(model, opt)
    run(model, opt)
    assert_equals_unsharded(model, subject)
