"""What two processes check together; each function runs on both ranks.

Both ranks draw the same numbers, so each can also train the whole problem alone and compare.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from filteropt import NonFiniteGradientError

from .problems import assert_close, assert_same, batch, clones, network, noise, parameters, trained
from .subjects import Subject

STEPS = 4
HIDDEN = 5  # uneven over two ranks: 3 and 2


def whole(x: Tensor) -> Tensor:
    """Return the full value of a tensor that may be sharded."""
    x = x.detach()
    return x.full_tensor() if isinstance(x, DTensor) else x


def assert_equals_unsharded(model: nn.Module, subject: Subject, steps: int = STEPS) -> None:
    """Assert that a model has the weights of plain training."""
    expected = trained(subject, steps).parameters()
    assert_close([whole(p) for p in model.parameters()], expected, rounded=subject.whole)


def sharded_loss(model: nn.Module, t: int) -> Tensor:
    """Return the loss on this rank's half of the batch; the mean over ranks is the full loss."""
    x, y = (part.chunk(2)[dist.get_rank()] for part in batch(t))
    return nn.functional.mse_loss(model(x), y)


def run(model: nn.Module, opt: torch.optim.Optimizer, steps: int = STEPS, start: int = 0) -> None:
    """Train on this rank's halves."""
    for t in range(start, start + steps):
        opt.zero_grad()
        sharded_loss(model, t).backward()
        opt.step()


