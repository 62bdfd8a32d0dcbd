"""The report: its numbers from the beliefs, its regimes on constructed cases, its table."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import filteropt
from filteropt import FilterOptimizer, variant
from filteropt.approximations import (
    AveragedSquaredGradient,
    Dense,
    Diagonal,
    FixedPoint,
    GaussNewton,
    PerExample,
    SampledFisher,
    SquaredGradient,
)
from filteropt.models import (
    FixedNoise,
    ForgetToPrior,
    MomentumAugmented,
    ProportionalNoise,
    RandomWalk,
    Static,
)
from filteropt.presets import adabayes, adabayes_fp, online_natural_gradient, sgd
from filteropt.report import Row, variance_without_evidence


def weights(n=5, dtype=torch.float64):
    return nn.Parameter(torch.linspace(-1, 1, n, dtype=dtype))


def stepped(opt, grad=1.0, steps=1):
    for _ in range(steps):
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, grad)
        opt.step()
    return opt


# Variances without evidence ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "dynamics",
    [
        FixedNoise(0.4, 0.5),
        FixedNoise(0.4, 0.5, discretization="exact"),
        ForgetToPrior(0.2, 0.7),
        MomentumAugmented(0.4, 0.5, lr_w=0.05, momentum_decay=0.3),
        MomentumAugmented(0.3, 0.3),
    ],
)
def test_the_variance_without_evidence_is_where_prediction_alone_comes_to_rest(dynamics):
    transition, k = dynamics.transition(1), dynamics.k
    belief = Diagonal().init(torch.zeros(1, dtype=torch.float64), (0.01,) * k if k > 1 else 0.01, k)
    for _ in range(300):
        _, belief = Diagonal().propagate(belief, transition)
    expected = float(belief.cov[0])
    assert variance_without_evidence(transition) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "dynamics",
    [Static(), RandomWalk(0.1), ProportionalNoise(0.1), FixedNoise(0.1, float("inf")),
     ForgetToPrior(0.0), MomentumAugmented(0.1, float("inf"))],
)  # fmt: skip
def test_others_have_none(dynamics):
    assert variance_without_evidence(dynamics.transition(1)) is None


# Regimes -----------------------------------------------------------------------------------------


def settled(precision, lr=1e-3, prior_variance=0.1):
    """A row of AdaBayes-FP, exact, whose running curvature is ``precision``."""
    p = weights(len(precision))
    exact = variant(
        adabayes_fp, posterior=FixedPoint("exact"), dynamics=FixedNoise(lr, prior_variance)
    )
    opt = FilterOptimizer([p], exact, lr=lr)
    p.grad = torch.tensor(precision, dtype=torch.float64).sqrt()
    opt.step()  # the debiased average of one squared gradient is that square
    return opt.report()[0], opt.posterior_variance(p)


def test_regimes_are_within_a_tenth_of_their_limits():
    """Against the limits themselves: σ² without evidence, η/√h without forgetting."""
    lr, prior, precision = 1e-3, 0.1, [10.0**e for e in range(-9, 2)]
    row, variance = settled(precision, lr, prior)
    sgd_like = variance > 0.9 * prior
    adam_like = variance > 0.9 * lr / torch.tensor(precision, dtype=torch.float64).sqrt()
    assert sgd_like.any()
    assert adam_like.any()
    assert not (sgd_like & adam_like).any()
    assert row.data_poor == pytest.approx(float(sgd_like.double().mean()))
    assert row.data_rich == pytest.approx(float(adam_like.double().mean()))
    assert row.between == pytest.approx(float((~sgd_like & ~adam_like).double().mean()))
    assert row.between > 0
    assert row.limit == "Adam"


@pytest.mark.parametrize(("side", "poor", "rich"), [(0.99, 0.0, 1.0), (1.01, 1.0, 0.0)])
def test_the_bounds_are_where_they_are_said_to_be(side, poor, rich):
    lr, prior = 1e-4, 0.1
    for ratio, counted in ((0.9 * side, "data_poor"), (0.19 * side, "data_rich")):
        # Q = ρΣ + hΣ² at Σ = r σ²
        precision = lr**2 * (1 - ratio) / (ratio * prior) ** 2
        row, variance = settled([precision], lr, prior)
        assert float(variance) == pytest.approx(ratio * prior, rel=1e-3)
        assert getattr(row, counted) == (poor if counted == "data_poor" else rich)


@pytest.mark.parametrize("side", [0.99, 1.01])
def test_forgetting_to_a_prior_ends_in_natural_gradient(side):
    prior, rho = 2.0, 0.5
    ratio = 0.1 * side
    precision = rho * (1 / ratio - 1) / prior  # 1/Σ = 1/Σ₀ + h/ρ
    filters = variant(
        online_natural_gradient, dynamics=ForgetToPrior(rho, prior), posterior=Diagonal()
    )
    opt = stepped(FilterOptimizer([weights()], filters), precision**0.5, steps=80)
    (row,) = opt.report()
    assert row.settled == pytest.approx(ratio, rel=1e-9)
    assert row.limit == "natural gradient"
    assert row.data_rich == (1.0 if side < 1 else 0.0)
    assert row.data_poor == 0.0


def test_sgd_is_data_poor_and_adam_has_no_such_limit():
    (row,) = stepped(FilterOptimizer([weights()], sgd, lr=0.1), 100.0).report()
    assert (row.data_poor, row.between, row.data_rich) == (1.0, 0.0, 0.0)
    assert row.gathered == "nothing"
    adamw = filteropt.AdaBayesFP([weights()], lr_sgd=float("inf"))
    (row,) = stepped(adamw).report()
    assert all(math.isnan(x) for x in (row.data_poor, row.between, row.data_rich, row.settled))
    assert row.limit == ""


def test_momentum_tells_the_data_poor_limit_alone():
    opt = filteropt.MomentumFilter([weights()])
    (row,) = opt.report()
    assert math.isfinite(row.settled)
    assert math.isfinite(row.data_poor)
    assert math.isnan(row.data_rich)


def test_a_mean_that_moves_by_a_square_root_is_not_judged_by_its_variance():
    opt = filteropt.Vadam([weights()], lr=0.1, dataset_size=10)
    with opt.sampled_params(train=True, generator=torch.Generator().manual_seed(0)):
        opt.param_groups[0]["params"][0].square().sum().backward()
    opt.step()
    (row,) = opt.report()
    assert 0 < row.settled < 1
    assert math.isnan(row.data_poor)
    assert row.gathered == "draws"


# Numbers -----------------------------------------------------------------------------------------


def test_scales_are_quantiles_of_the_posterior():
    p = weights(101)
    opt = filteropt.AdaBayes([p], lr=0.1, lr_sgd=0.5)
    p.grad = torch.logspace(-3, 3, 101, dtype=torch.float64)
    opt.step()
    (row,) = opt.report()
    sd = opt.posterior_variance(p).sqrt()
    for value, chance in ((row.sd_low, 0.05), (row.sd, 0.5), (row.sd_high, 0.95)):
        assert value == pytest.approx(float(sd.quantile(chance)), rel=1e-12)
    rms = float(p.detach().square().mean().sqrt())
    assert row.rms == pytest.approx(rms)
    assert row.relative == pytest.approx(row.sd / rms)


def test_state_is_counted_in_bytes_per_weight():
    p = weights(100, torch.float32)
    opt = filteropt.AdaBayesFP([p])
    before = opt.report()[0].state_bytes
    stepped(opt)
    (row,) = opt.report()
    assert row.state_bytes == before == 8 + 4 / 100  # two averages, and the step
    dense = FilterOptimizer([weights(10)], variant(online_natural_gradient, posterior=Dense()))
    assert dense.report()[0].state_bytes == pytest.approx(80 + 4 / 10)
    strict = filteropt.AdaBayes([weights(100, torch.float32)], linearize_at="prediction")
    assert strict.report()[0].state_bytes == pytest.approx(8 + (4 + 8 + 1) / 100)


def optimizers(model):
    """One of every kind of posterior."""
    named = model.parameters
    yield filteropt.AdaBayes(named(), model=model)
    yield filteropt.AdaBayesFP(named(), model=model)
    yield filteropt.BayesRMSprop(named(), model=model)
    yield filteropt.MomentumFilter(named(), model=model)
    yield filteropt.OnlineNaturalGradient(named(), model=model)
    yield filteropt.ExtendedKalmanFilter(named(), model=model)
    yield filteropt.VON(named(), lr=0.1, dataset_size=10, model=model)
    yield filteropt.VOGN(named(), lr=0.1, dataset_size=10, batch_size=4, model=model)
    yield filteropt.Vadam(named(), lr=0.1, dataset_size=10, model=model)
    yield filteropt.IVON(named(), lr=0.1, ess=10, model=model)
    yield filteropt.AdaBayes(named(), model=model, linearize_at="prediction")


@pytest.mark.parametrize("index", range(11))
def test_every_posterior_reports_before_and_after_a_step(index):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    opt = list(optimizers(model))[index]
    before = opt.report()
    assert [row.name for row in before] == [name for name, _ in model.named_parameters()]
    assert all(row.gathered == "never" and not row.warnings for row in before)
    kept = [p.detach().clone() for p in model.parameters()]
    with opt.sampled_params(train=True):
        model(torch.randn(4, 3)).square().mean().backward()
    state = {p: {k: v.clone() for k, v in s.items()} for p, s in opt.state.items()}
    opt.report()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), kept, strict=True))
    assert {p: set(s) for p, s in opt.state.items()} == {p: set(s) for p, s in state.items()}
    opt.step()
    for row in opt.report():
        assert row.steps == 1
        assert row.sd_low <= row.sd <= row.sd_high
        assert row.gathered not in {"never", "frozen", "not seen"}
    str(opt.report())


# What was gathered -------------------------------------------------------------------------------


class Odd(nn.Module):
    """A layer that is known, one that is not, one that is not used and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.known, self.unused, self.frozen = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.known(x) * self.scale)


