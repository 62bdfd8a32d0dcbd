"""What users do around draws: unscale inside, freeze, autocast, nest, copy, forget the backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import filteropt
from filteropt.approximations import Price, Retracted
from filteropt.engine import Filter
from filteropt.models import Static
from tests.test_sampled_params import Run, agree


@pytest.mark.parametrize("name", ["price", "gradsq", "examples"])
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_what_is_done_to_gradients_inside_counts_as_outside(name, where):
    """As users of ivon-opt must do it: unscale and clip before the context ends."""
    run, plain = Run(name), Run(name)

    def scale(one):
        for p in one.model.parameters():
            p.grad.mul_(0.25)

    for t in range(3):
        for one, factor in ((run, 4.0), (plain, 1.0)):
            one.opt.zero_grad()
            with one.draw(t):
                (factor * one.loss(t)).backward()
                if one is run and where == "inside":
                    scale(one)
            if one is run and where == "outside":
                scale(one)
            one.opt.step()
    agree(run, plain)


def trained():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).double(), torch.randn(8, 3, dtype=torch.float64)
    opt = filteropt.IVON(model.parameters(), lr=0.1, ess=100.0)
    with opt.sampled_params(train=True):
        model(x).square().mean().backward()
    opt.step()
    return model, opt, x


def test_weights_frozen_after_training_are_still_drawn():
    model, opt, x = trained()
    before = filteropt.predict(model, opt, x, 5, kind="gaussian", generator=seeded(0))
    model.requires_grad_(False)
    frozen = filteropt.predict(model, opt, x, 5, kind="gaussian", generator=seeded(0))
    assert torch.equal(before.epistemic, frozen.epistemic)
    with opt.sampled_params(train=True):
        assert not model(x).requires_grad


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("memory", [0.0, 2.0**28])
def test_autocast_sees_every_draw(memory):
    model, opt, x = trained()
    model, x = model.float(), x.float()
    opt = filteropt.AdaBayes(model.parameters(), lr_sgd=0.1)
    exact = filteropt.predict(model, opt, x, 20, kind="gaussian", generator=seeded(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = filteropt.predict(
            model, opt, x, 20, kind="gaussian", generator=seeded(0), memory=memory
        )
    torch.testing.assert_close(cast.epistemic.float(), exact.epistemic, rtol=0.1, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        outputs = []
        for seed in (0, 1):
            with opt.sampled_params(generator=seeded(seed)):
                outputs.append(model(x))
        assert not torch.equal(*outputs)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (lambda opt: opt.step(), "step: leave fisher_pass"),
        (lambda opt: opt.zero_grad(), "zero_grad: leave fisher_pass"),
        (lambda opt: opt.sampled_params().__enter__(), "leave fisher_pass first"),
        (lambda opt: opt.fisher_pass().__enter__(), "under way already"),
    ],
)
def test_inside_of_a_fisher_pass_there_is_only_backward(inside, message):
    _, opt, _ = trained()
    with pytest.raises(RuntimeError, match=message), opt.fisher_pass():
        inside(opt)
    opt.zero_grad()


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (lambda opt: opt.eval(), "hold a draw"),
        (lambda opt: opt.train(), "hold a draw"),
        (lambda opt: copy.deepcopy(opt), "hold a draw"),
        (lambda opt: opt.step(), "step: leave sampled_params"),
    ],
)
def test_draws_are_neither_means_nor_copied(inside, message):
    model, opt, _ = trained()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=message), opt.sampled_params():
        inside(opt)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    copy.deepcopy(opt)


def test_a_gradient_that_no_backward_brought_has_no_curvature():
    model, opt, x = trained()
    with opt.sampled_params(train=True):
        loss = model(x).square().mean()
        for p, grad in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            p.grad = grad
    with pytest.raises(RuntimeError, match="no backward"):
        opt.step()


def test_an_unknown_source_is_refused_at_construction():
    class Elsewhere(Price):
        source = "stars"

    with pytest.raises(ValueError, match="source='stars'"):
        filteropt.FilterOptimizer(
            nn.Linear(1, 1).parameters(), lambda: Filter(Static(), Elsewhere(), Retracted(0.1))
        )


def test_an_empty_sample_is_none():
    (model, opt, x), (twin, plain, _) = trained(), trained()
    for one, o, empty in ((model, opt, True), (twin, plain, False)):
        with o.sampled_params(train=True, generator=seeded(1)):
            o.zero_grad()
            one(x).square().mean().backward()
        kept = [p.grad.clone() for p in one.parameters()]
        if empty:
            with o.sampled_params(train=True, generator=seeded(2)):
                o.zero_grad()
            for p, grad in zip(one.parameters(), kept, strict=True):
                torch.testing.assert_close(p.grad, grad)
        o.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)
