"""Rows of layers, kind by kind, against the Jacobian of every output by every weight."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from filteropt.gathering.layer_rows import LIMIT, MATRICES, matrix_of, rows_of
from filteropt.gathering.layer_uses import Use
from filteropt.gathering.layers import kind_of
from filteropt.gathering.sub_sample import positions
from tests.layer_rows import (
    Asks,
    by_place,
    curvature,
    look,
    loss_of,
    output_grad,
    sum_of_products,
    watch,
)
from tests.test_per_example_layers import LAYERS, N, made, one_by_one, real, tokens

pytestmark = [  # torch's own remarks about speed
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]

MATRIX = {
    **{name: row for name, row in LAYERS.items() if matrix_of(row[0]()) is not None},
    "conv2d, groups and stride": (
        lambda: nn.Conv2d(6, 9, (2, 3), stride=(2, 1), groups=3, padding=1, bias=False),
        real(6, 5, 4),
    ),
    "conv3d, circular": (
        lambda: nn.Conv3d(2, 3, 2, padding=(1, 0, 1), padding_mode="circular"),
        real(2, 2, 3, 2),
    ),
    "embedding, padded sequences": (lambda: nn.Embedding(6, 3, padding_idx=0), tokens(2, 5)),
}
ALL = pytest.mark.parametrize("row", MATRIX.values(), ids=MATRIX.keys())
BOTH = pytest.mark.parametrize("sharing", ["expand", "reduce"])


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def gathered(layer, x, part=None):
    """What a backward pass through a layer alone tells."""
    watcher = watch(layer, part)
    loss_of(layer(x)).backward()
    return look(watcher, part)["weight"]


def explicit(layer, x):
    """Inputs and gradients of all places, ``(examples, places, groups, …)``, by Jacobians.

    The inputs are the derivative of one output of the place, and of the group, by the weights
    that it depends on.
    """
    table = isinstance(layer, nn.Embedding)
    channels = 1 if hasattr(layer, "kernel_size") else -1
    jacobian = by_place(layer, x, channels)
    delta = output_grad(layer, x)
    delta = delta.movedim(channels, 0).reshape(len(jacobian), len(x), -1)
    if table:
        one_hot = jacobian[0, ..., 0].unsqueeze(2)  # by the tokens' first features
        return delta.permute(1, 2, 0).unsqueeze(2), one_hot, jacobian, delta
    groups = getattr(layer, "groups", 1)
    each = len(jacobian) // groups
    inputs = torch.stack([jacobian[g * each, :, :, g * each].flatten(2) for g in range(groups)], 2)
    deltas = torch.zeros(len(x), delta.shape[-1], groups, len(jacobian))
    for g in range(groups):
        some = slice(g * each, (g + 1) * each)
        deltas[:, :, g, some] = delta[some].permute(1, 2, 0)
    return inputs, deltas, jacobian, delta


def grads_of(layer, jacobian, delta):
    """Every place's gradients, and of every group apart: ``(rows, numbers in the weight)``."""
    groups = getattr(layer, "groups", 1)
    terms = torch.einsum("oes,oes...->oes...", delta, jacobian).unflatten(0, (groups, -1))
    return terms.sum(1).flatten(0, 2).flatten(1)


@ALL
def test_outer_products_are_those_of_explicit_jacobians(row):
    layer, x = made(row)
    _, _, jacobian, delta = explicit(layer, x)
    found = gathered(layer, x)
    grads = grads_of(layer, jacobian, delta)
    assert len(found.inputs) == len(found.deltas) == len(grads)
    near(curvature(found), grads.mT @ grads)
    near(sum_of_products(found), layer.weight.grad.flatten(1))


@ALL
def test_rows_of_one_place_per_example_are_exact(row):
    """Then the sum is that of the examples' own gradients, but for groups."""
    layer, x = made(row)
    found = gathered(layer, x)
    if len(found.inputs) != len(x):
        assert getattr(layer, "groups", 1) > 1 or output_grad(layer, x)[0].numel() != len(
            layer.weight
        )
        return
    squares = one_by_one(layer, x)["weight"].flatten()
    near(curvature(found).diagonal(), squares)


