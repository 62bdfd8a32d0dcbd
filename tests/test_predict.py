"""The posterior predictive against closed forms; and everything is afterwards as it was before."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import filteropt
from filteropt import FilterOptimizer, predict, variant
from filteropt.approximations import Diagonal, FixedPoint
from filteropt.models import Static
from filteropt.predictive import Prediction
from filteropt.presets import adabayes, online_natural_gradient

KINDS = ("categorical", "bernoulli", "gaussian")


@pytest.fixture(autouse=True)
def float64():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(*, norm=False, dropout=0.0):
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(5)] if norm else []
    return nn.Sequential(nn.Linear(3, 5), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 4))


def inputs(n=6, seed=2):
    return torch.randn(n, 3, generator=seeded(seed))


def trained(model, opt, steps=3):
    for seed in range(steps):
        opt.zero_grad()
        model(inputs(seed=seed)).square().mean().backward()
        opt.step()
    opt.zero_grad()
    return opt


def believer(model, **kwargs):
    return trained(model, filteropt.AdaBayes(model.parameters(), lr=0.01, lr_sgd=0.05, **kwargs))


def bits(model, opt):
    """Everything that has to be left alone."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [x for s in opt.state.values() for x in s.values()]
    return [(x.data_ptr(), x.detach().clone()) for x in tensors], [
        (m.training, getattr(m, "momentum", None)) for m in model.modules()
    ]


@contextmanager
def leaves_alone(model, opt):
    (before, modes), grads = bits(model, opt), [p.grad for p in model.parameters()]
    try:
        yield
    finally:
        after, modes_after = bits(model, opt)
        assert modes == modes_after
        assert [p.grad for p in model.parameters()] == grads
        for (place, x), (place_after, y) in zip(before, after, strict=True):
            assert place == place_after
            assert torch.equal(x, y)


def one_by_one(model, opt, x, n, generator, **kwargs):
    """Outputs at draws taken as the documentation says."""
    model.eval()
    found = []
    with torch.no_grad():
        for _ in range(n):
            with opt.sampled_params(generator=generator, **kwargs):
                found.append(model(x))
    return torch.stack(found)


# Draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 2500, 2**28])  # one, three or all at a time
@pytest.mark.parametrize("n", [1, 2, 7])
def test_draws_are_those_of_sampled_params_one_after_the_other(n, memory):
    model = network()
    opt = believer(model)
    expected = one_by_one(model, opt, inputs(), n, seeded())
    found = predict(
        model, opt, inputs(), n, kind="gaussian", generator=seeded(), keep_samples=True,
        memory=memory,
    )  # fmt: skip
    torch.testing.assert_close(found.samples, expected, rtol=1e-12, atol=1e-12)


def test_the_generator_is_left_where_the_draws_leave_it():
    model, one, other = network(), seeded(), seeded()
    opt = believer(model)
    one_by_one(model, opt, inputs(), 5, one)
    predict(model, opt, inputs(), 5, kind="gaussian", generator=other)
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("kind", KINDS)
def test_loop_and_vmap_agree(kind):
    model = network()
    opt = believer(model)
    one, other = (
        predict(model, opt, inputs(), 9, kind=kind, generator=seeded(), keep_samples=True,
                memory=memory)
        for memory in (0, 2**28)
    )  # fmt: skip
    for name in ("mean", "variance", "epistemic", "noise", "entropy", "mutual_information"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.samples, other.samples, rtol=1e-12, atol=1e-12)


def test_memory_bounds_how_many_draws_are_looked_at_together():
    model, seen = network(), []
    opt = believer(model)
    model.register_forward_hook(lambda _m, _x, y: seen.append(y.dim()))
    weights = sum(p.numel() for p in model.parameters()) * 8
    largest = 6 * (5 + 5) * 8  # a Tanh's input and output, or Dropout's
    predict(model, opt, inputs(), 7, kind="gaussian", memory=3 * (weights + largest))
    assert len(seen) == 1 + 3  # the first on its own, then 3, 3 and 1
    seen.clear()
    predict(model, opt, inputs(), 7, kind="gaussian", memory=2 * (weights + largest) - 1)
    assert len(seen) == 7


# What is returned --------------------------------------------------------------------------------