def test_it_tells_what_gathers_each_parameters_curvature():
    torch.manual_seed(0)
    model = Odd()
    filters = variant(online_natural_gradient, likelihood=PerExample(4, beta1=None))
    opt = FilterOptimizer(model.parameters(), filters, model=model)
    assert {row.gathered for row in opt.report()} == {"never", "frozen"}
    model(torch.randn(4, 3)).square().sum(1).mean().backward()
    opt.step()
    found = {row.name: row.gathered for row in opt.report()}
    assert found == {
        "known.weight": "hooks: Linear", "known.bias": "hooks: Linear", "scale": "torch.func",
        "unused.weight": "never", "unused.bias": "never",
        "frozen.weight": "frozen", "frozen.bias": "frozen",
    }  # fmt: skip


def test_it_tells_of_passes_and_jacobians():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    fisher = variant(adabayes, likelihood=SampledFisher(4))
    opt = FilterOptimizer(model.parameters(), fisher)
    loss = cross_entropy(model(x), torch.tensor([0, 1, 1, 0]))
    loss.backward(retain_graph=True)
    with opt.fisher_pass():
        loss.backward()
    opt.step()
    assert {row.gathered for row in opt.report()} == {"fisher passes"}
    filters = variant(adabayes, likelihood=GaussNewton(), posterior=Dense())
    opt = FilterOptimizer(model.parameters(), filters, model=model)
    opt.zero_grad()
    model(x).square().sum().backward()
    opt.step()
    assert {row.gathered for row in opt.report()} == {"Jacobians"}


