"""The Kronecker filter as an optimizer: whole layers, what is left to AdaBayes, and its life."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, unfold

import filteropt
from filteropt import FilterOptimizer, KroneckerFilter
from filteropt.approximations import Diagonal, Kronecker, LayerGradients
from filteropt.engine import Filter
from filteropt.models import Static
from filteropt.presets import kronecker_filter

SIZE = 12
OPTIONS = {"lr": 0.02, "lr_sgd": 2.0, "batch_size": SIZE}
DOUBLE = {"dtype": torch.float64}


def filled(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, **DOUBLE) / 2
    return model.double()


def mlp():
    return filled(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.LayerNorm(3)))


def images():
    return filled(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 2)))


class Windows(nn.Module):
    """The convolutions of :func:`images`, as matrices whose inputs end in a one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(19, 3, bias=False)
        self.second = nn.Linear(13, 4, bias=False)

    def forward(self, x):
        first = self.first(appended(unfold(x, 3, padding=1).mT)).tanh()
        places = first.mT.reshape(len(x), 3, *x.shape[2:])
        return self.second(appended(unfold(places, 2).mT)).mT


class Appended(nn.Module):
    """Two layers of :func:`mlp`, as matrices whose inputs end in a one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return self.second(appended(self.first(appended(x)).tanh()))


def appended(x):
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


def batches(shape=(3,), count=5):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(SIZE, *shape, generator=generator, **DOUBLE)
        yield x, (x.flatten(1)[:, :3]).argmax(1)


def loss_of(model, x, y):
    return cross_entropy(model(x).flatten(2).mean(-1) if x.dim() > 2 else model(x), y)


def train(model, opt, data=None):
    for x, y in batches() if data is None else data:
        opt.zero_grad()
        loss_of(model, x, y).backward()
        opt.step()
    return model


def whole(layer):
    """A layer's weight and bias as one matrix."""
    return torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).detach()


def same(model, other):
    return all(map(torch.equal, model.parameters(), other.parameters()))


# Biases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(
    "options",
    [{}, {"projection": "forward"}, {"projection": "first-order"}, {"weight_decay": None},
     {"left": 1e-3, "right": 1e-3}, {"drift_every": 2}, {"linearize_at": "prediction"},
     {"maximize": True}],
    ids=str,
)  # fmt: skip
def test_a_joint_bias_is_the_weight_of_an_appended_one(options, sharing):
    options = {**OPTIONS, "sharing": sharing, **options}
    for model, other, shape in (
        (nn.Sequential(*mlp()[:3]), Appended().double(), (3,)),
        (images(), Windows().double(), (2, 4, 4)),
    ):
        layers = model[0], model[2]
        for layer, matrix in zip(layers, other.children(), strict=True):
            matrix.weight.data = whole(layer)
        opt = KroneckerFilter(model, **options)
        alike = FilterOptimizer(other.parameters(), kronecker_filter, model=other, **options)
        start = whole(layers[0])
        train(model, opt, batches(shape, 3))
        train(other, alike, batches(shape, 3))
        assert not torch.allclose(whole(layers[0])[:, -1], start[:, -1], rtol=0.01)
        for name in ("train", "eval"):
            getattr(opt, name)()
            getattr(alike, name)()
            for layer, matrix in zip(layers, other.children(), strict=True):
                w = matrix.weight
                torch.testing.assert_close(whole(layer), w.detach(), rtol=1e-12, atol=1e-12)
                found = [opt.posterior_variance(p) for p in (layer.weight, layer.bias)]
                assert [x.shape for x in found] == [layer.weight.shape, layer.bias.shape]
                found = torch.cat([found[0].flatten(1), found[1][:, None]], 1)
                torch.testing.assert_close(found, alike.posterior_variance(w), rtol=1e-11, atol=0)
                covariances = opt.posterior_covariance(layer.weight), alike.posterior_covariance(w)
                for factor, expected in zip(*covariances, strict=True):
                    torch.testing.assert_close(factor, expected, rtol=1e-11, atol=1e-13)


