"""The study of the momentum filter: its quadratic, and how it splits a step."""

import json
import math

import pytest
import torch

import filteropt
from experiments.momentum.arms import QUADRATIC_ARMS
from experiments.momentum.quadratic import (
    CONDITION,
    QUADRATICS,
    TARGET,
    Descent,
    descend,
    draw,
)
from experiments.momentum.runs import score
from experiments.momentum.split import Splitter, parts, quantiles

ARMS = {arm.entry.name: arm for arm in QUADRATIC_ARMS}
EXACT = QUADRATICS["quadratic"]


# The quadratic ------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", QUADRATICS.values(), ids=QUADRATICS)
def test_optimum_and_conditioning_of_the_quadratic_are_known(problem) -> None:
    found = draw(problem, 3)
    solved = torch.linalg.lstsq(found.inputs, found.targets).solution.flatten()
    assert torch.allclose(solved, found.optimum, rtol=1e-8, atol=1e-9)
    eigenvalues = torch.linalg.eigvalsh(found.inputs.T @ found.inputs / problem.rows)
    assert (eigenvalues[-1] / eigenvalues[0]).item() == pytest.approx(CONDITION, rel=1e-8)
    residual = found.targets.flatten() - found.inputs @ found.optimum
    assert residual.square().mean().item() == pytest.approx(problem.noise, abs=1e-12)


@pytest.mark.parametrize("problem", QUADRATICS.values(), ids=QUADRATICS)
def test_excess_is_what_the_loss_is_above_its_minimum(problem) -> None:
    found = draw(problem, 4)

    def loss(weights: torch.Tensor) -> float:
        return (found.inputs @ weights - found.targets.flatten()).square().mean().item() / 2

    weights = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    excess = loss(weights) - loss(found.optimum)
    assert found.excess(weights) == pytest.approx(excess, rel=1e-9)
    assert found.excess(found.optimum) == 0


def test_seeds_draw_different_problems() -> None:
    a, b = draw(EXACT, 1), draw(EXACT, 2)
    assert not torch.allclose(a.optimum, b.optimum)
    assert torch.equal(a.inputs, draw(EXACT, 1).inputs)


def test_nesterov_reaches_the_target_in_about_the_steps_of_theory() -> None:
    values = {"lr": 1.0, "1 - momentum": 0.02}
    result = descend(Descent(EXACT, ARMS["nesterov"], values, 0))
    assert 250 < result["metrics"]["steps"] < 500
    assert result["metrics"]["loss"] <= TARGET
    assert result["curves"]["step"][-1] == result["metrics"]["steps"]
    assert result["curves"]["loss"][0] == 1.0
    assert score(EXACT, result)[0] == result["metrics"]["steps"]


def test_divergence_is_a_result_that_json_can_hold_and_ranks_last() -> None:
    result = descend(Descent(EXACT, ARMS["nesterov"], {"lr": 3.0, "1 - momentum": 0.1}, 0))
    assert result["diverged"]
    assert score(EXACT, result) == (math.inf, math.inf)
    json.dumps(result, allow_nan=False)


def test_filter_with_its_own_curvature_and_much_data_is_nesterov() -> None:
    found, rate, decay = draw(EXACT, 0), 0.1, 0.02

    def path(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> torch.Tensor:
        places = []
        for _ in range(50):
            optimizer.zero_grad()
            ((model(found.inputs) - found.targets).square().mean() / 2).backward()
            optimizer.step()
            places.append(model.weight.detach().flatten().clone())
        return torch.stack(places)

    def zero() -> torch.nn.Linear:
        model = torch.nn.Linear(200, 1, bias=False, dtype=torch.float64)
        torch.nn.init.zeros_(model.weight)
        return model

    model, diagonal = zero(), found.hessian.diagonal()
    values = {"lr": 300.0, "noise_variance": rate, "momentum_decay": decay}
    choice = ARMS["momentum-gn-stationary"].choice(values, EXACT.rows)
    settings = dict(choice.overrides) | {"model": model}
    filtered = path(choice.entry.build(model.parameters(), EXACT.rows, **settings), model)
    model = zero()
    nesterov = torch.optim.SGD(model.parameters(), lr=rate, momentum=1 - decay, nesterov=True)
    model.weight.register_hook(lambda grad: grad / diagonal)
    assert torch.allclose(filtered, path(nesterov, model), atol=2e-3)  # 1/(η√h) is 2e-4


# The split ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_parts_of_the_step_add_up_to_the_step(stationary: bool, rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5, 3, generator=generator, dtype=torch.float64))
    settings = {"lr": 0.1, "lr_sgd": 2.0, "lr_w": 0.01, "batch_size": 7, "stationary": stationary}
    optimizer = filteropt.MomentumFilter([p], **settings)
    optimizer.param_groups[0]["lr"] *= rate
    for t in range(20):
        before = p.detach().clone()
        p.grad = 0.2 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
        optimizer.step()
        found = parts(optimizer, p, before, 7)
        assert all(part.abs().min() > 0 for part in found) or t == 0  # no slope yet
        assert torch.allclose(sum(found), p.detach() - before, rtol=1e-12, atol=1e-15)


def test_parts_of_the_step_are_those_of_a_kalman_filter_written_here() -> None:
    lr, var, decay, size = 0.1, 0.5, 0.2, 4
    pull = lr**2 / (2 * var)
    p = torch.nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
    optimizer = filteropt.MomentumFilter(
        [p], lr=lr, lr_sgd=var * size, momentum_decay=decay, batch_size=size
    )
    matrix = torch.tensor([[1 - pull, lr], [0, 1 - decay]], dtype=torch.float64)
    noise = torch.diag(torch.tensor([0, decay**2], dtype=torch.float64))
    mean = torch.tensor([0.7, 0.0], dtype=torch.float64)
    covariance = torch.diag(torch.tensor([var, decay / 2], dtype=torch.float64))
    for t in range(12):
        gradient = 0.3 * math.sin(t)
        p.grad = torch.tensor([gradient], dtype=torch.float64)
        before = p.detach().clone()
        optimizer.step()
        information = covariance.inverse()
        information[0, 0] += (size * gradient) ** 2
        covariance = information.inverse()
        moved = covariance[:, 0] * size * gradient
        found = parts(optimizer, p, before, size)
        wanted = (-(1 - pull) * moved[0], lr * (mean - moved)[1], -pull * mean[0])
        for part, number in zip(found, wanted, strict=True):
            assert part.item() == pytest.approx(number.item(), rel=1e-9, abs=1e-14)
        mean = matrix @ (mean - moved)
        covariance = matrix @ covariance @ matrix.T + noise


def test_splitter_reports_shares_between_0_and_1_at_spread_steps() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = filteropt.MomentumFilter([p], lr=0.1, lr_sgd=0.5)
    splitter = Splitter(optimizer, steps=1200, scale=1)
    for t in range(1200):
        p.grad = torch.sin(torch.arange(4.0) + t)
        optimizer.step()
    curves = splitter.result()["curves"]
    assert curves["step"] == list(range(1, 1201, 10))
    for low, middle, high in zip(curves["low"], curves["middle"], curves["high"], strict=True):
        assert 0 <= low <= middle <= high <= 1


def test_quantiles_count_values_by_their_weights() -> None:
    values = torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64)
    for weights, wanted in (([1, 1, 1], [0.1, 0.5, 0.9]), ([8, 1, 1], [0.1, 0.9, 0.9])):
        assert quantiles(values, torch.tensor(weights, dtype=torch.float64)) == wanted
