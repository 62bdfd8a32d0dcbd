"""Sweeps: every member is what a run of its own is, whatever its neighbours do."""

import contextlib
import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

import filteropt
from filteropt import presets
from filteropt.approximations import Clipped, Diagonal, SquaredGradient
from filteropt.execute.choice import is_elementwise
from filteropt.models import FixedNoise, ForgetToPrior
from filteropt.sweeping import compiling, memory, numbers
from filteropt.sweeping.plan import Plan
from filteropt.sweeping.settings import prepare

STEPS = 6
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SWEEPS = {
    "AdaBayes": (
        filteropt.AdaBayes,
        {"lr": [1e-3, 2e-2], "lr_sgd": [0.1, 2.0], "beta1": [0.5, 0.9], "batch_size": 8},
    ),
    "AdaBayes (exact)": (
        filteropt.AdaBayes,
        {"lr": [1e-3, 2e-2], "weight_decay": [0.0, 0.5], "discretization": "exact"},
    ),
    "AdaBayesFP": (
        filteropt.AdaBayesFP,
        {"lr": [1e-3, 2e-2], "lr_sgd": [0.1, math.inf], "betas": (0.8, 0.95), "eps": [1e-9, 0.1]},
    ),
    "AdaBayesFP (exact)": (
        filteropt.AdaBayesFP,
        {"lr": [1e-3, 2e-2], "fixed_point": "exact", "batch_size": [1, 8]},
    ),
    "BayesRMSprop": (
        filteropt.BayesRMSprop,
        {"lr": [1e-3, 2e-2], "beta2": [0.9, 0.99], "initial_variance": [1e-3, 0.1]},
    ),
    "OnlineNaturalGradient": (
        filteropt.OnlineNaturalGradient,
        {"lr": [0.5, 1.0], "forgetting": [0.0, 0.1], "initial_variance": [1e-2, 0.1]},
    ),
    "MomentumFilter": (
        filteropt.MomentumFilter,
        {"lr": [1e-3, 2e-2], "lr_sgd": [0.1, 1.0], "lr_w": [0.0, 1e-3], "momentum_decay": 0.2},
    ),
    "MomentumFilter (stationary)": (
        filteropt.MomentumFilter,
        {"lr": [1e-3, 2e-2], "stationary": True, "centred_beta": [0.5, 0.9]},
    ),
    "adamw": (presets.adamw, {"lr": [1e-3, 2e-2], "weight_decay": [0.0, 0.3]}),
    "sgd": (presets.sgd, {"lr": [1e-3, 2e-2], "momentum": [0.5, 0.9]}),
    "rmsprop": (presets.rmsprop, {"lr": [1e-3, 2e-2], "alpha": [0.5, 0.9]}),
    "pulled": (
        filteropt.variant(presets.online_natural_gradient, dynamics=ForgetToPrior()),
        {"initial_variance": [1e-3, 1e-2]},
    ),
    "clipped": (
        filteropt.variant(presets.adabayes, projections=(Clipped(1e-3),)),
        {"lr": [1e-3, 2e-2]},
    ),
}

NAMED = ["AdaBayes", "AdaBayesFP", "BayesRMSprop", "OnlineNaturalGradient", "MomentumFilter"]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def normed():
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def dropping():
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.4), nn.Linear(7, 3))


def data(count=STEPS, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 5, generator=draw), torch.randint(3, (8,), generator=draw))
        for _ in range(count)
    ]


def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


HELD_OUT = torch.randn(9, 5, generator=torch.Generator().manual_seed(9)), torch.arange(9) % 3


def error(model):
    x, y = HELD_OUT[0].to(next(model.parameters()).dtype), HELD_OUT[1]
    return {"nll": cross_entropy(model(x), y), "hits": (model(x).argmax(-1) == y).sum()}