def test_regression_is_that_of_the_linear_gaussian_model():
    """The exact predictive N(xμ, xΣxᵀ + r), within standard errors of a Monte Carlo average."""
    model, x, n, r = nn.Linear(3, 2), inputs(), 2_000, 0.3
    opt = believer(model)
    found = predict(model, opt, x, n, kind="gaussian", noise_variance=r, generator=seeded())
    mean = model(x).detach()
    weights, bias = opt.posterior_variance(model.weight), opt.posterior_variance(model.bias)
    epistemic = x.square() @ weights.mT + bias
    assert bool(((found.mean - mean).abs() < 5 * (epistemic / n).sqrt()).all())
    assert bool(((found.epistemic / epistemic - 1).abs() < 5 * (2 / n) ** 0.5).all())
    torch.testing.assert_close(found.noise, torch.full_like(mean, r))
    torch.testing.assert_close(found.variance, found.epistemic + r)
    exact = 0.5 * torch.log(2 * math.pi * math.e * found.variance)
    torch.testing.assert_close(found.entropy, exact)
    torch.testing.assert_close(found.mutual_information, 0.5 * torch.log(found.variance / r))


def test_one_logit_is_integrated_as_by_quadrature():
    model, x, n = nn.Linear(3, 1), inputs(), 2_000
    opt = filteropt.AdaBayes(model.parameters(), lr=0.01, lr_sgd=0.5)
    found = predict(model, opt, x, n, kind="bernoulli", generator=seeded())
    spread = x.square() @ opt.posterior_variance(model.weight).mT
    spread = spread + opt.posterior_variance(model.bias)
    z = torch.linspace(-9, 9, 4001)
    density = torch.exp(-z.square() / 2) / (2 * math.pi) ** 0.5 * (z[1] - z[0])
    chances = torch.sigmoid(model(x).detach() + spread.sqrt() * z)
    mean = (chances * density).sum(-1, keepdim=True)
    epistemic = ((chances - mean).square() * density).sum(-1, keepdim=True)
    assert bool(((found.mean - mean).abs() < 5 * (epistemic / n).sqrt()).all())
    assert bool(((found.epistemic / epistemic - 1).abs() < 0.2).all())
    noise = (chances * (1 - chances) * density).sum(-1, keepdim=True)
    torch.testing.assert_close(found.noise, noise, rtol=0.05, atol=0)


def test_categorical_moments_are_those_of_the_mixture():
    model = network()
    opt = believer(model)
    found = predict(
        model, opt, inputs(), 11, kind="categorical", generator=seeded(), keep_samples=True
    )
    chances = one_by_one(model, opt, inputs(), 11, seeded()).softmax(-1)
    mean = chances.mean(0)
    close = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(found.samples, chances, **close)
    torch.testing.assert_close(found.probabilities, mean, **close)
    torch.testing.assert_close(found.variance, mean * (1 - mean), **close)
    torch.testing.assert_close(found.epistemic, chances.var(0, correction=0), **close)
    entropy = -(mean * mean.log()).sum(-1)
    torch.testing.assert_close(found.entropy, entropy, **close)
    own = -(chances * chances.log()).sum(-1).mean(0)
    torch.testing.assert_close(found.mutual_information, entropy - own, **close)


def test_a_bernoulli_mixture_has_its_own_variance_and_entropy():
    model = network()
    opt = believer(model)
    found = predict(model, opt, inputs(), 8, kind="bernoulli", generator=seeded())
    p = found.probabilities
    torch.testing.assert_close(found.variance, p * (1 - p))
    torch.testing.assert_close(found.entropy, -(p * p.log() + (1 - p) * torch.log1p(-p)))
    assert found.mutual_information.shape == p.shape


def test_one_example_on_its_own():
    model, x = network(), inputs(1)
    opt = believer(model)
    one, other = (
        predict(model, opt, form, 3, kind="categorical", generator=seeded()) for form in (x[0], x)
    )
    torch.testing.assert_close(one.mean, other.mean[0])
    assert one.entropy.shape == ()


def test_classes_lie_where_cross_entropy_looks_for_them():
    model = nn.Conv2d(2, 3, 1)
    opt = filteropt.AdaBayes(model.parameters(), lr_sgd=0.1)
    found = predict(model, opt, torch.randn(4, 2, 5, 6), 3, kind="categorical")
    assert found.entropy.shape == (4, 5, 6)
    torch.testing.assert_close(found.mean.sum(1), torch.ones(4, 5, 6))


