"""The mathematics of the reproduced figures and appendices, against independent computations."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

import filteropt
from experiments import data
from experiments.cli import main
from experiments.reproduce import appendix_a, appendix_b, fig1, fig3, protocol


def call(*words: object) -> str:
    screen = io.StringIO()
    assert main(["reproduce", *map(str, words)], Console(file=screen, width=200)) == 0
    return screen.getvalue()


def test_fig1s_goalpost_zeroes_the_gradient_and_stands_still_without_correlation() -> None:
    path = fig1.descend(0.9, 50, 0)
    assert fig1.summarise(path, 0.9)["identity_error"] < 1e-12
    hessian = fig1.CURVATURE * np.array([[1, 0.9], [0.9, 1]])
    at_goal = np.stack([path["goal"], path["w"][:, 1]], axis=1) @ hessian
    assert abs(at_goal[:, 0]).max() < 1e-12
    assert fig1.summarise(fig1.descend(0.0, 50, 0), 0.0)["travelled"] == 0


def test_fig3s_fixed_points_are_where_the_recursion_rests() -> None:
    moments, prior = np.logspace(-8, 4, 25), fig3.PRIOR
    rest = np.full(25, prior)
    for _ in range(20_000):  # Algorithm 1, with a gradient that does not change
        before = (1 - fig3.LR**2 / (2 * prior)) ** 2 * rest + fig3.LR**2
        rest = 1 / (1 / before + moments)
    np.testing.assert_allclose(fig3.exact(moments), rest, rtol=1e-6)
    np.testing.assert_allclose(fig3.taylor(moments), rest, rtol=0.06)
    found = fig3.compare_rates(moments, rest)
    assert found["near_exact"] == 1.0
    assert fig3.compare_rates(moments, 1.2 * rest)["near_exact"] == 0.0


def test_fig3s_second_moment_is_adams() -> None:
    model = nn.Linear(3, 2)
    opt = filteropt.AdaBayes(model.parameters(), lr=fig3.LR, lr_sgd=0.1, batch_size=fig3.BATCH)
    watch = fig3.SecondMoment(model, opt, [2, 5])
    sums = torch.zeros(8)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        opt.zero_grad()
        model(torch.randn(4, 3, generator=draw)).square().mean().backward()
        g = fig3.BATCH * torch.cat([p.grad.flatten() for p in model.parameters()])
        sums = 0.999 * sums + 0.001 * g**2
        opt.step()
    np.testing.assert_allclose(watch.points()[0], (sums / (1 - 0.999**5)).numpy(), rtol=1e-5)
    assert list(watch.seen) == [2, 5]
    assert torch.equal(watch.seen[5][1], watch.points()[1])
    again = fig3.SecondMoment(model, opt)
    again.load_state_dict(watch.state_dict())
    np.testing.assert_array_equal(again.points()[0], watch.points()[0])


def small(activation: type[nn.Module]) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)).double()
    x = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    return model, x, torch.randint(3, (9,), generator=draw)


def test_hessian_diagonal_equals_the_dense_hessians() -> None:
    model, x, y = small(nn.Tanh)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([p.numel() for p in params.values()])
        told = {n: part.reshape(params[n].shape) for n, part in zip(params, parts, strict=True)}
        return cross_entropy(torch.func.functional_call(model, told, (x,)), y, reduction="sum")

    flat = torch.cat([p.flatten() for p in params.values()])
    dense = torch.autograd.functional.hessian(loss, flat)
    torch.testing.assert_close(
        appendix_a.hessian_diagonal(model, params, x, y), dense.diagonal(), rtol=1e-10, atol=1e-12
    )


def test_with_rectifiers_the_hessian_diagonal_is_the_fisher_information() -> None:
    model, x, y = small(nn.ReLU)
    params = {name: p.detach() for name, p in model.named_parameters()}
    chances = model(x).softmax(-1).detach()
    fisher = torch.zeros(sum(p.numel() for p in params.values()), dtype=torch.float64)
    for label in range(3):
        g = appendix_a.gradients(model, params, x, torch.full_like(y, label))
        fisher += (chances[:, label : label + 1] * g.square()).sum(0)
    found = appendix_a.hessian_diagonal(model, params, x, y)
    torch.testing.assert_close(found, fisher, rtol=1e-10, atol=1e-12)


def test_normality_accepts_normal_values_and_rejects_others() -> None:
    rng = np.random.default_rng(0)
    normal = appendix_b.normality(rng.standard_normal((500, 400)))
    assert abs(normal["rejected"] - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 400)
    assert abs(normal["kurtosis"]) < 0.1
    skewed = appendix_b.normality(rng.exponential(size=(500, 100)))
    assert skewed["rejected"] == 1.0
    assert skewed["distance"] > 3 * normal["distance"]


def test_sums_over_larger_minibatches_are_more_normal() -> None:
    each = torch.from_numpy(np.random.default_rng(0).exponential(size=(3000, 40)))
    draw = torch.Generator().manual_seed(0)
    found = [
        appendix_b.normality(appendix_b.sums(each, size, 800, draw))["skewness"]
        for size in (1, 16, 144)
    ]
    assert found == pytest.approx([2, 2 / 4, 2 / 12], rel=0.3)  # 2 / root of the size


def noise(_: Path) -> data.Dataset:
    """Images of noise with MNIST's shape, as many as the largest minibatch needs."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (600, 1, 28, 28), generator=draw, dtype=torch.uint8)
    labels = torch.randint(10, (600,), generator=draw)
    return data.Dataset(images, labels, images[:100], labels[:100])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fig1", ["--steps", 20]),
        ("fig3", ["--scale", "small", "--epochs", 1]),
        ("appendix-a", ["--epochs", 1, "--batches", 20]),
        ("appendix-b", ["--epochs", 1, "--batches", 40, "--weights", 10]),
    ],
)
def test_every_part_writes_its_figure_page_and_numbers(
    name, words, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(appendix_b, "MNIST5K", data.Source(noise))
    lenet = replace(protocol.LENET, source=data.Source(noise))
    monkeypatch.setitem(protocol.PROBLEMS, lenet.name, lenet)
    monkeypatch.setattr(appendix_a, "HIDDEN", 4)
    page = call(name, *words, "--out", tmp_path)
    numbers = json.loads((tmp_path / f"{name}.json").read_text())
    assert numbers["command"].startswith(f"python -m experiments reproduce {name} ")
    assert numbers["versions"]["torch"] == torch.__version__
    assert (tmp_path / f"{name}.md").read_text().strip() in page
    assert 10_000 < (tmp_path / f"{name}.png").stat().st_size < 300_000
    assert not list(tmp_path.rglob("*.pt"))