def alone(factory, optimizer, setting, seed, batches, *, lr_lambda=None, dtype=None, **keywords):
    """A run of its own, as its user would write it; the losses before every step."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory().to(dtype)
        if inspect.isclass(optimizer):
            opt = optimizer(model.parameters(), **setting, **keywords)
        else:
            opt = filteropt.FilterOptimizer(model.parameters(), optimizer, **setting, **keywords)
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, lr_lambda or (lambda _: 1.0))
        losses = []
        for batch in batches:
            opt.zero_grad()
            found = loss(model, batch)
            found.backward()
            losses.append(found.item())
            opt.step()
            schedule.step()
        opt.eval()
    return model, losses


def assert_equal(found, factory, optimizer, batches, *, dtype=torch.float64, **keywords):
    """Every member's losses, parameters and buffers are those of a run of its own."""
    for k, (setting, seed) in enumerate(found.members):
        own = batches(seed) if callable(batches) else batches
        model, losses = alone(factory, optimizer, setting, seed, own, dtype=dtype, **keywords)
        rtol = TOLERANCE[dtype]
        np.testing.assert_allclose(found.losses[k], losses, rtol=rtol, err_msg=str(setting))
        state = found.model(k).state_dict()
        for name, x in model.state_dict().items():
            assert state[name].dtype == x.dtype
            close = torch.allclose(state[name], x, rtol=rtol, atol=rtol / 10)
            assert close, f"{name} of {setting}, seed {seed}"


# Equality -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWEEPS)
def test_members_equal_runs_of_their_own(name):
    optimizer, grid = SWEEPS[name]
    found = filteropt.sweep(plain, optimizer, grid, loss, data(), seeds=[0, 3])
    assert len(found) == 2 * math.prod(len(v) for v in grid.values() if isinstance(v, list))
    assert set(found.status) == {"finished"}
    assert_equal(found, plain, optimizer, data())


@pytest.mark.parametrize("name", NAMED)
def test_members_equal_runs_of_their_own_in_float32(name):
    optimizer, grid = SWEEPS[name]
    torch.set_default_dtype(torch.float32)
    found = filteropt.sweep(plain, optimizer, grid, loss, data())
    assert found.parameters["0.weight"].dtype == torch.float32
    assert_equal(found, plain, optimizer, data(), dtype=torch.float32)


def halving(step):
    return 0.5**step


def test_seeds_and_settings_all_differ():
    grid = {"lr": [1e-3, 1e-2]}
    found = filteropt.sweep(plain, filteropt.AdaBayes, grid, loss, data(), seeds=[0, 1])
    weights = found.parameters["0.weight"].flatten(1)
    assert torch.pdist(weights).min() > 1e-4
    assert found.losses[0, 0] == found.losses[2, 0] != found.losses[1, 0]  # same seed, same start


@pytest.mark.parametrize("schedule", ["gain", "model"])
@pytest.mark.parametrize("name", [*NAMED, "sgd"])
def test_schedules_equal_lambda_lr(schedule, name):
    optimizer, grid = SWEEPS[name]
    factors = [0.0, 0.5, 1.0, 0.7, 0.1, 0.05]  # a warm-up from 0, whose first step is none
    found = filteropt.sweep(
        plain, optimizer, grid, loss, data(), lr_lambda=factors.__getitem__, schedule=schedule
    )
    after = [*factors, 0.0].__getitem__
    assert_equal(found, plain, optimizer, data(), lr_lambda=after, schedule=schedule)


def test_schedules_mean_different_things():
    grid = {"lr": [1e-2]}
    one, other = (
        filteropt.sweep(
            plain,
            filteropt.AdaBayes,
            grid,
            loss,
            data(),
            lr_lambda=halving,
            schedule=s,
        ).losses
        for s in ("gain", "model")
    )
    assert np.abs(one - other)[0, -1] > 1e-6


