"""No decorative hyperparameters: every field of every part changes what some optimizer does."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from filteropt import FilterOptimizer
from filteropt.approximations import (
    Averaged,
    AveragedPull,
    AveragedSquaredGradient,
    CentredGradient,
    Dense,
    Diagonal,
    FixedPoint,
    GaussNewton,
    GaussNewtonDiagonal,
    Kronecker,
    KroneckerEigenbasis,
    LayerGradients,
    NoCurvature,
    OneStepAhead,
    PerExample,
    Price,
    Repeated,
    Retracted,
    SampledFisher,
    SampledSquaredGradient,
    SquaredGradient,
    SquareRooted,
    Tempered,
)
from filteropt.engine import Filter
from filteropt.models import (
    FixedNoise,
    ForgetToPrior,
    KroneckerDrift,
    MomentumAugmented,
    ProportionalNoise,
    RandomWalk,
)
from filteropt.testing import parts
from tests.gathering import backward

AVERAGES = {"scale": [2.0], "beta1": [0.3, None], "bias_correction": [False]}
JACOBIANS = {**AVERAGES, "loss": ["cross_entropy"], "noise_variance": [2.0]}
CHANGES = [
    (FixedNoise(0.1, 0.5),
     {"lr": [0.2], "prior_variance": [0.7], "weight_decay": [0.0, 0.3],
      "discretization": ["exact"]}),
    (ForgetToPrior(0.1, 0.5), {"forgetting": [0.0, 0.2], "prior_variance": [0.7], "after": [2]}),
    (MomentumAugmented(0.1, 0.5, 0.05, 0.2),
     {"lr": [0.2], "prior_variance": [0.7], "lr_w": [0.1], "momentum_decay": [0.4],
      "weight_decay": [0.0, 0.3]}),
    (ProportionalNoise(0.1), {"forgetting": [0.0, 0.2]}),
    (RandomWalk(0.1), {"lr": [0.2], "weight_decay": [0.3]}),
    (SquaredGradient(), AVERAGES),
    (CentredGradient(), {**AVERAGES, "centre_beta": [0.3]}),
    (NoCurvature(), AVERAGES),
    (Averaged(),
     {"likelihood": [CentredGradient()], "beta2": [0.5], "eps": [0.1], "bias_correction": [False]}),
    (AveragedSquaredGradient(),
     {"scale": [2.0], "betas": [(0.3, 0.999), (0.9, 0.5)], "eps": [0.1],
      "bias_correction": [False]}),
    (GaussNewton(beta1=0.9), JACOBIANS),
    (GaussNewtonDiagonal(beta1=0.9), JACOBIANS),
    (AveragedPull(pull=0.1),
     {"likelihood": [CentredGradient(beta1=None)], "pull": [0.0, 0.2], "beta1": [0.3]}),
    (PerExample(), AVERAGES),
    (Price(), AVERAGES),
    (SampledFisher(), AVERAGES),
    (SampledSquaredGradient(), AVERAGES),
    (Repeated(steps_per_epoch=2),
     {"likelihood": [CentredGradient()], "steps_per_epoch": [1, 3]}),
    (Tempered(), {"likelihood": [CentredGradient()], "power": [0.5]}),
    (Retracted(0.3), {"initial_variance": [None, 0.4], "order": [1]}),
    (SquareRooted(), {"dataset_size": [2.0]}),
    (Diagonal(0.3), {"initial_variance": [None, 0.4]}),
    (Dense(0.3), {"initial_variance": [None, 0.4]}),
    (FixedPoint(), {"method": ["exact"]}),
    (OneStepAhead(Diagonal(0.3)), {"posterior": [Diagonal(0.4), FixedPoint()]}),
    (KroneckerDrift(0.1, 0.5, left=0.01),
     {"lr": [0.2], "prior_variance": [0.7], "weight_decay": [0.0, 0.3],
      "discretization": ["exact"], "left": [0.0, 0.02], "right": [0.01], "every": [2]}),
    (LayerGradients(), {**AVERAGES, "rows": [2]}),
    (Kronecker("reverse", initial_variance=0.3),
     {"projection": ["forward", "first-order"], "rounds": [1], "initial_variance": [None, 0.4]}),
    (KroneckerEigenbasis(update_every=1),
     {"factors": ["layers"], "beta": [0.3], "update_every": [2], "refresh_by": ["eigh"],
      "transport": ["keep"], "max_dim": [2]}),
    (KroneckerEigenbasis("layers", update_every=1), {"rows": [2]}),
]  # fmt: skip
RESOURCES = {
    ("GaussNewton", "memory"),
    ("GaussNewtonDiagonal", "memory"),
    ("Dense", "max_weights"),
    ("PerExample", "memory"),
    ("PerExample", "uncovered"),  # tests/test_per_example.py
    ("Price", "sync"),  # tests/contract/test_distributed.py
    ("SampledSquaredGradient", "sync"),
    ("Kronecker", "max_dim"),
    ("Kronecker", "dtype"),  # tests/test_kronecker.py
    ("LayerGradients", "joint"),  # tests/test_kronecker_filter.py, where layers have biases
    ("LayerGradients", "sharing"),  # tests/test_layer_rows_layers.py, where layers have places
    ("KroneckerEigenbasis", "sharing"),
}
"""Fields that change no numbers of a plain run in one process."""


def compose(part):
    """A filter around the part, of which everything else stays the same."""
    dynamics, likelihood, posterior = FixedNoise(0.1, 0.5), AveragedSquaredGradient(), Diagonal(0.3)
    if hasattr(part, "transition"):
        dynamics = part
    elif hasattr(part, "observe"):
        likelihood = part
        posterior = Dense(0.3) if isinstance(part, GaussNewton) else posterior
        posterior = Retracted(0.3) if part.signed else posterior
    elif hasattr(part, "forward"):
        return Filter(dynamics, likelihood, posterior, part)
    else:
        posterior = part
    if isinstance(part, SquareRooted):
        dynamics = ForgetToPrior(0.1, 0.5)
    if isinstance(part, (KroneckerDrift, LayerGradients, Kronecker)):
        posterior = part if isinstance(part, Kronecker) else Kronecker(initial_variance=0.3)
        likelihood = part if isinstance(part, LayerGradients) else LayerGradients()
    return Filter(dynamics, likelihood, posterior)


def summed(logits):
    return cross_entropy(logits, torch.tensor([0, 1, 1, 0, 1]), reduction="sum")


def trajectory(part, steps=4):
    """Weights and variances of a small model after every step."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    opt = FilterOptimizer(model.parameters(), lambda: compose(part), model=model)
    found = []
    for _ in range(steps):
        x = torch.randn(5, 3, dtype=torch.float64, generator=generator)
        opt.zero_grad()
        backward(opt, model, x, summed, generator, "categorical")
        opt.step()
        found += [model.weight.detach().clone(), opt.posterior_variance(model.weight)]
    return torch.stack(found)