def test_diagonal_biases_and_what_is_no_matrix_are_left_to_adabayes():
    for bias in ("diagonal", "joint"):
        model = mlp()
        opt = KroneckerFilter(model, beta1=0.7, weight_decay=0.3, bias=bias, **OPTIONS)
        rest = [model[3].weight, model[3].bias]
        rest += [model[0].bias, model[2].bias] if bias == "diagonal" else []
        theirs = [nn.Parameter(p.detach().clone()) for p in rest]
        adabayes = filteropt.AdaBayes(theirs, beta1=0.7, weight_decay=0.3, **OPTIONS)
        for x, y in batches():
            opt.zero_grad()
            loss_of(model, x, y).backward()
            for p, its in zip(theirs, rest, strict=True):
                p.grad = its.grad.clone()
            opt.step()
            adabayes.step()
        for p, its in zip(theirs, rest, strict=True):
            assert torch.equal(p, its)
            assert torch.equal(adabayes.posterior_variance(p), opt.posterior_variance(its))
        shapes = [factor.shape for factor in opt.posterior_covariance(model[0].weight)]
        n = 4 if bias == "joint" else 3
        assert shapes == [(n, n), (4, 4)]


def test_biases_of_their_own_layer_alone_are_joint():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].bias = model[0].bias  # of two weights
    model[3].weight = model[2].weight  # with two biases
    model.add_module("norm", nn.LayerNorm(3))
    opt = KroneckerFilter(model, **OPTIONS)
    names = {group["structure"]: group["param_names"] for group in opt.param_groups}
    assert names["kronecker"] == ["0.weight", "1.weight", "2.weight"]
    assert names["diagonal"] == ["0.bias", "2.bias", "3.bias", "norm.weight", "norm.bias"]
    train(model.double(), opt)


def test_a_vector_that_is_no_bias_of_the_weight_is_refused():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.LayerNorm(3))
    message = "the vector after parameter '0.weight' in its group is not the bias"
    with pytest.raises(ValueError, match=message):
        FilterOptimizer(model.parameters(), kronecker_filter, model=model)


def test_a_frozen_bias_stays_and_says_nothing():
    model = mlp()
    model[0].bias.requires_grad_(False)
    opt, before = KroneckerFilter(model, **OPTIONS), whole(model[0])
    data = list(batches())
    train(model, opt, data)
    after, x = whole(model[0]), opt.posterior_covariance(model[0].weight).input
    assert torch.equal(after[:, -1], before[:, -1])
    assert not torch.equal(after[:, :-1], before[:, :-1])
    assert not x[-1, :-1].any()
    assert x[-1, -1] > 0.5 * x.diagonal().max()
    with opt.sampled_params():
        assert torch.equal(whole(model[0])[:, -1], before[:, -1])
        assert (whole(model[0])[:, :-1] != after[:, :-1]).all()
    model[0].bias.requires_grad_(True)
    train(model, opt, data)
    assert (whole(model[0])[:, -1] != before[:, -1]).all()
    assert opt.posterior_covariance(model[0].weight).input[-1, :-1].all()
    model[0].bias.requires_grad_(False)
    opt.zero_grad()
    frozen = whole(model[0])[:, -1]
    train(model, opt, data)
    assert torch.equal(whole(model[0])[:, -1], frozen)
    steps = {row.name: row.steps for row in opt.report()}
    assert (steps["0.weight"], steps["0.bias"]) == (15, 5)
    with opt.sampled_params():  # believed of, though frozen since
        assert (whole(model[0])[:, -1] != frozen).all()


