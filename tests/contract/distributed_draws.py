"""Draws from the belief on two processes; each function runs on both ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import filteropt

from .distributed_checks import STEPS, assert_equals_unsharded, fsdp, run, sharded_loss, whole
from .problems import assert_close, assert_same, loss_of, network
from .subjects import Subject


def draws_of_shards_come_and_go(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Each rank draws for its own shards, in place; afterwards they are what they were."""
    model = fsdp(mesh)
    opt = subject(model.parameters())
    run(model, opt, 2)
    before = [p.to_local().clone() for p in model.parameters()]
    places = [p.to_local().data_ptr() for p in model.parameters()]
    generator = torch.Generator().manual_seed(dist.get_rank())
    drawn = []
    for _ in range(2):
        with opt.sampled_params(generator=generator), torch.no_grad():
            drawn.append([p.to_local().clone() for p in model.parameters()])
            assert sharded_loss(model, 0).isfinite()
    assert_same([p.to_local() for p in model.parameters()], before)
    assert [p.to_local().data_ptr() for p in model.parameters()] == places
    for first, second, mean in zip(*drawn, before, strict=True):
        assert not mean.numel() or not torch.equal(first, mean)
        assert not mean.numel() or not torch.equal(first, second)
    run(model, opt, STEPS - 2, start=2)
    assert_equals_unsharded(model, subject)


def shards_draw_by_themselves(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Ranks that are seeded alike, as they mostly are: shards differ, replicas do not."""
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    for placement, alike in ((Shard(0), False), (Replicate(), True)):
        p = nn.Parameter(distribute_tensor(zeros, mesh, [placement]))
        opt = filteropt.AdaBayes([p])
        for generator in (None, torch.Generator().manual_seed(0)):
            torch.manual_seed(0)
            with opt.sampled_params(generator=generator):
                mine = p.to_local().detach().clone()
            both = [torch.empty_like(mine) for _ in range(2)]
            dist.all_gather(both, mine)
            assert torch.equal(*both) == alike
            assert (mine != 0).all()


def gradients_at_the_mean_as_draws(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """At temperature 0 the draw is the mean: training at draws is plain training."""
    model = fsdp(mesh)
    opt = subject(model.parameters())
    for t in range(STEPS):
        with opt.sampled_params(train=True, temperature=0.0):
            opt.zero_grad()
            sharded_loss(model, t).backward()
        opt.step()
    assert_equals_unsharded(model, subject)


def each_rank_one_monte_carlo_sample(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """IVON with ``sync``: two replicas with a draw each are one process with two draws."""
    keywords = {"lr": 0.1, "ess": 50.0, "hess_init": 0.5, "beta2": 0.9}
    for wrapped in (False, True):
        model, alone = network(), network()
        replica = nn.parallel.DistributedDataParallel(model) if wrapped else model
        opt = filteropt.IVON(model.parameters(), **keywords, sync=True)
        single = filteropt.IVON(alone.parameters(), **keywords, sync=True)  # of equal ranks
        for t in range(STEPS):
            seeds = [torch.Generator().manual_seed(10 * t + rank) for rank in range(2)]
            opt.zero_grad()
            with opt.sampled_params(train=True, generator=seeds[dist.get_rank()]):
                loss_of(replica, t).backward()
            opt.step()
            seeds = [torch.Generator().manual_seed(10 * t + rank) for rank in range(2)]
            for seed in seeds:
                with single.sampled_params(train=True, generator=seed):
                    single.zero_grad()
                    loss_of(alone, t).backward()
            single.step()
        assert_close(model.parameters(), alone.parameters())
        variances = [
            [o.posterior_variance(p) for p in m.parameters()]
            for m, o in ((model, opt), (alone, single))
        ]
        assert_close(*variances)


def lonely_draws_are_refused(subject: Subject, mesh: DeviceMesh, folder: Path) -> None:
    """Without ``sync`` replicas would drift apart; on shards there are no products."""
    model = network()
    opt = filteropt.IVON(model.parameters(), lr=0.1, ess=50.0)
    with opt.sampled_params(train=True):
        loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="sync=True"):
        opt.step()
    sharded = fsdp(mesh)
    opt = filteropt.IVON(sharded.parameters(), lr=0.1, ess=50.0)
    before = [whole(p).clone() for p in sharded.parameters()]
    with pytest.raises(TypeError, match="sharded"), opt.sampled_params(train=True):
        raise AssertionError("not reached")
    assert_same([whole(p) for p in sharded.parameters()], before)