def test_noise_variance_may_differ_between_outputs():
    model, noise = network(), torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = predict(model, believer(model), inputs(), 4, kind="gaussian", noise_variance=noise)
    assert torch.equal(found.noise, noise.expand(6, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_are_the_outputs_or_float32(dtype):
    model = network().to(dtype)
    opt = filteropt.AdaBayes(model.parameters(), lr_sgd=0.05)
    for memory in (0, 2**28):
        found = predict(model, opt, inputs().to(dtype), 4, kind="categorical", memory=memory)
        assert found.mean.dtype == found.entropy.dtype == torch.float32


# The point estimate ------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"n_samples": 0}, {"temperature": 0.0}])
@pytest.mark.parametrize("linearize_at", ["posterior", "prediction"])
def test_the_point_estimate_is_at_the_posterior_mean(asked, linearize_at):
    model = network()
    opt = believer(model, linearize_at=linearize_at)
    opt.eval()
    expected = model(inputs()).detach()
    opt.train()
    with leaves_alone(model, opt):
        found = predict(model, opt, inputs(), kind="gaussian", **asked)
    assert torch.equal(found.mean, expected)
    assert not found.epistemic.any()
    if linearize_at == "prediction":
        assert not torch.equal(model(inputs()), expected)


def test_draws_are_about_the_posterior_mean_where_gradients_are_taken_at_the_prediction():
    model = network()
    opt = believer(model, linearize_at="prediction")
    with leaves_alone(model, opt):
        found = predict(model, opt, inputs(), 5, kind="gaussian", generator=seeded(),
                        keep_samples=True)  # fmt: skip
    opt.eval()
    expected = one_by_one(model, opt, inputs(), 5, seeded())
    torch.testing.assert_close(found.samples, expected, rtol=1e-12, atol=1e-12)


# Everything is as it was -------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 2**28])
@pytest.mark.parametrize("linearize_at", ["posterior", "prediction"])
def test_weights_modes_buffers_and_gradients_are_left_alone(memory, linearize_at):
    model = network(norm=True, dropout=0.5).train()
    opt = believer(model, linearize_at=linearize_at)
    model[3].eval()
    with leaves_alone(model, opt):
        found = predict(model, opt, inputs(), 4, kind="gaussian", memory=memory)
        predict(model, opt, inputs(), 4, kind="gaussian", memory=memory, batch_stats=inputs())
    assert not found.mean.requires_grad


class Breaks(nn.Module):
    """A network that raises in its n-th pass."""

    def __init__(self, at):
        super().__init__()
        self.inner, self.left = network(norm=True), at
        self.register_buffer("counted", torch.zeros(()))

    def forward(self, x):
        self.counted += 1
        self.left -= 1
        if self.left < 0:
            raise ArithmeticError("broken")
        return self.inner(x)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("batch_stats", [None, inputs])
@pytest.mark.parametrize("n", [0, 4])
def test_a_model_that_raises_is_left_alone_too(at, batch_stats, n):
    model = Breaks(10)
    opt = believer(model, linearize_at="prediction")
    model.left = at if n or (batch_stats and at < 2) else 0
    data = batch_stats and batch_stats()
    with leaves_alone(model, opt), pytest.raises(ArithmeticError):
        predict(model, opt, inputs(), n, kind="gaussian", memory=0, batch_stats=data)


def test_training_goes_on_as_if_nothing_had_been_asked():
    results = []
    for asked in (False, True):
        model = network(norm=True)
        opt = believer(model, linearize_at="prediction")
        if asked:
            predict(model, opt, inputs(), 3, kind="gaussian", generator=seeded())
        trained(model, opt)
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*results)


# BatchNorm ---------------------------------------------------------------------------------------


def test_statistics_are_those_of_each_draws_own_activations():
    model = network(norm=True, dropout=0.5)
    opt, data = believer(model), inputs(50, seed=9)
    batches = [[part, torch.zeros(25)] for part in data.split(25)]  # as a DataLoader gives them
    found = predict(
        model, opt, inputs(), 4, kind="gaussian", generator=seeded(), keep_samples=True,
        batch_stats=batches,
    )  # fmt: skip
    generator, expected = seeded(), []
    for _ in range(4):
        with opt.sampled_params(generator=generator), torch.no_grad():
            hidden = [model[0](part) for part in data.split(25)]
            mean = sum(h.mean(0) for h in hidden) / 2
            var = sum(h.var(0) for h in hidden) / 2
            normed = (model[0](inputs()) - mean) / (var + model[1].eps).sqrt()
            expected.append(model[4](torch.tanh(normed * model[1].weight + model[1].bias)))
    torch.testing.assert_close(found.samples, torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_batches_may_be_any_form_of_input_and_need_no_batchnorm():
    model = network(norm=True)
    opt, data = believer(model), inputs(20)
    forms = [data, (data,), {"input": data}, [data], [(data,)], [{"input": data}]]
    found = [
        predict(model, opt, inputs(), 3, kind="gaussian", generator=seeded(), batch_stats=form).mean
        for form in forms
    ]
    assert all(torch.equal(found[0], other) for other in found)
    plain = network()
    predict(plain, believer(plain), inputs(), 3, kind="gaussian", batch_stats=data)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "no batches"),
        (iter([inputs()]), TypeError, "list_iterator cannot be"),
        (["x"], TypeError, "not str"),
    ],
)
def test_unusable_batches_are_refused(data, error, message):
    model = network(norm=True)
    opt = believer(model)
    with leaves_alone(model, opt), pytest.raises(error, match=message):
        predict(model, opt, inputs(), 3, kind="gaussian", batch_stats=data)


