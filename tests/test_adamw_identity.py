"""AdaBayes-FP without a prior is AdamW."""

from __future__ import annotations

import pytest
import torch

import filteropt


@pytest.mark.parametrize("schedule", ["gain", "model"])
@pytest.mark.parametrize("batch_size", [1, 128])
def test_adabayes_fp_without_prior_is_adamw(schedule, batch_size):
    """100 steps, cosine schedule, weight decay, two groups of different lr, rtol 1e-12."""
    torch.manual_seed(0)
    start = [torch.randn(7, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]

    def run(make):
        params = [torch.nn.Parameter(x.clone()) for x in start]
        groups = [
            {"params": params[:1], "lr": 3e-3},
            {"params": params[1:], "lr": 1e-2, "weight_decay": 0.3},
        ]
        opt = make(groups)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=100)
        generator = torch.Generator().manual_seed(1)
        for _ in range(100):
            opt.zero_grad()
            for p in params:
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                (0.5 * p.square() + noise * p).sum().backward()
            opt.step()
            cosine.step()
        return params

    ours = run(
        lambda groups: filteropt.AdaBayesFP(
            groups,
            lr_sgd=float("inf"),
            betas=(0.9, 0.99),
            weight_decay=0.1,
            batch_size=batch_size,
            schedule=schedule,
        )
    )
    theirs = run(
        lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=0.0, weight_decay=0.1)
    )
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.data, reference.data, rtol=1e-12, atol=0)


def test_without_prior_and_without_gradient_nothing_moves():
    """At sigma^2 = inf and h = 0 the displacement is 0, not NaN."""
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    opt = filteropt.AdaBayesFP([p], lr_sgd=float("inf"), weight_decay=0.0)
    for _ in range(3):
        p.grad = torch.tensor([0.0, 1.0])
        opt.step()
    assert p[0] == 1.0
    assert p[1] < 2.0
    assert p.isfinite().all()