@ALL
def test_reduced_rows_are_averaged_inputs_and_summed_gradients(row):
    layer, x = made(row)
    inputs, deltas, *_ = explicit(layer, x)
    found = gathered(layer, x, Asks(sharing="reduce"))
    if isinstance(layer, nn.Embedding):  # what is averaged there is the token, but for padding
        real = deltas.sum(-1, keepdim=True)
        if layer.padding_idx is not None:
            assert layer.padding_idx not in x or float(real.min()) == 0
        mean = (deltas.sum(1) / real.sum(1).clamp_min(1)).flatten(0, 1)
        total = (inputs * real).sum(1).flatten(0, 1)
        near(found.inputs, total)
        near(found.deltas, mean)
        return
    places = max(1, inputs.shape[1])
    near(found.inputs, inputs.sum(1).flatten(0, 1) / places)
    near(found.deltas, deltas.sum(1).flatten(0, 1))


def used(layer, x):
    """A use as the watcher hands it on."""
    return Use(kind_of(layer).rules["weight"], layer, x, output_grad(layer, x))


@ALL
@BOTH
@pytest.mark.parametrize("limit", [1, 3, 10**6])
def test_sub_samples_are_some_of_all_rows(row, sharing, limit):
    layer, x = made(row)
    use = used(layer, x)
    every, none = rows_of([use], sharing, None, 0, None)
    total = len(every.inputs)
    found, kept = rows_of([use], sharing, limit, 7, None)
    assert none == 0
    if total <= limit:
        assert kept == 0
        assert torch.equal(found.inputs, every.inputs)
        assert torch.equal(found.deltas, every.deltas)
        return
    where = positions(total, limit, 7)
    assert kept == limit == len(found.inputs)
    near(found.inputs, every.inputs[where])
    near(found.deltas, every.deltas[where] * math.sqrt(total / limit))


@pytest.mark.parametrize("name", ["linear, times", "conv1d, everything", "embedding, padding"])
@BOTH
def test_sub_samples_tell_the_same_curvature_on_average(name, sharing):
    layer, x = made(MATRIX[name])
    uses = [used(layer, x), used(layer, (x + 1) % 6 if x.dtype == torch.int64 else x.exp())]
    every, _ = rows_of(uses, sharing, None, 0, None)
    total, expected = len(every.inputs), curvature(every)
    limit, some = total // 3, []
    for start in range(0, total * limit, limit):
        found, kept = rows_of(uses, sharing, limit, start, None)
        assert kept == limit
        some.append(curvature(found))
    near(sum(some) / len(some), expected)
    assert not torch.allclose(some[0], expected, rtol=1e-2)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 12, 64, 210, 1000])
