"""What a scheduler's lr means (`schedule`), and what lr = 0 does."""

from __future__ import annotations

import math

import pytest
import torch

import filteropt

CLASSES = [filteropt.AdaBayes, filteropt.AdaBayesFP]


def train(cls, ratios, gradients, **options):
    """Positions after every step, with lr = ratio times the constructed lr."""
    p = torch.nn.Parameter(torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64))
    opt = cls([p], lr=0.02, lr_sgd=0.3, batch_size=4, **options)
    path = [p.detach().clone()]
    for ratio, gradient in zip(ratios, gradients, strict=True):
        opt.param_groups[0]["lr"] = 0.02 * ratio
        p.grad = gradient.clone()
        opt.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def some_gradients(n, scale=1.0):
    generator = torch.Generator().manual_seed(3)
    sizes = torch.tensor([1e-3, 1.0, 30.0], dtype=torch.float64)
    return [scale * sizes * torch.randn(3, generator=generator).double() for _ in range(n)]


@pytest.mark.parametrize("cls", CLASSES)
def test_gain_multiplies_the_displacement_of_the_constructed_filter(cls):
    """Without decay the filter never sees the positions, so displacements are exactly scaled."""
    ratios = [0.5, 1.0, 0.1, 2.0, 1.0, 0.01]
    gradients = some_gradients(6)
    plain = train(cls, [1.0] * 6, gradients, weight_decay=0.0).diff(dim=0)
    scaled = train(cls, ratios, gradients, weight_decay=0.0).diff(dim=0)
    expected = torch.tensor(ratios, dtype=torch.float64)[:, None] * plain
    torch.testing.assert_close(scaled, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("fixed_point", ["taylor", "exact"])
def test_both_schedules_coincide_for_taylors_fixed_point_alone(fixed_point):
    ratios = [0.5, 1.0, 0.1, 2.0, 1.0, 0.01]
    gain, model = (
        train(filteropt.AdaBayesFP, ratios, some_gradients(6), schedule=s, fixed_point=fixed_point)
        for s in ("gain", "model")
    )
    gap = ((gain - model) / gain).abs().max().item()
    assert gap < 1e-14 if fixed_point == "taylor" else gap > 1e-6


def test_schedules_differ_for_the_recursion():
    """Under "model" a data-poor weight starts with full steps while lr warms up from 0."""
    gradients = [torch.full((3,), 1e-6, dtype=torch.float64)] * 5
    ratios = [0.001, 0.002, 0.003, 0.004, 0.005]
    options = {"weight_decay": 0.0, "beta1": 0.0}
    gain, model = (
        train(filteropt.AdaBayes, ratios, gradients, schedule=s, **options).diff(dim=0)
        for s in ("gain", "model")
    )
    full = -0.3 * 1e-6
    torch.testing.assert_close(
        gain, full * torch.tensor(ratios)[:, None].double().expand(5, 3), rtol=1e-2, atol=0
    )
    torch.testing.assert_close(model, torch.full_like(model, full), rtol=0.05, atol=0)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("linearize_at", ["posterior", "prediction"])
def test_warm_up_from_zero_and_cosine_to_zero_anneal_every_weight(cls, linearize_at):
    """Data-poor, middling and data-rich weights alike: steps shrink in proportion to lr."""
    n = 40
    p = torch.nn.Parameter(torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64))
    opt = cls([p], lr=0.02, lr_sgd=0.3, linearize_at=linearize_at)
    warm_up = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda t: t / 10 if t < 10 else 0.5 * (1 + math.cos(math.pi * (t - 10) / 30))
    )
    gradient = torch.tensor([1e-4, 1.0, 100.0], dtype=torch.float64)
    sizes, ratios = [], []
    for _ in range(n):
        before = p.detach().clone()
        p.grad = gradient.clone()
        ratios.append(opt.param_groups[0]["lr"] / 0.02)
        opt.step()
        sizes.append((p.detach() - before).abs())
        warm_up.step()
    assert ratios[0] == 0
    assert torch.equal(sizes[0], torch.zeros(3, dtype=torch.float64))
    for weight in range(3):
        peak = max(s[weight] / r for s, r in zip(sizes[12:], ratios[12:], strict=True))
        for size, ratio in zip(sizes, ratios, strict=True):
            assert size[weight] <= 20 * peak * ratio
        assert sizes[-1][weight] < 0.01 * sizes[12][weight]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("schedule", ["gain", "model"])
@pytest.mark.parametrize("linearize_at", ["posterior", "prediction"])
def test_zero_lr_changes_nothing_bit_for_bit(cls, schedule, linearize_at):
    p = torch.nn.Parameter(torch.randn(5))
    opt = cls([p], lr=0.01, schedule=schedule, linearize_at=linearize_at)
    for lr in (0.0, 0.01, 0.005, 0.0):
        opt.param_groups[0]["lr"] = lr
        p.grad = torch.randn(5)
        before = p.detach().clone()
        state = {k: v.clone() for k, v in opt.state[p].items()}
        variance = opt.posterior_variance(p)
        opt.step()
        unchanged = torch.equal(p, before)
        assert unchanged == (lr == 0)
        if lr == 0 and state:
            assert all(torch.equal(opt.state[p][k], v) for k, v in state.items())
            assert torch.equal(opt.posterior_variance(p), variance)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_optimizer_built_with_zero_lr_trains_once_lr_is_raised(cls):
    """There is no base to be a ratio of: the present lr is then taken as it is."""

    def run(initial):
        p = torch.nn.Parameter(torch.ones(3))
        opt = cls([p], lr=initial)
        opt.param_groups[0]["lr"] = 0.01
        for _ in range(3):
            p.grad = p.detach().clone()
            opt.step()
        return p

    assert torch.equal(run(0.0), run(0.01))