def test_a_bias_cannot_move_without_its_weight():
    model = mlp()
    opt, before = KroneckerFilter(model, **OPTIONS), copy.deepcopy(model)
    model[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"'0.weight' \(with its bias\).*bias='diagonal'"):
        train(model, opt)
    assert same(model, before)
    opt = KroneckerFilter(model, **OPTIONS)  # frozen from the start: its bias is on its own
    train(model, opt)
    assert torch.equal(model[0].weight, before[0].weight)
    assert (model[0].bias != before[0].bias).all()
    assert {row.name: row.gathered for row in opt.report()}["0.bias"] == "gradient"


def test_a_biass_covariance_is_its_weights():
    model = mlp()
    opt = KroneckerFilter(model, **OPTIONS)
    with pytest.raises(ValueError, match=r"the bias of shape \(4,\) is the last input of its weig"):
        opt.posterior_covariance(model[0].bias)


def test_draws_have_the_factors_covariance(monkeypatch):
    model = filled(nn.Sequential(nn.Linear(2, 3)))
    opt = KroneckerFilter(model, **OPTIONS)
    train(model, opt, [(x[:, :2], y) for x, y in batches()])
    mean, drawn = whole(model[0]), []
    for unit in torch.eye(9, **DOUBLE).reshape(9, 3, 3):
        normal = [unit[:, :2], unit[:, 2]]
        monkeypatch.setattr("filteropt.sampling.noise", lambda params, generator, n=normal: n)
        with opt.sampled_params():
            drawn.append((whole(model[0]) - mean).T.flatten())
    assert torch.equal(whole(model[0]), mean)
    expected = torch.kron(*opt.posterior_covariance(model[0].weight))
    found = torch.stack(drawn).T @ torch.stack(drawn)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert expected[:-3, -3:].any()  # weight and bias do correlate


def test_gradients_at_draws_are_those_of_the_joint_draw(monkeypatch):
    """Two draws per step, of weight and bias together, as of the matrix with appended ones."""
    model, other = mlp()[:3], Appended().double()
    for layer, matrix in zip((model[0], model[2]), other.children(), strict=True):
        matrix.weight.data = whole(layer)
    generator = torch.Generator()

    def noise(params, _):
        """The same numbers for two parameters as for the matrix of both."""
        found = []
        for p in params:
            if p.dim() > 1:
                n = p.shape[1] + (len(params) == 4)
                both = torch.randn(len(p), n, generator=generator, **DOUBLE)
            found.append(
                (both if len(params) == 2 else both[:, :-1]) if p.dim() > 1 else both[:, -1]
            )
        return found

    monkeypatch.setattr("filteropt.sampling.noise", noise)
    for m, opt in (
        (model, KroneckerFilter(model, **OPTIONS)),
        (other, FilterOptimizer(other.parameters(), kronecker_filter, model=other, **OPTIONS)),
    ):
        generator.manual_seed(0)
        for x, y in batches(count=3):
            opt.zero_grad()
            for _ in range(2):
                with opt.sampled_params(train=True):
                    opt.zero_grad()
                    loss_of(m, x, y).backward()
            opt.step()
    for layer, matrix in zip((model[0], model[2]), other.children(), strict=True):
        torch.testing.assert_close(whole(layer), matrix.weight.detach(), rtol=1e-11, atol=1e-12)


# Report and errors ------------------------------------------------------------------------------


