"""What a step knows of a group: told again when it changes, and let go of when it is gone."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

import filteropt
from tests.execution import assert_alike, parameters


@pytest.mark.parametrize("fused", [False, True])
def test_states_moved_by_their_data_are_followed(fused):
    def run(*, moves):
        params = parameters([(5,), (40,)])
        opt = filteropt.AdaBayes(params, lr=0.1, fused=fused)
        for t in range(4):
            for p in params:
                p.grad = torch.full_like(p, 1.0 + t)
                for x in opt.state[p].values() if moves and t == 2 else ():
                    x.data = x.data.clone()
            opt.step()
        return [(p, opt.state[p]) for p in params]

    assert_alike(run(moves=True), run(moves=False), rtol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_an_objective_that_changes_its_sign_is_followed(fused):
    one, other = parameters([(5,), (40,)]), parameters([(5,), (40,)])
    opts = [filteropt.AdaBayes(params, lr=0.1, fused=fused) for params in (one, other)]
    for t in range(4):
        opts[1].param_groups[0]["maximize"] = t >= 2
        for p, q in zip(one, other, strict=True):
            p.grad = torch.ones_like(p)
            q.grad = -p.grad if t >= 2 else p.grad.clone()
        for opt in opts:
            opt.step()
    first, second = (
        [(p, opt.state[p]) for p in ps] for ps, opt in zip((one, other), opts, strict=True)
    )
    assert_alike(first, second, rtol=0)


def test_states_replaced_by_a_checkpoint_are_let_go():
    params = parameters([(5,), (40,)])
    opt = filteropt.AdaBayes(params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    params[0].grad = None
    opt.step()
    old = weakref.ref(opt.state[params[1]]["variance"])
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    gc.collect()
    assert old() is None


def test_groups_that_are_gone_are_let_go():
    params = parameters([(5,), (40,)])
    opt = filteropt.AdaBayes([{"params": [p]} for p in params], lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    opt.step()
    old = weakref.ref(opt.state[params[1]]["variance"])
    del opt.param_groups[1:], opt.state[params[1]]
    opt.step()
    gc.collect()
    assert old() is None