def fsdp(mesh: DeviceMesh) -> nn.Module:
    """Return the network sharded layer by layer; a row of 1 leaves nothing for rank 1."""
    model = network(hidden=HIDDEN)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def ddp(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Replicated data parallelism."""
    model = nn.parallel.DistributedDataParallel(network())
    run(model, subject(model.parameters()))
    assert_equals_unsharded(model.module, subject)


def fsdp2(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Fully sharded data parallelism, with uneven shards."""
    model = fsdp(mesh)
    opt = subject(model.parameters())
    run(model, opt)
    assert_equals_unsharded(model, subject)
    for p in model.parameters():
        for value in opt.state[p].values():
            assert not value.ndim or value.to_local().shape == p.to_local().shape


def shards_are_refused(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Where tensors must be whole, a shard is an error that names it and changes nothing."""
    model = fsdp(mesh)
    before = [whole(p).clone() for p in model.parameters()]
    with pytest.raises(TypeError, match=r"shape \(5, 4\)\) is sharded.*needs whole tensors"):
        run(model, subject(model.parameters()))
    assert_same([whole(p).detach() for p in model.parameters()], [p.detach() for p in before])


def fsdp2_with_swapped_parameters(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """The optimizer is built first; its groups get the sharded parameters afterwards."""
    model = network(hidden=HIDDEN)
    opt = subject(model.parameters())
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    opt.param_groups[0]["params"] = list(model.parameters())
    run(model, opt)
    assert_equals_unsharded(model, subject)


def fsdp2_gradient_clipping(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """The norm is global, and the clipped gradients are what is used."""
    model, alone = fsdp(mesh), network(hidden=HIDDEN)
    opt, single = subject(model.parameters()), subject(alone.parameters())
    for t in range(STEPS):
        x, y = batch(t)
        for m, o, loss in (
            (model, opt, lambda t=t: sharded_loss(model, t)),
            (alone, single, lambda x=x, y=y: nn.functional.mse_loss(alone(x), y)),
        ):
            o.zero_grad()
            ((t + 1) * loss()).backward()
            nn.utils.clip_grad_norm_(m.parameters(), 0.2)
            o.step()
    assert_close([whole(p) for p in model.parameters()], alone.parameters())


def tensor_parallel(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Columns, then rows, five of them over two ranks."""
    model = network(hidden=HIDDEN)
    plan = {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
    parallelize_module(model, mesh, plan)
    opt = subject(model.parameters())
    for t in range(STEPS):
        opt.zero_grad()
        x, y = batch(t)
        nn.functional.mse_loss(model(x), y).backward()
        opt.step()
    assert_equals_unsharded(model, subject)


PLACEMENTS = {  # shape, placement of the parameter, placement of its gradient
    "row_shards": ((5, 3), Shard(0), Shard(0)),
    "column_shards": ((3, 5), Shard(1), Shard(1)),
    "empty_shard": ((1, 4), Shard(0), Shard(0)),
    "replicated": ((4,), Replicate(), Replicate()),
    "unreduced_gradient": ((4,), Replicate(), Partial()),
    "unreduced_gradient_of_shards": ((4, 2), Shard(0), Partial()),
    "replicated_gradient_of_shards": ((5, 2), Shard(0), Replicate()),
}


def any_placement(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Parameters and gradients may be placed in every way that autograd leaves them in."""
    plain = parameters(*(shape for shape, _, _ in PLACEMENTS.values()))
    placed = [
        nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [where]))
        for p, (_, where, _) in zip(plain, PLACEMENTS.values(), strict=True)
    ]
    single, opt = subject(plain), subject(placed)
    for t in range(STEPS):
        give_placed_gradients(plain, placed, mesh, t)
        single.step()
        opt.step()
    assert_close([whole(p) for p in placed], plain)


def two_dimensional_mesh(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Data parallel by tensor parallel: sharded over both dimensions of a mesh."""
    for shape in ((2, 1), (1, 2)):
        grid = init_device_mesh("cpu", shape)
        (plain,) = parameters((5, 3))
        places = [Shard(0), Shard(1)]
        placed = nn.Parameter(distribute_tensor(plain.detach().clone(), grid, places))
        single, opt = subject([plain]), subject([placed])
        for t in range(STEPS):
            plain.grad = noise(5, 3, seed=t)
            placed.grad = distribute_tensor(noise(5, 3, seed=t), grid, places)
            single.step()
            opt.step()
        assert_close([whole(placed)], [plain])


def give_placed_gradients(
    plain: list[nn.Parameter], placed: list[nn.Parameter], mesh: DeviceMesh, t: int
) -> None:
    """Give both lists the same gradients, each in its placement, partial ones in unequal parts."""
    for i, (p, q, (shape, _, where)) in enumerate(
        zip(plain, placed, PLACEMENTS.values(), strict=True)
    ):
        generator = torch.Generator().manual_seed(100 * t + i)
        parts = torch.randn(2, *shape, generator=generator, dtype=p.dtype)
        p.grad = parts.sum(0)
        if where == Partial():
            q.grad = DTensor.from_local(parts[dist.get_rank()], mesh, [where])
        else:
            q.grad = distribute_tensor(p.grad.clone(), mesh, [where])


def zero_redundancy(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Each rank owns the state of its own parameters; the consolidated state is the whole one."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns, in torch 2.13

    model, alone = network(), network()
    opt = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=subject.cls, **{**subject.keywords, "lr": 2e-3}
    )
    single = subject(alone.parameters(), lr=2e-3)
    for t in range(STEPS):
        x, y = batch(t)
        for m, o in ((model, opt), (alone, single)):
            o.zero_grad()
            nn.functional.mse_loss(m(x), y).backward()
            o.param_groups[0]["lr"] = 2e-3 / (1 + t)
            o.step()
    assert_close(model.parameters(), alone.parameters())
    opt.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        saved = opt.state_dict()["state"]
        for i, expected in single.state_dict()["state"].items():
            assert_close(saved[i].values(), expected.values())


def bad_gradient_on_one_rank_raises_on_both(
    subject: Subject, mesh: DeviceMesh, folder: Path
) -> None:
    """A NaN in one rank's shard stops both, without a hang, and nothing has changed."""
    bad_gradient_on_one_rank(subject, mesh, "raise")


def bad_gradient_on_one_rank_is_skipped_on_both(
    subject: Subject, mesh: DeviceMesh, folder: Path
) -> None:
    """The whole step, on both ranks."""
    bad_gradient_on_one_rank(subject, mesh, "skip")


def bad_gradient_on_one_rank(subject: Subject, mesh: DeviceMesh, on_nonfinite: str) -> None:
    """Poison the shard of each rank in turn, of an empty shard's parameter too."""
    model = fsdp(mesh)
    tiny = nn.Parameter(distribute_tensor(torch.ones(1, 2).double(), mesh, [Shard(0)]))
    opt = subject([*model.parameters(), tiny], on_nonfinite=on_nonfinite)
    run(model, opt, 2)
    params = list(model.parameters())
    for rank, victim in ((0, params[0]), (1, params[1]), (0, tiny)):
        before = [p.to_local().clone() for p in clones(params)]
        belief = copy.deepcopy([{k: whole(v) for k, v in opt.state[p].items()} for p in params])
        opt.zero_grad()
        sharded_loss(model, 2).backward()
        tiny.grad = distribute_tensor(torch.ones(1, 2).double(), mesh, [Shard(0)])
        if dist.get_rank() == rank:
            victim.grad.to_local().view(-1)[0] = math.nan
        try:
            opt.step()
            raised = False
        except NonFiniteGradientError:
            raised = True
        assert raised == (on_nonfinite == "raise")
        assert_same([p.to_local() for p in params], before)
        assert_same([{k: whole(v) for k, v in opt.state[p].items()} for p in params], belief)
        assert_same(whole(tiny), torch.ones(1, 2).double())
    tiny.grad = None
    run(model, opt, 2, start=2)
    assert_equals_unsharded(model, subject)