def test_the_report_says_which_parameter_got_what():
    model = nn.Sequential(
        *(nn.Embedding(9, 5), nn.Conv1d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)),
        nn.LayerNorm(3),
    )
    opt = KroneckerFilter(model, **OPTIONS)
    assert {row.gathered for row in opt.report()} == {"never"}
    state = opt.state_dict()
    loss_of(model, torch.randint(0, 9, (SIZE, 4)), torch.arange(SIZE) % 3).backward()
    opt.step()
    rows = {row.name: row for row in opt.report()}
    assert {name: row.gathered for name, row in rows.items()} == {
        "0.weight": "rows: Embedding",
        **{f"1.{name}": "rows: Conv1d" for name in ("weight", "bias")},
        **{f"4.{name}": "rows: Linear" for name in ("weight", "bias")},
        **{f"5.{name}": "gradient" for name in ("weight", "bias")},
    }
    kept = [x for state in opt.state.values() for x in state.values()]
    total = sum(row.state_bytes * torch.Size(row.shape).numel() for row in rows.values())
    assert total == pytest.approx(sum(x.numel() * x.element_size() for x in kept))
    assert {row.limit for row in rows.values()} == {"whitening", "Adam"}
    assert rows["4.weight"].limit == rows["4.bias"].limit == "whitening"
    table = str(opt.report())
    assert "data-rich ones along the whitened gradient" in table
    saved, later = opt.state_dict(), KroneckerFilter(copy.deepcopy(model), **OPTIONS)
    later.load_state_dict(saved)
    assert {row.name: row.gathered for row in later.report()}["4.bias"] == "not seen"
    later.load_state_dict(state)
    assert {row.gathered for row in later.report()} == {"never"}


def test_the_report_tells_of_a_basis_from_layers():
    model = mlp()
    opt = filteropt.EigenbasisFilter(
        model.parameters(), lr=1e-2, batch_size=SIZE, factors="layers", model=model
    )
    train(model, opt)
    found = {row.name: (row.gathered, row.limit) for row in opt.report()}
    assert found["0.weight"] == ("gradient, basis of rows: Linear", "whitening")
    assert found["0.bias"] == ("gradient", "Adam")


def test_mixing_has_no_data_poor_limit_in_the_report():
    model = mlp()
    opt = KroneckerFilter(model, left=1e-4, **OPTIONS)
    train(model, opt)
    rows = {row.name: row for row in opt.report()}
    assert rows["0.weight"].data_poor != rows["0.weight"].data_poor  # NaN
    assert rows["3.weight"].data_poor >= 0


class Changing(nn.Module):
    """A layer that is called, and later only lends its weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.called = True

    def forward(self, x):
        return self.layer(x) if self.called else linear(x, self.layer.weight, self.layer.bias)


def test_a_hook_that_falls_silent_is_an_error():
    model = filled(Changing())
    opt = KroneckerFilter(model, **OPTIONS)
    train(model, opt)
    before, model.called = copy.deepcopy(model), False
    with pytest.raises(RuntimeError, match=r"'layer.weight' of layer \(Linear\).*no rows: its lay"):
        train(model, opt)
    assert same(model, before)


def test_attention_trains_with_its_projection_filtered_weight_by_weight():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
            self.read = nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x):
            return self.read(self.attention(x, x, x, need_weights=False)[0]).mean(1)

    model, (x, y) = Attention(), next(iter(batches((5, 4))))
    opt = KroneckerFilter(model, **OPTIONS)
    cross_entropy(model(x), y).backward()
    opt.step()
    assert [row.gathered for row in opt.report()] == ["rows: Linear"] * 2 + ["gradient"] * 4


class Tied(nn.Module):
    """A table that is used as a matrix, too, without a layer's call."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4, dtype=torch.float64)

    def forward(self, x):
        return self.embed(x).mean(1) @ self.embed.weight.T


@pytest.mark.parametrize("by_name", [True, False])
def test_weights_used_without_their_layer_are_named_and_can_be_left_out(by_name):
    model, x, y = Tied(), torch.tensor([[0, 1], [2, 3]]), torch.tensor([4, 5])
    opt = KroneckerFilter(model, **OPTIONS)
    cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match=r"'embed.weight'.*KroneckerFilter's diagonal="):
        opt.step()
    given = ["embed.weight"] if by_name else [model.embed.weight]
    opt = KroneckerFilter(model, diagonal=given, **OPTIONS)
    opt.zero_grad()
    cross_entropy(model(x), y).backward()
    opt.step()
    assert [row.gathered for row in opt.report()] == ["gradient"]
    with pytest.raises(ValueError, match=r"diagonal='embed.wait' is no parameter of the model"):
        KroneckerFilter(model, diagonal=["embed.wait"])
    with pytest.raises(TypeError, match="structure='diagonal' is chosen by layer"):
        KroneckerFilter(model, structure="diagonal")