CASES = [
    (part, field, value)
    for part, changes in CHANGES
    for field, values in changes.items()
    for value in values
]


@pytest.mark.parametrize(
    ("part", "field", "value"),
    CASES,
    ids=[f"{type(part).__name__}-{field}-{value}" for part, field, value in CASES],
)
def test_a_field_changes_the_trajectory(part, field, value):
    plain, changed = trajectory(part), trajectory(dataclasses.replace(part, **{field: value}))
    assert plain.isfinite().all()
    assert changed.isfinite().all()
    gap = (changed - plain).abs().max()
    assert gap > 1e-5


def test_every_field_of_every_part_is_covered():
    shipped = {
        (name, field.name)
        for slot in ("dynamics", "likelihood", "posterior", "basis")
        for name, cls in parts(slot).items()
        for field in dataclasses.fields(cls)
    }
    covered = {(type(part).__name__, field) for part, field, _ in CASES}
    assert covered | RESOURCES == shipped
    assert not covered & RESOURCES


@pytest.mark.parametrize("cls", [GaussNewton, GaussNewtonDiagonal])
def test_memory_changes_no_numbers(cls):
    """That it bounds the examples worked on at a time is shown beside the Jacobians' other laws."""
    small, large = trajectory(cls(memory=1.0)), trajectory(cls())
    torch.testing.assert_close(small, large, rtol=1e-11, atol=1e-13)


def test_max_weights_bounds_the_tensor_and_changes_no_numbers():
    assert torch.equal(trajectory(Dense(0.3, max_weights=6)), trajectory(Dense(0.3)))
    with pytest.raises(ValueError, match="max_weights=5"):
        trajectory(Dense(0.3, max_weights=5))