# Models ------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x, scale):
        return self.linear(x) * scale


def test_inputs_may_be_a_tuple_or_a_dict():
    model = TwoInputs()
    opt = filteropt.AdaBayes(model.parameters(), lr_sgd=0.1)
    x, scale = inputs(), torch.tensor(2.0)
    one, other = (
        predict(model, opt, form, 3, kind="gaussian", generator=seeded()).mean
        for form in ((x, scale), {"scale": scale, "x": x})
    )
    assert torch.equal(one, other)


class Branches(nn.Module):
    """Branches on a value, which vmap does not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        y = self.linear(x)
        return y if y.sum() > -1e9 else -y


class Stale(nn.Module):
    """Keeps a copy of its weights, which torch.func does not replace."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.aliases = [self.linear.weight]

    def forward(self, x):
        return x @ self.aliases[0].mT


@pytest.mark.parametrize(
    ("cls", "why"), [(Branches, "data-dependent|vmap"), (Stale, "is not what the model says")]
)
def test_models_that_vmap_does_not_run_are_looped_over_and_said_so_once(cls, why):
    model = cls()
    opt = believer(model, linearize_at="prediction")
    with leaves_alone(model, opt), pytest.warns(UserWarning, match=why) as caught:
        found = predict(
            model, opt, inputs(), 5, kind="gaussian", generator=seeded(), keep_samples=True
        )
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(model, opt, inputs(), 5, kind="gaussian")
    opt.eval()
    expected = one_by_one(model, opt, inputs(), 5, seeded())
    torch.testing.assert_close(found.samples, expected, rtol=1e-12, atol=1e-12)


def test_a_flat_model_and_shared_weights():
    model = filteropt.Flat(network())
    opt = filteropt.AdaBayes(model.parameters(), lr_sgd=0.05)
    expected = one_by_one(model, opt, inputs(), 4, seeded())
    found = predict(model, opt, inputs(), 4, kind="gaussian", generator=seeded(), keep_samples=True)
    torch.testing.assert_close(found.samples, expected, rtol=1e-12, atol=1e-12)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    opt = filteropt.AdaBayes(tied.parameters(), lr_sgd=0.05)
    expected = one_by_one(tied, opt, inputs(), 4, seeded())
    found = predict(tied, opt, inputs(), 4, kind="gaussian", generator=seeded(), keep_samples=True)
    torch.testing.assert_close(found.samples, expected, rtol=1e-12, atol=1e-12)


def test_parameters_of_others_and_frozen_ones_stay_at_their_means():
    model = network()
    model[0].weight.requires_grad_(False)
    opt = filteropt.AdaBayes(
        [{"params": model[0].parameters()}, {"params": [model[3].weight], "lr": 0.0}], lr_sgd=0.05
    )
    found = predict(model, opt, inputs(), 4, kind="gaussian", generator=seeded(), keep_samples=True)
    expected = one_by_one(model, opt, inputs(), 4, seeded())
    torch.testing.assert_close(found.samples, expected, rtol=1e-12, atol=1e-12)
    assert bool(found.epistemic.any())