def test_a_sub_sample_goes_on_from_a_checkpoint():
    """Which rows are taken depends on the steps taken, not on the process."""
    torch.manual_seed(0)
    batches, ends = torch.randn(6, 8, 3), []
    for interrupted in (False, True):
        torch.manual_seed(1)
        model = nn.Linear(3, 2)
        opt = KroneckerFilter(model, rows=3, batch_size=8)
        for t, x in enumerate(batches):
            if interrupted and t == 4:
                kept, opt = opt.state_dict(), KroneckerFilter(model, rows=3, batch_size=8)
                opt.load_state_dict(kept)
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends)


def test_sub_samples_come_by_all_rows():
    torch.manual_seed(0)
    model = nn.Linear(8, 2, bias=False)
    opt = KroneckerFilter(model, lr=1e-3, rows=3, batch_size=1)
    known = []
    for _ in range(3):
        opt.zero_grad()
        (10 * model(torch.eye(8))).sin().sum().backward()  # an example for every input
        opt.step()
        variances = opt.posterior_covariance(model.weight).input.diagonal()
        known.append(int((variances < 0.9 * variances.max()).sum()))
    assert known == [3, 6, 7]  # and the widest itself


def test_layers_that_are_left_out_of_a_step_learn_nothing_from_it():
    model = nn.ModuleList(nn.Linear(3, 3, dtype=torch.float64) for _ in range(2))
    opt = KroneckerFilter(model, **OPTIONS)
    for t, (x, y) in enumerate(batches()):
        opt.zero_grad(set_to_none=False)
        cross_entropy(model[t % 2](x), y).backward()
        opt.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_natural_gradient_bounds_weights_of_inputs_that_are_never_on():
    layer = nn.Linear(6, 3, bias=False)
    preset = filteropt.presets.kronecker_natural_gradient
    opt = FilterOptimizer(layer.parameters(), preset, batch_size=16, model=layer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        x = torch.randn(16, 6, generator=generator)
        x[:, 0] = 0
        opt.zero_grad()
        cross_entropy(layer(x), torch.randint(3, (16,), generator=generator)).backward()
        opt.step()
    variance = opt.posterior_variance(layer.weight)
    assert (variance[:, 0] < 0.011).all()
    assert (variance[:, 1:] > 1e-3).all()


def test_gradients_that_are_not_finite_are_refused_whole():
    model = mlp()
    opt, before = KroneckerFilter(model, **OPTIONS), copy.deepcopy(model)
    x, y = next(iter(batches()))
    loss_of(model, x, y).backward()
    model[0].bias.grad[0] = float("inf")
    with pytest.raises(filteropt.NonFiniteGradientError, match=r"'0.weight' \(with its bias\)"):
        opt.step()
    assert same(model, before)
    assert not opt.state


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: KroneckerFilter(m.parameters()), TypeError, "model=generator must be the torch"),
        (lambda m: KroneckerFilter(m, bias="both"), ValueError, "bias='both' is not allowed; use"),
        (lambda m: KroneckerFilter(m, bias=None), ValueError, "bias=None is not allowed"),
        (lambda m: KroneckerFilter(m, max_dim=0), ValueError, r"max_dim=0 .*\[1, inf\)"),
        (lambda m: KroneckerFilter(m, sharing="sum"), ValueError, "sharing='sum' is not allowed"),
        (lambda m: KroneckerFilter(m, projection="kl"), ValueError, "use 'first-order' or"),
        (lambda m: KroneckerFilter(m, left=-1.0), ValueError, r"left=-1.0 .*\[0, inf\)"),
        (lambda m: KroneckerFilter(m, rows=0), ValueError, r"rows=0 .*\[1, inf\)"),
        (lambda m: KroneckerFilter(m, eps=1e-8), TypeError, "'eps'"),
        (lambda m: LayerGradients(joint=1), TypeError, "joint=1 must be True or False"),
        (lambda m: KroneckerFilter(m).add_param_group({"params": [("x", nn.Parameter(
            torch.ones(2, 2)))]}), ValueError, r"shape \(2, 2\) is not model=Sequential's"),
    ],
)  # fmt: skip
def test_errors_name_what_is_allowed(make, error, message):
    with pytest.raises(error, match=message):
        make(mlp())