def test_positions_are_spread_and_come_round(total):
    for kept in {1, max(1, total // 10), max(1, total // 3), total}:
        counts = torch.zeros(total, dtype=torch.long)
        for start in range(0, total * kept, kept):
            where = positions(total, kept, start)
            assert len(set(where.tolist())) == kept
            counts[where] += 1
        assert set(counts.tolist()) == {kept}
        gaps = torch.diff(where.sort().values, append=where.min()[None] + total)
        assert int(gaps.max()) <= math.ceil(2 * total / kept)


@ALL
@BOTH
@pytest.mark.parametrize("limit", [None, 3])
def test_biases_see_a_one(row, sharing, limit):
    layer, x = made(row)
    found = gathered(layer, x, Asks(sharing, limit, joint=True))
    columns = layer.weight.flatten(1).shape[1]
    if getattr(layer, "bias", None) is None:
        assert found.inputs.shape[1] == columns
        return
    assert found.inputs.shape[1] == columns + 1
    assert bool((found.inputs[:, -1] == 1).all())
    if limit is None:
        near(sum_of_products(found)[:, -1], layer.bias.grad)


@ALL
def test_rows_of_all_uses_are_put_together(row):
    layer, x = made(row)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            other = (x + 1) % 6 if x.dtype == torch.int64 else x.exp()
            return torch.stack([self.layer(x), self.layer(other)], 1)

    model = Twice()
    delta = output_grad(model, x)
    watcher = watch(model)
    loss_of(model(x)).backward()
    found = look(watcher)["layer.weight"]
    other = (x + 1) % 6 if x.dtype == torch.int64 else x.exp()
    expected = []
    for one, back in ((x, delta[:, 0]), (other, delta[:, 1])):
        use = used(layer, one)._replace(delta=back)
        expected.append(rows_of([use], "expand", None, 0, None)[0])
    near(curvature(found), curvature(expected[0]) + curvature(expected[1]))
    near(sum_of_products(found), layer.weight.grad.flatten(1))


@ALL
@BOTH
def test_batches_of_one_and_of_none(row, sharing):
    layer, x = made(row)
    inputs, deltas, *_ = explicit(layer, x[:1])
    found = gathered(layer, x[:1], Asks(sharing))
    assert len(found.inputs) == inputs.shape[1 if sharing == "expand" else 0] * inputs.shape[2]
    layer.zero_grad()
    try:
        layer(x[:0])
    except (ValueError, RuntimeError, IndexError):
        return  # torch itself has none
    found = gathered(layer, x[:0], Asks(sharing))
    assert found.inputs.shape == (0, inputs.shape[-1])
    assert found.deltas.shape == (0, deltas.shape[-1])


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_gathered_in_single(row, dtype):
    layer, x = made(row)
    expected = gathered(copy.deepcopy(layer), x)
    layer, x = layer.to(dtype), x.to(dtype) if x.is_floating_point() else x
    watcher = watch(layer)
    loss_of(layer(x).double()).backward()
    found = look(watcher)["weight"]
    assert found.inputs.dtype == found.deltas.dtype == torch.float32
    found, expected = curvature(found).double(), curvature(expected)
    assert (found - expected).norm() <= 0.2 * expected.norm() + 1e-9


@pytest.mark.parametrize("x", [torch.ones(4), torch.ones(3, 6, 7), torch.tensor(2)])
def test_inputs_without_examples(x):
    made_of = {1: nn.Linear(4, 3), 3: nn.Conv2d(3, 4, 3), 0: nn.Embedding(6, 3)}
    layer = made_of[x.dim()]
    x = x.double() if x.is_floating_point() else x
    found = gathered(layer, x)
    near(sum_of_products(found), layer.weight.grad.flatten(1))


class Largest(TorchDispatchMode):
    """Notes the largest tensor that was made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, torch.Tensor):
                made = x.untyped_storage().nbytes() // x.element_size()
                self.numel = max(self.numel, made)
        return result


@BOTH
def test_windows_of_a_sub_sample_alone_are_formed(sharing):
    layer, x = nn.Conv2d(4, 5, 5, padding=2), torch.randn(6, 4, 12, 12)
    use = used(layer, x)
    with Largest() as whole:
        rows_of([use], "expand", None, 0, None)
    with Largest() as some:
        rows_of([use], sharing, 9, 0, None)
    padded = 6 * 4 * 16 * 16
    assert whole.numel == 6 * 12 * 12 * 100
    assert some.numel <= padded


def test_rows_share_no_memory_with_the_model():
    layer, x = nn.Linear(4, 3), torch.randn(N, 4)
    found = gathered(layer, x)
    before = found.inputs.clone()
    x.zero_()
    assert torch.equal(found.inputs, before)


def test_every_kind_is_in_the_table():
    assert {type(made(row)[0]).forward for row in MATRIX.values()} == set(MATRICES)


def test_only_matrices_of_a_bearable_size_are_covered():
    assert matrix_of(nn.Embedding(LIMIT, 2)) is not None
    assert matrix_of(nn.Embedding(LIMIT + 1, 2)) is None
    assert matrix_of(nn.Embedding(4, 2, scale_grad_by_freq=True)) is None
    assert matrix_of(nn.LayerNorm((2, 3))) is None
    assert matrix_of(nn.LSTM(2, 2)) is None
    assert matrix_of(nn.Bilinear(2, 2, 2)) is None