def test_groups_without_a_rate_are_frozen_until_they_have_one():
    opt = filteropt.AdaBayes([{"params": [weights()], "lr": 0.0}, {"params": [weights()]}])
    stepped(opt)
    frozen, live = opt.report()
    assert (frozen.gathered, live.gathered) == ("frozen", "gradient")
    assert (frozen.name, live.name) == ("0.0", "1.0")
    assert frozen.steps == 0
    assert math.isnan(frozen.sd)
    assert frozen.warnings == ()
    named = filteropt.AdaBayes([("w", weights())])
    assert named.report()[0].name == "w"


# Warnings ----------------------------------------------------------------------------------------


def believing(variance, p=None, **kwargs):
    p = weights() if p is None else p
    opt = stepped(filteropt.AdaBayes([p], lr=1e-3, lr_sgd=0.1, **kwargs))
    opt.state[p]["variance"].copy_(torch.as_tensor(variance))
    return opt.report()[0].warnings


def test_sound_beliefs_are_not_warned_of():
    assert believing(1e-2) == ()


@pytest.mark.parametrize(
    ("variance", "message"),
    [
        ([1e-2, 1e-2, 1e-2, math.inf, math.nan], "2 of 5 variances are not finite"),
        ([torch.finfo(torch.float64).tiny] + [1e-2] * 4, "1 of 5 .* smallest number of torch.fl"),
        ([1e-8] * 2 + [1e-2] * 3, "2 of 5 variances have fallen below 1e-06 of the first, 0.1:"),
        (120.0 * 0.5, r"the posterior is 11 times as wide as the weights are large"),
    ],
)
def test_collapse_is_warned_of(variance, message):
    (warning,) = believing(variance)
    assert pd.Series([warning]).str.contains(message).all()