# An optimizer's life ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [None, 5])
@pytest.mark.parametrize("linearize_at", ["posterior", "prediction"])
def test_a_checkpoint_resumes_bit_for_bit(linearize_at, rows, tmp_path):
    options = {**OPTIONS, "linearize_at": linearize_at, "rows": rows}
    first, second = list(batches()), list(batches(count=9))[5:]
    model = mlp()
    opt = KroneckerFilter(model, **options)
    train(model, opt, first)
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "checkpoint")
    train(model, opt, second)
    later = mlp()
    resumed = KroneckerFilter(later, **options)
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    later.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    train(later, resumed, second)
    assert same(model, later)
    for p, q in zip(model.parameters(), later.parameters(), strict=True):
        assert torch.equal(opt.posterior_variance(p), resumed.posterior_variance(q))
        assert opt.state[p].keys() == resumed.state[q].keys()


def test_checkpoints_of_other_structures_are_refused():
    model = mlp()
    joint = KroneckerFilter(model, **OPTIONS)
    train(model, joint)
    other = KroneckerFilter(mlp(), bias="diagonal", **OPTIONS)
    with pytest.raises(ValueError, match="the checkpoint holds"):
        other.load_state_dict(joint.state_dict())
    saved = joint.state_dict()
    bias = saved["param_groups"][0]["params"][1]
    saved["state"][bias] = {**saved["state"][bias], "exp_avg": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"holds \['exp_avg', 'step'\] for a parameter, not"):
        KroneckerFilter(mlp(), **OPTIONS).load_state_dict(saved)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_by_themselves(copied):
    data, model = list(batches()), mlp()
    opt = KroneckerFilter(model, **OPTIONS)
    train(model, opt, data)
    other, theirs = copied((model, opt))
    train(other, theirs, data)
    assert not same(model, other)
    train(model, opt, data)
    assert same(model, other)