def test_scalar_programs_that_branch_are_read_step_by_step(monkeypatch):
    def branching(lr=1e-2, lr_sgd=0.1):
        return presets.adabayes(float(lr), lr_sgd) if lr > 1e-9 else presets.adabayes(1.0, 1.0)

    found = filteropt.sweep(
        plain, branching, {"lr": [1e-3, 1e-2]}, loss, data(), lr_lambda=halving, schedule="model"
    )  # fmt: skip
    assert_equal(found, plain, branching, data(), lr_lambda=halving, schedule="model")


def test_numbers_go_on_over_blocks_of_steps(monkeypatch):
    from filteropt.sweeping import numbers

    monkeypatch.setattr(numbers, "BLOCK", 4)
    grid = {"lr": [1e-3, 1e-2]}
    found = filteropt.sweep(plain, filteropt.AdaBayes, grid, loss, data(3), steps=11)
    assert_equal(found, plain, filteropt.AdaBayes, (data(3) * 4)[:11])


@pytest.mark.parametrize("where", ["posterior", "prediction"])
def test_gradients_are_taken_where_asked(where):
    grid = {"lr": [1e-3, 1e-1], "weight_decay": 0.5}
    found = filteropt.sweep(plain, filteropt.AdaBayes, grid, loss, data(), linearize_at=where)
    assert_equal(found, plain, filteropt.AdaBayes, data(), linearize_at=where)


def test_maximize_climbs():
    grid = {"lr": [1e-3, 1e-2]}
    found = filteropt.sweep(plain, filteropt.AdaBayes, grid, loss, data(), maximize=True)
    assert_equal(found, plain, filteropt.AdaBayes, data(), maximize=True)
    assert (found.losses[:, -1] > found.losses[:, 0]).all()


def test_running_statistics_are_every_members_own():
    grid = {"lr": [1e-3, 1e-1]}
    found = filteropt.sweep(normed, filteropt.AdaBayes, grid, loss, data(), seeds=[0, 1])
    assert_equal(found, normed, filteropt.AdaBayes, data())
    assert torch.pdist(found.buffers["1.running_mean"]).min() > 1e-4
    assert found.buffers["1.num_batches_tracked"].tolist() == [STEPS] * 4


@pytest.mark.parametrize("seeds", [[0], [0, 5]])
def test_shared_randomness_is_that_of_runs_of_their_own(seeds):
    grid = {"lr": [1e-3, 1e-1]}
    found = filteropt.sweep(
        dropping, filteropt.AdaBayes, grid, loss, data(), seeds=seeds, randomness="same"
    )
    assert_equal(found, dropping, filteropt.AdaBayes, data())


