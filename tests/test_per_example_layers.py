"""Squared gradients of single examples, layer by layer: a new layer is one row."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from filteropt.approximations import PerExample
from filteropt.gathering.example_squares import ExampleSquares
from filteropt.gathering.layers import KINDS, kind_of
from filteropt.gathering.ledger import Ledger

N = 5  # examples

pytestmark = [  # torch's own remarks about speed
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


def tokens(*shape):
    return lambda: torch.randint(0, 6, (N, *shape))


def real(*shape):
    return lambda: torch.randn(N, *shape)


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), real(4)),
    "linear, no bias": (lambda: nn.Linear(4, 3, bias=False), real(4)),
    "linear, one time": (lambda: nn.Linear(4, 3), real(1, 4)),
    "linear, times": (lambda: nn.Linear(4, 3), real(6, 4)),
    "linear, places": (lambda: nn.Linear(4, 3), real(2, 3, 4)),
    "linear, no times": (lambda: nn.Linear(4, 3), real(0, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), real(4, 9)),
    "conv1d, everything": (
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=3, dilation=2, groups=2),
        real(4, 9),
    ),
    "conv1d, same": (lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=3), real(4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3), real(3, 6, 7)),
    "conv2d, no bias": (lambda: nn.Conv2d(3, 4, (1, 2), bias=False), real(3, 6, 7)),
    "conv2d, stride": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 3)), real(3, 6, 7)),
    "conv2d, padding": (lambda: nn.Conv2d(3, 4, 3, padding=(2, 1)), real(3, 6, 7)),
    "conv2d, valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), real(3, 6, 7)),
    "conv2d, same": (lambda: nn.Conv2d(3, 4, (2, 3), padding="same"), real(3, 6, 7)),
    "conv2d, dilation": (lambda: nn.Conv2d(3, 4, 2, dilation=(3, 2)), real(3, 6, 7)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), real(4, 6, 7)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), real(4, 6, 7)),
    "conv2d, reflect": (
        lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"),
        real(3, 6, 7),
    ),
    "conv2d, replicate": (
        lambda: nn.Conv2d(3, 4, 4, padding="same", padding_mode="replicate"),
        real(3, 6, 7),
    ),
    "conv2d, circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular", stride=2),
        real(3, 6, 7),
    ),
    "conv2d, channels last": (
        lambda: nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last),
        lambda: torch.randn(N, 3, 6, 7).to(memory_format=torch.channels_last),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), real(2, 4, 3, 5)),
    "conv3d, everything": (
        lambda: nn.Conv3d(
            *(2, 4, (2, 1, 3)), stride=(1, 2, 2), padding=(1, 0, 2), dilation=(2, 1, 1), groups=2
        ),
        real(2, 4, 3, 5),
    ),
    "embedding": (lambda: nn.Embedding(6, 3), tokens()),
    "embedding, sequences": (lambda: nn.Embedding(6, 3), tokens(7)),
    "embedding, grids": (lambda: nn.Embedding(6, 3), tokens(2, 4)),
    "embedding, padding": (lambda: nn.Embedding(6, 3, padding_idx=2), tokens(7)),
    "embedding, last is padding": (lambda: nn.Embedding(6, 3, padding_idx=-1), tokens()),
    "layer norm": (lambda: nn.LayerNorm(4), real(4)),
    "layer norm, times": (lambda: nn.LayerNorm(4, eps=0.1), real(3, 4)),
    "layer norm, of two": (lambda: nn.LayerNorm((3, 4)), real(2, 3, 4)),
    "layer norm, no bias": (lambda: nn.LayerNorm(4, bias=False), real(4)),
    "rms norm": (lambda: nn.RMSNorm(4), real(4)),
    "rms norm, times": (lambda: nn.RMSNorm((3, 4), eps=0.1), real(2, 3, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=0.1), real(4, 3, 2)),
    "group norm, no places": (lambda: nn.GroupNorm(2, 4), real(4)),
    "batch norm 1d, eval": (lambda: nn.BatchNorm1d(4).eval(), real(4)),
    "batch norm 1d, eval, times": (lambda: nn.BatchNorm1d(4).eval(), real(4, 3)),
    "batch norm 2d, eval": (lambda: nn.BatchNorm2d(4, eps=0.1).eval(), real(4, 3, 2)),
    "batch norm 3d, eval": (lambda: nn.BatchNorm3d(2).eval(), real(2, 3, 2, 2)),
    "instance norm 1d": (lambda: nn.InstanceNorm1d(4, affine=True), real(4, 3)),
    "instance norm 2d": (lambda: nn.InstanceNorm2d(4, affine=True, eps=0.1), real(4, 3, 2)),
    "instance norm 3d": (lambda: nn.InstanceNorm3d(2, affine=True), real(2, 3, 2, 2)),
    "instance norm, statistics": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        real(4, 3, 2),
    ),
    "instance norm, statistics, eval": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval(),
        real(4, 3, 2),
    ),
}

MIXING = {
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), real(4)),
    "batch norm 1d, times": (lambda: nn.BatchNorm1d(4), real(4, 3)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(4, eps=0.1), real(4, 3, 2)),
    "batch norm 3d": (lambda: nn.BatchNorm3d(2), real(2, 3, 2, 2)),
    "batch norm without statistics, eval": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False).eval(),
        real(4, 3, 2),
    ),
}


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(row):
    """A layer with no parameter or statistic at its default, and an input."""
    make, inputs = row
    layer = make()
    for tensor in [*layer.parameters(), *layer.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5
    return layer, inputs()


def loss_of(output):
    """A sum of one term per example, of which no two are alike."""
    weights = torch.linspace(1, 2, output.numel()).reshape(output.shape)
    return (weights * output).sin().sum()


def gather(model, loss, likelihood=None):
    """Each parameter's squares by name, and how they were found."""
    likelihood, ledger = likelihood or PerExample(), Ledger()
    squares = ExampleSquares(model, ledger)
    squares.require(list(model.parameters()), likelihood)
    loss().backward()
    found = squares.look([p for p in model.parameters() if p.grad is not None], likelihood)
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: fields["squares"] for p, fields in found.items()}, squares.coverage