def test_accumulated_halves_are_the_whole_batch():
    models = mlp(), mlp()
    opts = [KroneckerFilter(model, **OPTIONS) for model in models]
    train(models[0], opts[0])
    for x, y in batches():
        opts[1].zero_grad()
        for half in (slice(SIZE // 2), slice(SIZE // 2, None)):
            (loss_of(models[1], x[half], y[half]) / 2).backward()
        opts[1].step()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_a_scaled_loss_is_unscaled_with_its_rows():
    """As a GradScaler does, between backward and the step."""
    models = mlp(), mlp()
    opts = [KroneckerFilter(model, **OPTIONS) for model in models]
    train(models[0], opts[0])
    for x, y in batches():
        opts[1].zero_grad()
        (1000 * loss_of(models[1], x, y)).backward()
        for p in models[1].parameters():
            p.grad /= 1000
        opts[1].step()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_a_learning_rate_of_zero_freezes_bit_for_bit():
    model = mlp()
    opt = KroneckerFilter(model, **OPTIONS)
    train(model, opt)
    before, kept = copy.deepcopy(model), copy.deepcopy(opt.state_dict()["state"])
    for group in opt.param_groups:
        group["lr"] = 0.0
    train(model, opt)
    assert same(model, before)
    for i, state in opt.state_dict()["state"].items():
        assert all(torch.equal(x, kept[i][name]) for name, x in state.items())
    still = KroneckerFilter(model, lr=0.0)
    train(model, still)
    assert same(model, before)


def test_groups_have_their_own_hyperparameters():
    """One group, two of the same numbers, and a layer that learns by numbers of its own."""
    models = [mlp()[:3] for _ in range(4)]
    one = KroneckerFilter(models[0], **OPTIONS)
    opts = [one]
    for model, own in zip(models[1:], ({}, {"lr": 0.05}, {"rounds": 1, "beta1": 0.0}), strict=True):
        opts.append(
            FilterOptimizer(model[0].parameters(), kronecker_filter, model=model, **OPTIONS)
        )
        opts[-1].add_param_group({"params": model[2].parameters(), **own})
    data = list(batches(count=1))
    for model, opt in zip(models, opts, strict=True):
        train(model, opt, data)
    for model in models[1:]:
        assert torch.equal(whole(models[0][0]), whole(model[0]))
    same_as_one = [torch.equal(whole(models[0][2]), whole(model[2])) for model in models[1:]]
    assert same_as_one == [True, False, False]


@pytest.mark.parametrize("schedule", ["gain", "model"])
def test_schedules_scale_the_step(schedule):
    """Half the rate is half the displacement of weight and bias, or another belief's."""
    data, moved = list(batches(count=2)), []
    for factor in (1.0, 0.5):
        model = mlp()
        opt = KroneckerFilter(model, schedule=schedule, **OPTIONS)
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda t, f=factor: f if t else 1.0)
        train(model, opt, data[:1])
        scheduler.step()
        before = whole(model[0])
        train(model, opt, data[1:])
        moved.append(whole(model[0]) - before)
    halved = torch.allclose(moved[1], moved[0] / 2, rtol=1e-9, atol=0)
    assert halved == (schedule == "gain")


def test_too_long_sides_are_left_to_adabayes():
    for max_dim, matrices in ((4, 2), (3, 0), (1, 0)):
        model = mlp()
        opt = KroneckerFilter(model, max_dim=max_dim, **OPTIONS)
        train(model, opt)
        found = [row.gathered for row in opt.report()]
        assert found.count("rows: Linear") == 2 * matrices
        assert found.count("gradient") == 6 - 2 * matrices


def test_half_precision_weights_have_float32_beliefs():
    model = mlp().bfloat16()
    opt = KroneckerFilter(model, **OPTIONS)
    train(model, opt, [(x.bfloat16(), y) for x, y in batches()])
    state = opt.state[model[0].weight]
    assert {state[name].dtype for name in ("exp_avg", "input_root", "output_root")} == {
        torch.float32
    }
    assert state["exp_avg"].shape == (4, 4)
    assert opt.posterior_variance(model[0].bias).dtype == torch.float32


def test_it_predicts():
    model = mlp()
    opt = KroneckerFilter(model, **OPTIONS)
    train(model, opt)
    before, (x, _) = copy.deepcopy(model), next(iter(batches()))
    generator = torch.Generator().manual_seed(0)
    prediction = filteropt.predict(model, opt, x, n_samples=64, generator=generator)
    point = filteropt.predict(model, opt, x, n_samples=0)
    torch.testing.assert_close(point.mean, model(x).softmax(-1))
    assert (prediction.epistemic > 0).all()
    assert same(model, before)


def test_a_posterior_is_saved_and_loaded(tmp_path):
    pytest.importorskip("safetensors")
    path, model = tmp_path / "posterior.safetensors", mlp()
    opt = KroneckerFilter(model, **OPTIONS)
    train(model, opt)
    filteropt.save_posterior(path, model, opt)
    later = mlp()
    new = KroneckerFilter(later, **OPTIONS)
    filteropt.load_prior(path, later, new)
    assert same(model, later)
    for p, q in zip(model.parameters(), later.parameters(), strict=True):
        assert torch.equal(opt.posterior_variance(p), new.posterior_variance(q))
    for layer, its in ((model[0], later[0]), (model[2], later[2])):
        pair = opt.posterior_covariance(layer.weight), new.posterior_covariance(its.weight)
        assert all(map(torch.equal, *pair))
    train(later, new)
    assert {row.steps for row in new.report()} == {5}


def test_priors_of_another_structure_are_refused(tmp_path):
    pytest.importorskip("safetensors")
    path, model = tmp_path / "posterior.safetensors", mlp()
    opt = KroneckerFilter(model, bias="diagonal", **OPTIONS)
    filteropt.save_posterior(path, model, opt)
    later = mlp()
    with pytest.raises(ValueError, match=r"'0.weight' has another input_root there"):
        filteropt.load_prior(path, later, KroneckerFilter(later, **OPTIONS))
    bare = nn.Sequential(nn.Linear(3, 4, bias=False)).double()
    filteropt.save_posterior(path, bare, KroneckerFilter(bare, **OPTIONS))
    later = mlp()
    with pytest.raises(ValueError, match=r"'0.weight' is filtered with its bias, of which there"):
        filteropt.load_prior(path, later, KroneckerFilter(later, **OPTIONS), strict=False)


def test_convolutions_without_a_bias_are_saved_too(tmp_path):
    pytest.importorskip("safetensors")
    path, model = tmp_path / "posterior.safetensors", images()
    model[0].bias = None
    opt = KroneckerFilter(model, **OPTIONS)
    train(model, opt, batches((2, 4, 4)))
    assert opt.posterior_variance(model[0].weight).shape == model[0].weight.shape
    filteropt.save_posterior(path, model, opt)
    later = copy.deepcopy(model)
    new = KroneckerFilter(later, **OPTIONS)
    filteropt.load_prior(path, later, new)
    for p, q in zip(model.parameters(), later.parameters(), strict=True):
        assert torch.equal(opt.posterior_variance(p), new.posterior_variance(q))


def test_a_static_belief_counts_the_bias_as_an_input():
    """Two examples of a linear model, whose posterior is that of the appended inputs."""

    def make(batch_size=2.0):
        return Filter(Static(), LayerGradients(batch_size, None, joint=True),
                      Kronecker("reverse", 200, 1.0))  # fmt: skip

    model = filled(nn.Linear(1, 1))
    opt = FilterOptimizer(model.parameters(), make, model=model)
    x, y = torch.tensor([[1.0], [3.0]], **DOUBLE), torch.tensor([[0.5], [-1.0]], **DOUBLE)
    residual = (model(x) - y).detach()
    ((model(x) - y).square() / 2).mean().backward()
    opt.step()
    rows = residual * appended(x)
    precision = torch.eye(2, **DOUBLE) + rows.T @ rows
    found = torch.kron(*opt.posterior_covariance(model.weight))
    torch.testing.assert_close(found, precision.inverse(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["kronecker_natural_gradient", "kronecker_whitening"])
def test_the_steady_states_filter_other_parameters_weight_by_weight(name):
    """With ``structure="diagonal"`` a vector moves as under the same dynamics without layers."""
    preset, (x, y) = getattr(filteropt.presets, name), next(iter(batches()))
    layer = nn.Linear(3, 3, dtype=torch.float64)
    groups = [{"params": [layer.weight]}, {"params": [layer.bias], "structure": "diagonal"}]
    opt = FilterOptimizer(groups, preset, model=layer, batch_size=SIZE)
    alone = nn.Parameter(layer.bias.detach().clone())
    plain = preset(batch_size=SIZE, structure="diagonal")
    assert isinstance(plain.posterior, Diagonal)
    other = FilterOptimizer([alone], lambda: plain)
    for _ in range(3):
        opt.zero_grad()
        cross_entropy(layer(x), y).backward()
        alone.grad = layer.bias.grad.clone()
        opt.step()
        other.step()
    assert torch.equal(layer.bias, alone)
    assert [row.gathered for row in opt.report()] == ["rows: Linear", "gradient"]