def test_different_randomness_is_that_of_own_runs_in_law():
    """The mean of dropped-out losses over members, at their common start, is that over runs."""
    grid, batch = {"lr": np.full(300, 1e-3)}, data(1)
    settings = [{"lr": lr} for lr in grid["lr"].tolist()]
    found = filteropt.sweep(dropping, presets.sgd, settings, loss, batch, steps=1).losses[:, 0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = dropping()
        own = np.array([loss(model, batch[0]).item() for _ in range(300)])
    assert len(set(found)) > 290
    spread = math.hypot(found.std(), own.std()) / 300**0.5
    assert abs(found.mean() - own.mean()) < 5 * spread
    assert found.std() == pytest.approx(own.std(), rel=0.35)


def test_every_seed_may_have_its_own_order():
    grid, order = {"lr": [1e-3, 1e-2]}, lambda seed: data(seed=seed)
    found = filteropt.sweep(plain, filteropt.AdaBayes, grid, loss, order, seeds=[0, 1, 4])
    assert_equal(found, plain, filteropt.AdaBayes, order)
    same = filteropt.sweep(
        dropping, filteropt.AdaBayes, grid, loss, order, seeds=[0, 1], randomness="same"
    )
    assert_equal(same, dropping, filteropt.AdaBayes, order)


def test_chunks_change_nothing():
    grid = {"lr": [1e-3, 1e-2, 1e-1]}
    whole, *parts = (
        filteropt.sweep(normed, filteropt.AdaBayes, grid, loss, data(), seeds=[0, 1], chunk=chunk)
        for chunk in (None, 1, 4)
    )
    assert [found.chunk for found in (whole, *parts)] == [6, 1, 4]
    for found in parts:
        np.testing.assert_allclose(found.losses, whole.losses, rtol=1e-12)


def test_memory_bounds_the_chunk():
    made = prepare({"lr": [1e-3] * 8}, filteropt.AdaBayes, schedule="gain", strict=False)
    plan = Plan(
        factory=plain, loss=loss, batches=data(), steps=3, factors=[1.0] * 3, evaluate=None,
        every=3, strict=False, maximize=False, randomness="different", compiled=None, keep=True,
        device=torch.device("cpu"),
    )  # fmt: skip
    need = memory.bytes_per_member(plan, made[0])
    weights = 8 * sum(p.numel() for p in plain().parameters())
    assert 5 * weights < need < 50 * weights
    found = filteropt.sweep(
        plain, filteropt.AdaBayes, {"lr": [1e-3] * 8}, loss, data(), memory=3.5 * need
    )
    assert found.chunk == 3
    wide = [(torch.randn(800, 5), torch.randint(3, (800,)))]
    plan = Plan(**{**vars(plan), "batches": wide})
    assert memory.bytes_per_member(plan, made[0]) > 10 * need


def test_parameters_of_any_shape_and_use():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.3))
            self.empty = nn.Parameter(torch.zeros(0, 2))
            self.unused = nn.Parameter(torch.ones(2))
            self.frozen = nn.Parameter(torch.full((3,), 0.5), requires_grad=False)
            self.tied = nn.Linear(5, 3)
            self.again = self.tied

        def forward(self, x):
            return self.scale * self.tied(x) + self.again(-x) * self.frozen + self.empty.sum()

    grid = {"lr": [1e-3, 1e-2]}
    found = filteropt.sweep(Odd, filteropt.AdaBayes, grid, loss, data())
    assert_equal(found, Odd, filteropt.AdaBayes, data())
    assert found.parameters["unused"].tolist() == [[1.0, 1.0]] * 2


@pytest.mark.parametrize("compiled", [False, True])
def test_families_that_are_not_elementwise_are_stepped_by_parameter(compiled, monkeypatch):
    counted(monkeypatch)

    class Half:
        """A projection that looks at the whole parameter."""

        def __call__(self, disp, belief):
            return disp / (1 + disp.norm() + disp.flatten()[1]), belief

    whole = filteropt.variant(presets.adabayes, projections=(Half(),))
    assert not is_elementwise(whole())
    grid = {"lr": [1e-3, 1e-1]}
    found = filteropt.sweep(plain, whole, grid, loss, data(), compiled=compiled)
    assert_equal(found, plain, whole, data())


def test_half_precision_weights_have_a_float32_belief():
    torch.set_default_dtype(torch.float32)

    def factory():
        return nn.Linear(5, 3).bfloat16()

    def half_loss(model, batch):
        return cross_entropy(model(batch[0].bfloat16()).float(), batch[1])

    found = filteropt.sweep(factory, filteropt.AdaBayes, {"lr": [1e-2, 1e-1]}, half_loss, data())
    for k, (setting, _) in enumerate(found.members):
        torch.manual_seed(0)
        model = factory()
        opt = filteropt.AdaBayes(model.parameters(), **setting)
        for batch in data():
            opt.zero_grad()
            half_loss(model, batch).backward()
            opt.step()
        assert found.parameters["weight"].dtype == torch.bfloat16
        torch.testing.assert_close(found.parameters["weight"][k], model.weight.detach())


def counted(monkeypatch, backend="eager"):
    counter = CompileCounterWithBackend(backend)
    monkeypatch.setattr(compiling, "BACKEND", counter)
    monkeypatch.setattr(compiling, "_COMPILED", {})
    return counter