def test_width_is_not_warned_of_before_the_first_step_or_below_the_bound():
    assert believing(99.0 * 0.5) == ()
    zero = nn.Parameter(torch.full((3,), 1e-9))
    assert filteropt.AdaBayes([zero], lr_sgd=0.1).report()[0].warnings == ()


def test_a_fixed_point_that_nothing_bounds_is_warned_of():
    p = weights()
    opt = filteropt.AdaBayesFP([p], lr_sgd=float("inf"))
    p.grad = torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64)
    opt.step()
    (warning,) = opt.report()[0].warnings
    assert warning.startswith("1 of 5 variances are not finite")


# The table ---------------------------------------------------------------------------------------


def test_rows_and_columns_are_what_pandas_takes():
    model = nn.Linear(3, 2)
    report = filteropt.AdaBayes(model.parameters(), model=model).report()
    assert list(pd.DataFrame(report).columns) == list(Row._fields)
    pd.testing.assert_frame_equal(pd.DataFrame(report), pd.DataFrame(report.to_dict()))
    assert len(report) == 2


def test_the_table_is_aligned_and_ends_with_the_warnings():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    opt = filteropt.AdaBayes(model.parameters(), lr_sgd=0.1, model=model)
    stepped(opt)
    opt.state[model[1].bias]["variance"].fill_(math.inf)
    lines = str(opt.report()).splitlines()
    assert lines[0].split() == [
        "parameter", "shape", "steps", "sd", "5", "%", "95", "%", "sd/rms", "data-poor",
        "between", "data-rich", "bytes", "curvature",
    ]  # fmt: skip
    place = lines[0].index("curvature")
    assert all(line[place:] == "gradient" for line in lines[2:6])
    assert set(lines[1]) == {"-"}
    assert lines[6].startswith("data-poor weights move as SGD moves them, data-rich ones as Adam")
    assert lines[7] == (
        "warning: 1.bias: 1 of 1 variances are not finite: neither data nor a prior bound them"
    )
    assert len(lines) == 8


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_scalars_and_empty_parameters(shape):
    opt = filteropt.AdaBayes([nn.Parameter(torch.ones(shape))])
    (row,) = stepped(opt).report()
    assert row.shape == shape
    str(opt.report())


def test_schedules_and_averages_do_not_disturb_it():
    p = weights()
    filters = variant(adabayes, likelihood=SquaredGradient(), posterior=Diagonal())
    opt = FilterOptimizer([p], filters, schedule="model")
    stepped(opt)
    opt.param_groups[0]["lr"] = 0.0
    (row,) = opt.report()
    assert row.steps == 1
    assert row.gathered == "gradient"
    assert AveragedSquaredGradient().averages
