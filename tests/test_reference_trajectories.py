"""The published algorithms, step by step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import filteropt
from tests.oracles.aitchison2020 import Algorithm1, Algorithm2

DATA = Path(__file__).parent / "data"
PAPER = {"lr": 1e-3, "lr_sgd": 0.1, "batch_size": 128, "weight_decay": 0.05}
STRICT = {"linearize_at": "prediction"}
CASES = {
    "adabayes_algorithm1": (filteropt.AdaBayes, PAPER),
    "adabayes_fp_algorithm2": (filteropt.AdaBayesFP, PAPER),
    "adabayes_released": (filteropt.AdaBayes, {**PAPER, **STRICT, "discretization": "exact"}),
    "adabayes_fp_released": (filteropt.AdaBayesFP, {**PAPER, **STRICT, "eps": 1e-8}),
    "bayes_rmsprop": (filteropt.BayesRMSprop, {"lr": 0.01, "beta2": 0.999}),
    "proportional_noise": (
        filteropt.OnlineNaturalGradient,
        {"forgetting": 0.01, "initial_variance": 0.01},
    ),
}
DRIFT = {"bayes_rmsprop": 0.01**2}
"""What its ``final_predicted_variance`` has more than the posterior variance."""


@pytest.mark.parametrize("case", CASES)
def test_trajectory_matches_reference(case):
    reference = json.loads((DATA / f"{case}.json").read_text())
    cls, options = CASES[case]
    p = torch.nn.Parameter(torch.tensor(reference["initial"], dtype=torch.float64))
    opt = cls([p], **options)
    pairs = zip(
        reference["mean_loss_gradients"], reference["parameters_after_each_step"], strict=True
    )
    for gradient, expected in pairs:
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        opt.step()
        torch.testing.assert_close(
            p.data, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
        )
    kept = reference.get("final_posterior_variance", reference.get("final_predicted_variance"))
    if kept is not None:
        found = opt.posterior_variance(p) + DRIFT.get(case, 0.0)
        torch.testing.assert_close(
            found, torch.tensor(kept, dtype=torch.float64), rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("weight_decay", [0.05, None])
def test_adabayes_matches_algorithm_1_under_a_model_schedule(released, weight_decay):
    """`schedule="model"` puts this step's lr and lr_sgd into the predict step, as released."""
    order = {"discretization": "exact", "linearize_at": "prediction"} if released else {}
    lr, lr_sgd, batch = 0.05, 0.4, 4
    p = torch.nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
    opt = filteropt.AdaBayes(
        [p], lr, lr_sgd, batch_size=batch, weight_decay=weight_decay, schedule="model", **order
    )
    oracle = Algorithm1(0.7, lr, lr_sgd / batch, beta1=0.9, released=released)
    for t in range(40):
        ratio = 1 - 0.02 * t
        opt.param_groups[0]["lr"] = eta = ratio * lr
        sigma2 = ratio * lr_sgd / batch
        pull = eta**2 / (2 * sigma2)
        implied = 1 - math.exp(-pull) if released else pull
        gradient = math.sin(t) + 0.3
        expected = oracle.step(
            batch * gradient, eta, sigma2, implied if weight_decay is None else eta * weight_decay
        )
        p.grad = torch.tensor([gradient], dtype=torch.float64)
        opt.step()
        assert p.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["gain", "model"])
def test_adabayes_fp_matches_algorithm_2_under_both_schedules(schedule):
    """Taylor's fixed point of (r lr, r lr_sgd) is r times that of (lr, lr_sgd)."""
    lr, lr_sgd, batch = 0.01, 0.3, 8
    p = torch.nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
    opt = filteropt.AdaBayesFP([p], lr, lr_sgd, batch_size=batch, schedule=schedule)
    oracle = Algorithm2(0.7, beta1=0.9, beta2=0.999)
    for t in range(40):
        ratio = 0.02 + math.sin(t) ** 2
        opt.param_groups[0]["lr"] = ratio * lr
        gradient = math.cos(3 * t)
        eta = ratio * lr
        expected = oracle.step(batch * gradient, eta, ratio * lr_sgd / batch, eta * 0.05)
        p.grad = torch.tensor([gradient], dtype=torch.float64)
        opt.step()
        assert p.item() == pytest.approx(expected, rel=1e-12)