@pytest.mark.parametrize("name", ["AdaBayes", "MomentumFilter"])
def test_one_program_serves_all_values_steps_and_chunks(name, monkeypatch):
    counter, (optimizer, grid) = counted(monkeypatch), SWEEPS[name]
    for scale in (1.0, 0.5):
        other = {**grid, "lr": [scale * lr for lr in grid["lr"]]}
        found = filteropt.sweep(
            plain, optimizer, other, loss, data(), lr_lambda=halving, chunk=2, compiled=True
        )
        assert_equal(found, plain, optimizer, data(), lr_lambda=halving)
    assert counter.frame_count == 1


RECORDED = ["AdaBayes (exact)", "AdaBayesFP (exact)", "BayesRMSprop", "pulled", "clipped", "sgd"]


@pytest.mark.parametrize("name", RECORDED)
def test_whole_steps_of_every_kind_of_composition_are_the_same(name, monkeypatch):
    counter, (optimizer, grid) = counted(monkeypatch), SWEEPS[name]
    found = filteropt.sweep(plain, optimizer, grid, loss, data(), compiled=True)
    assert counter.frame_count == 1
    assert_equal(found, plain, optimizer, data())


def test_numbers_of_every_block_of_steps_are_its_own(monkeypatch):
    counted(monkeypatch)
    monkeypatch.setattr(numbers, "BLOCK", 2)
    optimizer, grid = SWEEPS["AdaBayes"]
    found = filteropt.sweep(
        plain, optimizer, grid, loss, data(), lr_lambda=halving, schedule="model", compiled=True
    )
    assert_equal(found, plain, optimizer, data(), lr_lambda=halving, schedule="model")