def one_by_one(model, x):
    """The same by one backward pass per example."""
    model = copy.deepcopy(model)
    weights = torch.linspace(1, 2, model(x).numel()).reshape(model(x).shape)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(x)):
        model.zero_grad()
        (weights[i] * model(x[i : i + 1])[0]).sin().sum().backward()
        for name, p in model.named_parameters():
            total[name] += p.grad.square()
    return total


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS.keys())
def test_squares_are_those_of_one_backward_pass_per_example(row):
    layer, x = made(row)
    expected = one_by_one(layer, x)
    found, coverage = gather(layer, lambda: loss_of(layer(x)))
    same(found, expected)
    assert set(coverage.values()) == {f"hooks: {type(layer).__name__}"}


@pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS.keys())
def test_uses_add_up_before_they_are_squared(row):
    """The same layer twice in one pass, on different inputs."""
    layer, x = made(row)

    (keyword,) = inspect.signature(layer.forward).parameters

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            other = (x + 1) % 6 if x.dtype == torch.int64 else x.exp()
            return self.layer(x) + 2 * self.layer(**{keyword: other})

    expected = one_by_one(Twice(), x)
    found, _ = gather(model := Twice(), lambda: loss_of(model(x)))
    same(found, expected)


@pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS.keys())
def test_memory_changes_nothing(row):
    layer, x = made(row)
    expected = one_by_one(layer, x)
    found, _ = gather(layer, lambda: loss_of(layer(x)), PerExample(memory=1000))
    same(found, expected)


BOTH = {name: row for name, row in LAYERS.items() if len(list(row[0]().parameters())) == 2}


@pytest.mark.parametrize("row", BOTH.values(), ids=BOTH.keys())
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_frozen_parameters_do_not_disturb_others(row, frozen):
    layer, x = made(row)
    expected = one_by_one(layer, x)
    getattr(layer, frozen).requires_grad_(False)
    found, _ = gather(layer, lambda: loss_of(layer(x)))
    (other,) = {"weight", "bias"} - {frozen}
    same(found, {other: expected[other]})


@pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS.keys())
def test_batches_of_one_and_of_none(row):
    layer, x = made(row)
    expected = one_by_one(layer, x[:1])
    found, _ = gather(layer, lambda: loss_of(layer(x[:1])))
    same(found, expected)
    layer.zero_grad()
    try:
        layer(x[:0])
    except (ValueError, RuntimeError, IndexError):
        return  # torch itself has none
    found, _ = gather(layer, lambda: loss_of(layer(x[:0])))
    same(found, {name: torch.zeros_like(p) for name, p in layer.named_parameters()})


