"""A model's weights in one tensor: the same model."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import filteropt


class Tied(nn.Module):
    """Two layers that share one weight, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) + self.shift


def build(kind):
    torch.manual_seed(0)
    if kind == "tied":
        return Tied().double()
    if kind == "convolution":
        layers = nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 3)
        return nn.Sequential(*layers).double()
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def inputs(kind):
    shape = (6, 1, 4, 4) if kind == "convolution" else (6, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()


KINDS = ["mlp", "convolution", "tied"]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_models(kind):
    model, x = build(kind), inputs(kind)
    flat = filteropt.Flat(copy.deepcopy(model))
    outputs, expected = flat(x), model(x)
    assert torch.equal(outputs, expected)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    reference = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(flat.flat.grad, reference, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_the_weights_by_name(kind):
    model = build(kind)
    flat = filteropt.Flat(copy.deepcopy(model))
    assert [name for name, _ in flat.named_parameters()] == ["flat"]
    assert flat.flat.numel() == sum(p.numel() for p in model.parameters())
    views = flat.views()
    assert list(views) == [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        assert torch.equal(views[name], p)
        assert views[name].data_ptr() >= flat.flat.data_ptr()
    with torch.no_grad():
        flat.flat.zero_()
    assert not any(view.any() for view in flat.views().values())


@pytest.mark.parametrize("kind", KINDS)
def test_unflatten_gives_the_trained_model_back(kind):
    model, x = build(kind), inputs(kind)
    names = [name for name, _ in model.named_parameters()]
    flat = filteropt.Flat(model)
    with torch.no_grad():
        flat.flat.add_(0.1)
    expected = flat(x)
    restored = flat.unflatten()
    assert restored is model
    assert [name for name, _ in restored.named_parameters()] == names
    assert torch.equal(restored(x), expected)
    if kind == "tied":
        assert restored.first.weight is restored.second.weight


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda flat: pickle.loads(pickle.dumps(flat))])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_independent_models(kind, copied):
    flat, x = filteropt.Flat(build(kind)), inputs(kind)
    other = copied(flat)
    before = flat(x)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        other.flat.mul_(2)
    assert torch.equal(flat(x), before)
    assert not torch.equal(other(x), before)
    assert not torch.equal(other.unflatten()(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_brings_weights_and_buffers_back(kind):
    flat, other, x = filteropt.Flat(build(kind)), filteropt.Flat(build(kind)), inputs(kind)
    with torch.no_grad():
        flat.flat.normal_()
        for buffer in flat.buffers():
            buffer.add_(1)
    other.load_state_dict(flat.state_dict())
    assert torch.equal(other(x), flat(x))


def test_modes_and_dtypes_reach_the_layers():
    flat = filteropt.Flat(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))
    x = torch.ones(4, 3)
    assert torch.equal(flat.eval()(x), flat(x))
    assert flat.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_functional_calls_replace_the_weights(kind):
    """What per-example Jacobians are taken through."""
    flat, x = filteropt.Flat(build(kind)), inputs(kind)
    weights = flat.flat.detach() * 0.3
    found = torch.func.functional_call(flat, {"flat": weights}, (x,))
    with torch.no_grad():
        flat.flat.copy_(weights)
    assert torch.equal(found, flat(x))


def test_a_failed_forward_pass_leaves_the_model_as_it_was():
    flat = filteropt.Flat(build("mlp"))
    with pytest.raises(RuntimeError):
        flat(torch.ones(2, 7).double())
    assert flat(inputs("mlp")).shape == (6, 3)
    assert [name for name, _ in flat.named_parameters()] == ["flat"]


def frozen():
    model = build("mlp")
    model[0].bias.requires_grad_(False)
    return model


def mixed():
    model = build("mlp")
    model[2].float()
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nn.Tanh, ["parameters"]),
        (mixed, ["float32", "float64", "one kind"]),
        (frozen, ["0.bias", "frozen", "requires_grad"]),
        (lambda: nn.Sequential(nn.LSTM(2, 2)), ["LSTM", "recurrent"]),
    ],
)
def test_models_that_cannot_be_flat_are_refused_and_left_alone(make, words):
    model = make()
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match="Flat") as raised:
        filteropt.Flat(model)
    assert all(word in str(raised.value) for word in words)
    assert [name for name, _ in model.named_parameters()] == before