@pytest.mark.parametrize(
    "filters",
    [
        variant(adabayes, posterior=FixedPoint("exact"),
                likelihood=filteropt.approximations.AveragedSquaredGradient()),
        variant(online_natural_gradient, dynamics=Static(), posterior=Diagonal(1e-2)),
    ],
)  # fmt: skip
def test_other_posteriors(filters):
    model = network()
    opt = trained(model, FilterOptimizer(model.parameters(), filters))
    expected = one_by_one(model, opt, inputs(), 4, seeded())
    found = predict(model, opt, inputs(), 4, kind="gaussian", generator=seeded(), keep_samples=True)
    torch.testing.assert_close(found.samples, expected, rtol=1e-12, atol=1e-12)


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_samples": -1}, ValueError, "n_samples=-1 must be a whole number"),
        ({"n_samples": 2.0}, ValueError, "n_samples=2.0 must be a whole number"),
        ({"kind": "poisson"}, ValueError, "kind='poisson' is not allowed"),
        ({"temperature": -1.0}, ValueError, "temperature=-1.0"),
        ({"memory": -1}, ValueError, "memory=-1"),
        ({"noise_variance": 0.0}, ValueError, "noise_variance=0.0"),
        ({"noise_variance": torch.zeros(4)}, ValueError, "noise_variance must be in"),
        ({"x": []}, TypeError, "not list"),
        ({"model": "net"}, TypeError, "must be a torch.nn.Module"),
        ({"model": TwoInputs}, ValueError, "none of the optimizer's parameters is TwoInputs's"),
    ],
)
def test_arguments_are_checked(change, error, message):
    model = network()
    opt = filteropt.AdaBayes(model.parameters())
    arguments = {"model": model, "x": inputs(), "n_samples": 2, "kind": "gaussian", **change}
    if arguments["model"] is TwoInputs:
        arguments["model"] = TwoInputs()
    with pytest.raises(error, match=message):
        predict(arguments.pop("model"), opt, **arguments)


def test_other_optimizers_and_outputs_are_refused():
    model = network()
    with pytest.raises(TypeError, match="opt is Adam, which believes nothing"):
        predict(model, torch.optim.Adam(model.parameters()), inputs(), kind="gaussian")
    single = nn.Linear(3, 1)
    opt = filteropt.AdaBayes(single.parameters())
    with pytest.raises(ValueError, match=r"shape \(6, 1\) are no logits of two or more"):
        predict(single, opt, inputs(), 2, kind="categorical")
    lstm = nn.LSTM(3, 4)
    opt = filteropt.AdaBayes(lstm.parameters())
    with pytest.raises(TypeError, match="LSTM returned tuple"):
        predict(lstm, opt, inputs(), 2, kind="gaussian")


@pytest.mark.parametrize("n", [0, 2])
def test_it_is_not_asked_inside_of_a_draw(n):
    model = network()
    opt = believer(model)
    with opt.sampled_params(), pytest.raises(RuntimeError, match="hold a draw"):
        predict(model, opt, inputs(), n, kind="gaussian")


def test_a_regression_has_no_probabilities():
    x = torch.zeros(1)
    with pytest.raises(AttributeError, match="no probabilities"):
        _ = Prediction("gaussian", x, x, x, x, x, x).probabilities


@pytest.mark.parametrize(("outputs", "kind"), [(3, "categorical"), (1, "gaussian")])
def test_without_a_word_several_outputs_are_logits_and_one_is_a_mean(outputs, kind):
    torch.manual_seed(0)
    model, x = nn.Linear(2, outputs).double(), torch.randn(4, 2, dtype=torch.float64)
    opt = filteropt.AdaBayes(model.parameters())
    said, told = (
        filteropt.predict(model, opt, x, 3, kind=k, generator=torch.Generator().manual_seed(1))
        for k in (None, kind)
    )
    assert said.kind == kind
    assert torch.equal(said.mean, told.mean)
    assert torch.equal(said.variance, told.variance)