@pytest.mark.parametrize("row", MIXING.values(), ids=MIXING.keys())
def test_mixing_layers_are_looked_at_given_the_batchs_statistics(row):
    """As if every example had a scale and shift of its own."""
    layer, x = made(row)
    rest = [0, *range(2, x.dim())]
    shape = (N, x.shape[1], *[1] * (x.dim() - 2))
    mean, var = x.mean(rest, keepdim=True), x.var(rest, unbiased=False, keepdim=True)
    own = {
        name: p.detach().reshape(1, -1, *shape[2:]).expand(shape).clone().requires_grad_()
        for name, p in layer.named_parameters()
    }
    loss_of((x - mean) / (var + layer.eps).sqrt() * own["weight"] + own["bias"]).backward()
    expected = {name: p.grad.square().sum(0).flatten() for name, p in own.items()}
    found, _ = gather(layer, lambda: loss_of(layer(x)))
    same(found, expected)


@pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_squared_in_single(row, dtype):
    layer, x = made(row)
    layer, x = layer.to(dtype), x.to(dtype) if x.is_floating_point() else x
    reference = copy.deepcopy(layer).double()
    found, coverage = gather(layer, lambda: loss_of(layer(x).float()))
    expected = one_by_one(reference, x.double() if x.is_floating_point() else x)
    for name, squares in found.items():
        assert squares.dtype == torch.float32
        error = (squares.double() - expected[name]).norm() / expected[name].norm().clamp_min(1e-9)
        assert error < 0.1
    assert set(coverage.values()) == {f"hooks: {type(layer).__name__}"}


def test_every_kind_is_in_the_table():
    seen = {type(made(row)[0]).forward for row in [*LAYERS.values(), *MIXING.values()]}
    assert seen == set(KINDS)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Named(nn.Linear):
    """A subclass that changes nothing."""


def test_only_known_forwards_are_covered():
    assert kind_of(Named(2, 2)) is not None
    assert kind_of(Doubled(2, 2)) is None
    patched = nn.Linear(2, 2)
    patched.forward = lambda x: 2 * nn.Linear.forward(patched, x)
    assert kind_of(patched) is None
    assert kind_of(nn.Embedding(2, 2, scale_grad_by_freq=True)) is None
    assert kind_of(nn.LSTM(2, 2)) is None


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: Doubled(4, 3), real(4)),
        (lambda: nn.ConvTranspose2d(2, 3, 2), real(2, 4, 3)),
        (lambda: nn.PReLU(4), real(4, 3)),
        (lambda: nn.Sequential(nn.Linear(4, 3), weight_norm(nn.Linear(3, 2))), real(4)),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), real(3, 4)),
    ],
    ids=["subclass", "transposed", "prelu", "parametrized", "attention"],
)  # fmt: skip
@pytest.mark.parametrize("memory", [1.0, 2000.0, 2**28])
def test_other_layers_are_looked_at_one_example_at_a_time(make, x, memory):
    model, x = make(), x()
    expected = one_by_one(model, x)
    found, coverage = gather(model, lambda: loss_of(model(x)), PerExample(memory=memory))
    same(found, expected)
    assert "torch.func" in coverage.values()


def test_rules_are_pure():
    """No rule changes what it is given."""
    for row in LAYERS.values():
        layer, x = made(row)
        kind, delta = kind_of(layer), torch.randn_like(layer(x)).detach()
        before = x.clone(), delta.clone(), {n: p.clone() for n, p in layer.state_dict().items()}
        for name, rule in kind.rules.items():
            if getattr(layer, name, None) is not None:
                seen = kind.prepare(layer, x, layer.training) if name == "weight" else x
                for function in (rule.grads, rule.total):
                    if function is not None:
                        function(layer, seen, delta)
                if rule.squares is not None:
                    rule.squares(layer, seen, delta, None)
        assert torch.equal(x, before[0])
        assert torch.equal(delta, before[1])
        assert all(torch.equal(p, before[2][n]) for n, p in layer.state_dict().items())


def test_the_oracle_itself_by_functional_calls():
    model, x = made(LAYERS["linear"])
    weights = torch.linspace(1, 2, 3 * N).reshape(N, 3)

    def loss(p, x, c):
        return (c * functional_call(model, p, (x[None],))[0]).sin().sum()

    params = {n: p.detach() for n, p in model.named_parameters()}
    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, weights)
    same(one_by_one(model, x), {n: g.square().sum(0) for n, g in grads.items()})