def test_whole_steps_of_scalars_and_several_dtypes_are_the_same(monkeypatch):
    """A parameter without dimensions has one belief; another's gradient lies transposed."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = plain(), nn.Parameter(torch.tensor(0.7))
            self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float32))

        def forward(self, x):
            return self.inner(x) * self.scale + self.shift

    counter, grid = counted(monkeypatch), {"lr": [1e-3, 2e-2, 5e-2]}
    found = filteropt.sweep(Scaled, filteropt.AdaBayes, grid, loss, data(), compiled=True)
    assert counter.frame_count == 1
    apart = filteropt.sweep(Scaled, filteropt.AdaBayes, grid, loss, data(), compiled=False)
    np.testing.assert_allclose(found.losses, apart.losses, rtol=1e-6)


@pytest.mark.parametrize("factory", [normed, dropping])
def test_models_that_draw_or_keep_statistics_have_their_steps_compiled_alone(factory, monkeypatch):
    counter, grid = counted(monkeypatch), {"lr": [1e-3, 1e-1]}
    found = filteropt.sweep(
        factory, filteropt.AdaBayes, grid, loss, data(), randomness="same", compiled=True
    )
    assert_equal(found, factory, filteropt.AdaBayes, data())
    assert counter.frame_count == 1
    assert len(compiling._COMPILED) == 1


@pytest.mark.parametrize("where", ["posterior", "prediction"])
def test_whole_steps_with_orders_of_their_own_and_predictions_are_the_same(where, monkeypatch):
    counted(monkeypatch)
    grid, order = {"lr": [1e-3, 1e-1], "weight_decay": 0.5}, lambda seed: data(seed=seed)
    found = filteropt.sweep(
        plain, filteropt.AdaBayes, grid, loss, order, seeds=[0, 1], linearize_at=where,
        maximize=True, compiled=True,
    )  # fmt: skip
    assert_equal(found, plain, filteropt.AdaBayes, order, linearize_at=where, maximize=True)


@pytest.mark.skipif(not compiling.can_compile(torch.device("cpu")), reason="no C++ compiler")
def test_the_compiled_step_is_the_same():
    optimizer, grid = SWEEPS["OnlineNaturalGradient"]
    with warnings.catch_warnings(record=True) as caught:
        found = filteropt.sweep(plain, optimizer, grid, loss, data(), compiled=True)
    assert not caught
    assert_equal(found, plain, optimizer, data())


def test_a_step_that_does_not_compile_is_taken_as_it_is(monkeypatch):
    def broken(graph, inputs):
        raise OSError("no compiler")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    monkeypatch.setattr(compiling, "_COMPILED", {})
    optimizer, grid = SWEEPS["sgd"]
    with pytest.warns(UserWarning, match="not compiled, since that fails") as caught:
        found = filteropt.sweep(plain, optimizer, grid, loss, data(), compiled=True)
    assert len(caught) == 2  # of losses, then of steps
    assert_equal(found, plain, optimizer, data())


# Divergence and interruption ----------------------------------------------------------------


def exploding(model, batch):
    return loss(model, batch) * torch.where(model[0].weight.abs().max() > 1.0, math.nan, 1.0)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_diverging_member_disturbs_no_other(compiled, monkeypatch):
    counter = counted(monkeypatch)
    grid = [{"lr": 1e-3}, {"lr": 0.9, "lr_sgd": 1e6}, {"lr": 2e-3}]
    found = filteropt.sweep(
        plain, filteropt.AdaBayes, grid, exploding, data(), evaluate=error, compiled=compiled
    )
    assert counter.frame_count == compiled
    others = filteropt.sweep(
        plain, filteropt.AdaBayes, grid[::2], exploding, data(), evaluate=error
    )
    assert found.status == ["finished", "diverged", "finished"]
    np.testing.assert_allclose(found.losses[::2], others.losses, rtol=1e-12)
    row = found.table[1]
    assert row["status"] == "diverged"
    assert 0 < row["steps"] < STEPS
    assert math.isnan(row["nll"])
    assert np.isnan(found.losses[1, row["steps"] :]).all()
    assert np.isfinite(found.losses[1, : row["steps"]]).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_diverged_member_is_left_as_its_own_run_would_be(compiled, monkeypatch):
    counted(monkeypatch)
    setting = {"lr": 0.9, "lr_sgd": 1e6}
    found = filteropt.sweep(
        plain, filteropt.AdaBayes, [{"lr": 1e-3}, setting], exploding, data(), compiled=compiled
    )
    torch.manual_seed(0)
    model = plain()
    opt = filteropt.AdaBayes(model.parameters(), **setting)
    with contextlib.suppress(filteropt.NonFiniteGradientError):
        for batch in data():
            opt.zero_grad()
            exploding(model, batch).backward()
            opt.step()
    assert not model[0].weight.grad.isfinite().all()
    for name, x in model.named_parameters():
        torch.testing.assert_close(found.parameters[name][1], x.detach(), rtol=1e-10, atol=0)


def test_gradients_whose_square_overflows_count_as_diverged():
    torch.set_default_dtype(torch.float32)
    found = filteropt.sweep(
        plain, presets.online_natural_gradient, {"batch_size": [1.0, 1e25]}, loss, data()
    )
    assert found.status == ["finished", "diverged"]


def test_all_members_may_diverge():
    found = filteropt.sweep(
        plain, filteropt.AdaBayes, {"lr": [1e-3, 1e-2]}, lambda m, b: loss(m, b) * math.nan, data()
    )
    assert found.status == ["diverged"] * 2
    assert [row["steps"] for row in found.table] == [0, 0]
    with pytest.raises(ValueError, match="no setting of which all members finished"):
        found.best()


def test_an_interrupt_keeps_what_is_there():
    def report(done, total):
        if done >= total / 2 + 2:  # within the third of four chunks
            raise KeyboardInterrupt

    grid = {"lr": [1e-3, 1e-2, 2e-2, 5e-2]}
    with pytest.warns(UserWarning, match="interrupted"):
        found = filteropt.sweep(
            plain, filteropt.AdaBayes, grid, loss, data(), chunk=1, progress_bar=report
        )
    assert found.status == ["finished", "finished", "interrupted", "waiting"]
    whole = filteropt.sweep(plain, filteropt.AdaBayes, grid, loss, data())
    np.testing.assert_allclose(found.losses[:2], whole.losses[:2])
    taken = found.table[2]["steps"]
    assert 0 < taken < STEPS
    np.testing.assert_allclose(found.losses[2, :taken], whole.losses[2, :taken])
    assert np.isnan(found.losses[3]).all()
    assert found.model(2) is not None
    with pytest.raises(ValueError, match="did not start"):
        found.model(3)


# Results ------------------------------------------------------------------------------------


def test_members_are_evaluated_at_their_posterior_means_and_in_evaluation_mode():
    def look(model):
        assert not model.training
        return error(model)

    grid = {"lr": [1e-3, 5e-2]}
    found = filteropt.sweep(
        dropping, filteropt.MomentumFilter, grid, loss, data(), evaluate=look, evaluate_every=4
    )
    assert found.evaluated_at == [4, STEPS]
    assert found.curves["nll"].shape == (2, 2)
    for k in range(2):
        model = found.model(k).eval()
        assert found.curves["nll"][k, -1] == pytest.approx(error(model)["nll"].item(), rel=1e-12)
        assert found.table[k]["hits"] == error(model)["hits"].item()
    unlooked = filteropt.sweep(dropping, filteropt.MomentumFilter, grid, loss, data())
    np.testing.assert_array_equal(found.losses, unlooked.losses)  # nor does looking disturb


def test_table_means_errors_and_best():
    grid = {"lr": [1e-4, 3e-2]}
    found = filteropt.sweep(
        plain, filteropt.AdaBayesFP, grid, loss, data(), steps=40, seeds=[0, 1, 2], evaluate=error
    )
    assert [(row["lr"], row["seed"]) for row in found.table] == [
        (lr, seed) for lr in grid["lr"] for seed in (0, 1, 2)
    ]
    losses = found.losses[:, -1].reshape(2, 3)
    mean, spread = found.mean_and_error()
    np.testing.assert_allclose(mean, losses.mean(1))
    np.testing.assert_allclose(spread, losses.std(1, ddof=1) / 3**0.5)
    assert found.best() == {"lr": 3e-2}
    assert found.best(largest=True) == {"lr": 1e-4}
    assert "40 steps: 6 finished" in repr(found)
    with pytest.raises(ValueError, match="no number 'accuracy'"):
        found.best("accuracy")


def test_parameters_need_not_be_kept():
    found = filteropt.sweep(plain, filteropt.AdaBayes, {"lr": [1e-3]}, loss, data(), keep=False)
    with pytest.raises(ValueError, match="keep=False"):
        found.model(0)


def test_random_numbers_outside_stay_as_they_were():
    torch.manual_seed(1)
    filteropt.sweep(dropping, filteropt.AdaBayes, {"lr": [1e-3]}, loss, data(), evaluate=error)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))


def test_progress_is_told(capsys):
    told = []
    grid = {"lr": [1e-3, 1e-2]}
    filteropt.sweep(
        plain, filteropt.AdaBayes, grid, loss, data(), progress_bar=lambda *x: told.append(x)
    )
    assert told[-1] == (2 * STEPS, 2 * STEPS)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    filteropt.sweep(plain, filteropt.AdaBayes, grid, loss, data(), progress_bar=True)
    assert "sweep of 2: 100% done" in capsys.readouterr().err


def test_progress_has_a_bar_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with warnings.catch_warnings():
        filteropt.sweep(plain, filteropt.AdaBayes, {"lr": [1e-3]}, loss, data())


# Errors -------------------------------------------------------------------------------------


def refused(match, kind=ValueError, optimizer=filteropt.AdaBayes, settings=None, **keywords):
    given = {"model": plain, "loss": loss, "batches": data(), **keywords}
    settings = {"lr": [1e-3]} if settings is None else settings
    with pytest.raises(kind, match=match):
        filteropt.sweep(optimizer=optimizer, settings=settings, **given)


def test_another_composition_is_refused_by_name():
    mixed = [{"lr": 1e-3}, {"lr": 1e-3, "weight_decay": None}]
    refused(
        r"setting 1, \{'lr': 0.001, 'weight_decay': None\}.*dynamics.weight_decay", settings=mixed
    )
    kinds = {"discretization": ["euler", "exact"]}
    refused("setting 1.*dynamics.discretization is 'exact' instead of 'euler'", settings=kinds)
    centred = {"stationary": [True, False]}
    refused("setting 1.*Averaged", optimizer=filteropt.MomentumFilter, settings=centred)


def test_numbers_that_the_step_reads_itself_are_refused():
    from dataclasses import dataclass, replace

    from filteropt.types import Diag, Observation

    @dataclass(frozen=True)
    class Reads(SquaredGradient):
        floor: float = 0.0

        def observe(self, like, raw, p, prior, scalars):
            return Observation(raw.grad, Diag(raw.grad.square() + self.floor)), like

    def preset(lr=1e-2, floor=0.0):
        return filteropt.engine.Filter(
            FixedNoise(lr, 0.1), Reads(beta1=None, floor=floor), Diagonal()
        )

    refused("setting 1.*reads itself", optimizer=preset, settings={"floor": [0.1, 0.2]})

    def clipping(lr=1e-2, radius=0.1):
        return replace(presets.adabayes(lr), projections=(Clipped(radius),))

    refused("projections.*radius", optimizer=clipping, settings={"radius": [0.1, 0.2]})


def test_what_needs_more_than_gradients_is_refused():
    newton = {"lr": [0.1], "dataset_size": 8}
    refused("cannot be swept: .* needs the", optimizer=presets.von, settings=newton)
    refused(
        "makes its filter from more than a preset", TypeError, optimizer=filteropt.KroneckerFilter
    )
    refused("AdamW is no filter.*presets.adamw", TypeError, optimizer=torch.optim.AdamW)


def test_bad_settings_are_refused_by_name():
    refused(r"setting 1, \{'lr': -1.0\}", settings={"lr": [1e-3, -1.0]})
    refused(r"setting 0, \{'rate': 1\}.*no hyperparameter 'rate'", TypeError, settings={"rate": 1})
    refused("lr=0 trains nothing", settings={"lr": [1e-3, 0.0]})
    refused("holds no value", settings={"lr": []})
    refused("no setting", settings=[])
    refused("dictionary of lists", TypeError, settings=[1e-3])
    decaying = {"lr": 0.5, "weight_decay": [0.1, 3.0]}
    refused("decay per step", settings=decaying, linearize_at="prediction")


def test_bad_arguments_are_refused():
    refused("randomness='some'", randomness="some")
    refused("schedule='none'", schedule="none")
    refused("steps=0", steps=0)
    refused("chunk=2.5", chunk=2.5)
    refused("seeds", seeds=[])
    refused("lr_lambda", lr_lambda=lambda s: -1.0)
    refused("give steps", batches=iter(data()))
    refused("no more minibatches", batches=iter(data()), steps=STEPS + 1)
    refused("must make a torch.nn.Module", TypeError, model=dict)
    refused("one number per model", loss=lambda m, b: m(b[0]))
    refused("does not depend", loss=lambda m, b: b[0].sum())
    reads = RuntimeError, lambda model, *_: model[0].bias.sum().item()
    refused("vmap does not run the loss", reads[0], loss=reads[1])
    refused("vmap does not run evaluate", reads[0], evaluate=reads[1])
    refused("one architecture", model=lambda: nn.Linear(5, 3 + torch.initial_seed()), seeds=[0, 1])
    shorter = lambda seed: [(x[seed:], y[seed:]) for x, y in data()]  # ruff: ignore[lambda-assignment] - short
    refused("differ in shape", batches=shorter, seeds=[0, 1])
