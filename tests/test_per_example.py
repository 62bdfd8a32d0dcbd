"""Squared gradients of single examples: which backward passes count, and for which parameters."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase] - torch's own custom
from torch.utils.checkpoint import checkpoint

import filteropt
from filteropt.approximations import Averaged, Diagonal, PerExample
from filteropt.engine import Filter
from filteropt.gathering import pass_watch
from filteropt.gathering.example_squares import ExampleSquares
from filteropt.gathering.ledger import Ledger
from filteropt.models import Static

N, LIKELIHOOD = 6, PerExample()


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def loss_of(output, weights=None):
    """A mean of one term per example, of which no two are alike."""
    if weights is None:
        weights = torch.linspace(1, 2, len(output))
    return (weights * output.sin().flatten(1).sum(1)).mean()


def watch(model, likelihood=LIKELIHOOD):
    squares = ExampleSquares(model, Ledger())
    squares.require([p for p in model.parameters() if p.requires_grad], likelihood)
    return squares


def look(squares, likelihood=LIKELIHOOD):
    params = [p for p in squares.wanted if p.grad is not None]
    found = squares.look(params, likelihood)
    return {squares.names[p]: fields["squares"] for p, fields in found.items()}


def one_by_one(model, *losses):
    """The same by one backward pass for each of the losses, which are of one example each."""
    model = copy.deepcopy(model)
    total = {}
    for loss in losses:
        model.zero_grad()
        loss(model).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] = total.get(name, 0.0) + p.grad.square()
    return total


def terms(x, output=lambda model, x: model(x)):
    """The examples' terms of the loss."""
    weights = torch.linspace(1, 2, len(x))
    return [
        lambda model, i=i: loss_of(output(model, x[i : i + 1]), weights[i : i + 1]) / len(x)
        for i in range(len(x))
    ]


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-15)


def check(model, x, **coverage):
    """A model's squares are those of one backward pass per example."""
    squares, expected = watch(model), one_by_one(model, *terms(x))
    loss_of(model(x)).backward()
    same(look(squares), expected)
    for name, how in coverage.items():
        assert squares.coverage[name.replace("__", ".")] == how, squares.coverage
    return squares


# Sharing ------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A language model whose embedding is its read-out, too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.hidden(self.embedding(x)).tanh())


@pytest.mark.parametrize("shape", [(N,), (N, 3)])
def test_tied_embeddings(shape):
    check(Tied(), torch.randint(0, 7, shape), embedding__weight="hooks: Linear, Embedding")


def test_one_parameter_in_two_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    check(model, torch.randn(N, 4))


def test_a_parameter_that_is_used_by_two_calls_of_one_loss():
    """The calls are of the same examples, as those of a siamese network."""
    model, (x, y) = mlp(), torch.randn(2, N, 4)

    def both(model, inputs):
        return model(inputs[:, 0]) * model(inputs[:, 1])

    expected = one_by_one(model, *terms(torch.stack([x, y], 1), both))
    squares = watch(model)
    loss_of(model(x) * model(y)).backward()
    same(look(squares), expected)


def test_calls_of_different_sizes_under_one_loss_are_refused():
    squares = watch(model := mlp())
    (loss_of(model(torch.randn(3, 4))) + loss_of(model(torch.randn(2, 4)))).backward()
    with pytest.raises(RuntimeError, match=r"'0\.weight' .*calls of different numbers of examples"):
        look(squares)


# Which backward passes count ----------------------------------------------------------------------


def test_gradients_are_accumulated():
    model, (x, y) = mlp(), torch.randn(2, N, 4)
    expected = one_by_one(model, *terms(x), *terms(y))
    squares = watch(model)
    loss_of(model(x)).backward()
    loss_of(model(y)).backward()
    same(look(squares), expected)


def test_a_graph_that_is_backpropagated_twice_counts_twice():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    squares = watch(model)
    loss = loss_of(model(x))
    loss.backward(retain_graph=True)
    loss.backward()
    same(look(squares), {name: 2 * value for name, value in expected.items()})


def evaluate(model, x):
    with torch.no_grad():
        model(x)
    model.eval()(x)
    model.train()


def differentiate(model, x):
    torch.autograd.grad(loss_of(model(x)), list(model.parameters()))


def attack(model, x):
    torch.autograd.grad(loss_of(model(moved := x.clone().requires_grad_())), moved)


def transform(model, x):
    def loss(params, one):
        return torch.func.functional_call(model, params, (one[None],)).sum()

    params = {name: p.detach() for name, p in model.named_parameters()}
    torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)


def train_otherwise(model, x):
    loss_of(model(3 * x)).backward()
    model.zero_grad()


def fail(model, x):
    with pytest.raises(RuntimeError):
        model(x[:3, :2])


def break_off(model, x, *, set_to_none=True):
    """The last layer's gradients are there when the pass breaks."""

    def stop(grad):
        raise ZeroDivisionError

    def watched(layer, args, output):
        output.register_hook(stop)

    handle = model[0].register_forward_hook(watched)
    with pytest.raises(ZeroDivisionError):
        loss_of(model(3 * x)).backward()
    handle.remove()
    assert model[-1].bias.grad.any()
    model.zero_grad(set_to_none=set_to_none)


def break_off_in_place(model, x):
    break_off(model, x, set_to_none=False)


USES = [
    break_off,
    break_off_in_place,
    evaluate,
    differentiate,
    attack,
    transform,
    train_otherwise,
    fail,
]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("between", [False, True])
def test_other_uses_of_the_model_do_not_count(use, between):
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    squares = watch(model)
    use(model, torch.randn(3, 4))
    output = model(x)
    if between:
        use(model, torch.randn(3, 4))
    loss_of(output).backward()
    same(look(squares), expected)
    assert set(squares.coverage.values()) == {"hooks: Linear"}


def test_what_a_broken_pass_accumulated_counts(monkeypatch):
    model, (x, y) = mlp(), torch.randn(2, N, 4)
    whole, broken = one_by_one(model, *terms(y)), one_by_one(model, *terms(3 * x))
    squares = watch(model)
    monkeypatch.setattr(model, "zero_grad", lambda set_to_none: None)
    break_off(model, x)
    loss_of(model(y)).backward()
    same(look(squares), {k: v + broken[k] if k[0] == "2" else v for k, v in whole.items()})


@pytest.mark.parametrize("held", [0, 300])
def test_passes_that_do_not_wait_for_their_end(held, monkeypatch):
    monkeypatch.setattr(pass_watch, "HELD", held)
    test_gradients_are_accumulated()


def test_a_look_inside_of_the_pass():
    """As optimizers that step in a parameter's hook take it."""
    model, x, found = mlp(), torch.randn(N, 4), {}
    expected = one_by_one(model, *terms(x))
    squares = watch(model)
    for name, p in model.named_parameters():

        def step(p, name=name):
            found[name] = squares.look([p], LIKELIHOOD)[p]["squares"].clone()

        p.register_post_accumulate_grad_hook(step)
    loss_of(model(x)).backward()
    same(found, expected)


def test_a_graph_that_was_differentiated_before_counts_once():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    squares, loss = watch(model), loss_of(model(x))
    torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    loss.backward(retain_graph=True)
    squares.clear()
    squares.ledger.clear()
    model.zero_grad()
    loss.backward()
    same(look(squares), expected)


def test_some_parameters_alone():
    """``backward(inputs=...)`` and frozen parameters."""
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    model[2].bias.requires_grad_(False)
    squares = watch(model)
    loss_of(model(x)).backward(inputs=[model[0].weight])
    loss_of(model(x)).backward(inputs=[model[2].weight])
    same(look(squares), {name: expected[name] for name in ("0.weight", "2.weight")})
    assert squares.coverage["0.bias"] == "not seen"
    assert "2.bias" not in squares.coverage


def test_parameters_that_are_unfrozen_later():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    squares = ExampleSquares(model, Ledger())
    model[0].weight.requires_grad_(False)
    squares.require(list(model.parameters()), LIKELIHOOD)
    model[0].weight.requires_grad_()
    model[2].weight.requires_grad_(False).requires_grad_()
    loss_of(model(x)).backward()
    same(look(squares), expected)


def test_averages_over_draws_of_the_weights():
    """The ledger averages over draws; what is owed is settled at the draw."""
    model, x = nn.Sequential(Doubled(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(N, 4)
    squares, params, expected = watch(model), list(model.parameters()), []
    mean = [p.detach().clone() for p in params]
    for draw in range(2):
        if draw:
            squares.ledger.fold(params)
            squares.restart()
            model.zero_grad()
        with torch.no_grad():
            for p in params:
                p.add_(torch.randn_like(p))
        expected.append(one_by_one(model, *terms(x)))
        loss_of(model(x)).backward()
        squares.settle()
        squares.ledger.begun = True
        with torch.no_grad():
            for p, old in zip(params, mean, strict=True):
                p.copy_(old)
    same(look(squares), {name: (expected[0][name] + expected[1][name]) / 2 for name in expected[0]})


def test_a_pause():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    squares, loss = watch(model), loss_of(model(x))
    loss.backward(retain_graph=True)
    grads = [p.grad for p in model.parameters()]
    squares.paused = squares.ledger.paused = True
    model.zero_grad()
    loss.backward()
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad
    squares.paused = squares.ledger.paused = False
    same(look(squares), expected)


def test_what_is_done_to_the_gradient_is_done_to_its_squares():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    squares = watch(model)
    loss_of(model(x)).mul(64).backward()
    for p in model.parameters():
        p.grad /= 64
    same(look(squares), expected)


def test_a_factor_is_read_where_the_first_thousand_numbers_are_zero():
    p, ledger = nn.Parameter(torch.zeros(4000)), Ledger()
    p.grad = torch.cat([torch.zeros(3000), torch.full((1000,), 8.0)])
    ledger.add(p, "squares", p.grad.square())
    ledger.mark([p])
    p.grad /= 4
    assert torch.equal(ledger.look(p, "squares"), p.grad.square())


def test_graphs_of_gradients():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    squares = watch(model)
    with pytest.warns(UserWarning, match="create_graph=True"):
        loss_of(model(x)).backward(create_graph=True)
    found = look(squares)
    same(found, expected)
    assert not any(value.requires_grad for value in found.values())
    model.zero_grad()


# What is in the model -----------------------------------------------------------------------------


class Doubled(nn.Linear):
    """A layer that no rule covers."""

    def forward(self, x):
        return 2 * super().forward(x)


class Position(nn.Module):
    """Embeds tokens and their positions, which are no examples."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(7, 4), nn.Embedding(3, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.token(x) * self.position(torch.arange(3)))


class Functional(nn.Module):
    """Uses a layer's weight behind its back, too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) + F.linear(x.exp(), self.layer.weight)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.inner(x)[0][:, -1])


def test_networks_of_many_layers():
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6).eval()),
        *(nn.SiLU(inplace=True), nn.Flatten(), nn.Linear(24, 8), nn.LayerNorm(8)),
        *(nn.Dropout(0.0), nn.Linear(8, 3)),
    )
    squares = check(model, torch.randn(N, 1, 8, 8))
    assert all(how.startswith("hooks: ") for how in squares.coverage.values())


def test_masks_of_dropout_are_those_of_the_pass():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)), torch.randn(N, 4)
    squares, masks = watch(model), []
    model[1].register_forward_hook(lambda module, args, output: masks.append(output / args[0]))
    loss_of(model(x)).backward()

    def masked(model, i):
        return model[2](model[0](x[i : i + 1]) * masks[-1][i].detach())

    weights = torch.linspace(1, 2, N)
    losses = [
        lambda model, i=i: loss_of(masked(model, i), weights[i : i + 1]) / N for i in range(N)
    ]
    plain = nn.Sequential(copy.deepcopy(model[0]), nn.Identity(), copy.deepcopy(model[2]))
    same(look(squares), one_by_one(plain, *losses))


def test_layers_that_see_something_else_than_examples():
    check(
        Position(),
        torch.randint(0, 7, (N, 3)),
        position__weight="torch.func",
        token__weight="hooks: Embedding",
    )


@pytest.mark.parametrize("training", [False, True])
def test_as_many_positions_as_examples_by_coincidence(training):
    """A batch of one in eval mode, without a trace of it, tells them apart."""
    model, x = Position().train(training), torch.randint(0, 7, (3, 3))
    model.position.eval()
    check(model, x[:1], position__weight="torch.func")  # which cannot tell
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    check(model, x, position__weight="torch.func", out__weight="hooks: Linear")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes


def test_telling_them_apart_leaves_no_trace():
    """Neither in statistics nor in the stream of random numbers."""

    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(x)  # in eval mode, too

    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), Noisy(), nn.Linear(5, 3))
    plain, x = copy.deepcopy(model), torch.randn(N, 4)
    squares, state = watch(model), torch.get_rng_state()
    output = model(x)
    torch.set_rng_state(state)
    assert torch.equal(output, plain(x))
    assert all(map(torch.equal, model.buffers(), plain.buffers()))
    loss_of(output).backward()
    assert len(look(squares)) == 6


def test_a_layer_that_sees_examples_only_sometimes():
    """A parameter may be looked at differently from pass to pass."""

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, other=False):
            return x @ self.layer(torch.eye(3)) if other else self.layer(x)

    model, (x, y) = Sometimes(), torch.randn(2, N, 3)
    squares = check(model, x, layer__weight="hooks: Linear")
    expected = one_by_one(model, *terms(x), *terms(y, lambda model, x: model(x, True)))
    squares.clear()
    squares.ledger.clear()
    model.zero_grad()
    loss_of(model(x)).backward()
    loss_of(model(y, True)).backward()
    same(look(squares), expected)
    assert squares.coverage["layer.weight"] == "torch.func"


def test_a_parameter_that_is_used_outside_of_its_layer_is_noticed():
    check(Functional(), torch.randn(N, 4), layer__weight="torch.func", layer__bias="hooks: Linear")


def test_accumulation_where_layers_do_not_tell():
    model, (x, y) = Functional(), torch.randn(2, N, 4)
    expected = one_by_one(model, *terms(x), *terms(y))
    squares = watch(model)
    loss_of(model(x)).backward()
    loss_of(model(y)).backward()
    same(look(squares), expected)


def test_two_calls_of_one_loss_where_layers_do_not_tell():
    model, (x, y) = Functional(), torch.randn(2, N, 4)

    def both(model, inputs):
        return model(inputs[:, 0]) * model(inputs[:, 1])

    expected = one_by_one(model, *terms(torch.stack([x, y], 1), both))
    squares = watch(model, likelihood := PerExample(memory=300.0))
    loss_of(model(x) * model(y)).backward()
    same(look(squares, likelihood), expected)


def test_hooks_of_others():
    """A hook that changes a layer's output is no part of the layer."""
    model = mlp()
    model[0].register_forward_hook(lambda module, args, output: 3 * output)
    check(model, torch.randn(N, 4), **{"0__weight": "hooks: Linear"})


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (lambda model, x: loss_of(model(x)) + model[0].weight.square().sum(), "is used elsewhere"),
        (lambda model, x: loss_of(model[0](x)), "no output of the model itself"),
        (lambda model, x: loss_of(model(x)) + model[0].weight.exp().sum(), "no example's"),
    ],
    ids=["penalty", "part of a model", "penalty by torch.func"],
)
@pytest.mark.parametrize("uncovered", ["error", "batch"])
def test_losses_that_are_no_sum_over_examples(loss, why, uncovered):
    model, likelihood = nn.Sequential(nn.Linear(4, 4)), PerExample(uncovered=uncovered)
    if why != "is used elsewhere":
        model = nn.Sequential(Doubled(4, 4))
    squares = watch(model, likelihood)
    loss(model, torch.randn(N, 4)).backward()
    if uncovered == "error":
        with pytest.raises(RuntimeError, match=rf"'0.weight' has no .*{why}.*uncovered='batch'"):
            look(squares, likelihood)
        return
    assert torch.equal(look(squares, likelihood)["0.weight"], model[0].weight.grad.square())
    assert squares.coverage["0.weight"] == "batch gradient"


@pytest.mark.parametrize("uncovered", ["error", "batch"])
def test_recurrent_layers(uncovered):
    model, x, likelihood = Recurrent(), torch.randn(N, 3, 4), PerExample(uncovered=uncovered)
    squares, expected = watch(model, likelihood), one_by_one(model, *terms(x))
    for _ in range(2):
        model.zero_grad()
        squares.clear()
        squares.ledger.clear()
        loss_of(model(x)).backward()
        if uncovered == "error":
            with pytest.raises(RuntimeError, match=r"'inner.weight_ih_l0' .*recurrent"):
                look(squares, likelihood)
        else:
            found = look(squares, likelihood)
            torch.testing.assert_close(
                found["out.weight"], expected["out.weight"], rtol=1e-10, atol=0
            )
            for name, p in model.inner.named_parameters(prefix="inner"):
                assert torch.equal(found[name], p.grad.square())
                assert squares.coverage[name] == "batch gradient"
            assert not squares._calls  # nothing is kept for what is given up


def test_outputs_that_are_no_tensor():
    class Dict(nn.Module):
        def __init__(self):
            super().__init__()
            self.known, self.unknown = nn.Linear(4, 3), Doubled(4, 3)

        def forward(self, x):
            return {"known": self.known(x), "unknown": self.unknown(x)}

    model, x = Dict(), torch.randn(N, 4)
    squares = watch(model)
    output = model(x)
    loss_of(output["known"]).backward()
    expected = one_by_one(model, *terms(x, lambda model, x: model(x)["known"]))
    same(look(squares), expected)
    loss_of(output["unknown"]).backward()
    with pytest.raises(RuntimeError, match="the model returned dict"):
        look(squares)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Linear(4, 4), mlp()

        def forward(self, x):
            return checkpoint(self.inner, self.first(x), use_reentrant=reentrant)

    model, x = Checkpointed(), torch.randn(N, 4)
    if not reentrant:
        check(model, x)
        return
    squares = watch(model)
    loss_of(model(x)).backward()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        look(squares)


def test_inputs_that_are_changed_in_place():
    """Where autograd itself does not notice: the bias needs no input, autocast keeps a copy."""
    model, x = nn.Sequential(nn.Linear(4, 3).float()), torch.randn(N, 4).float()
    squares = watch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    x.zero_()
    loss_of(output.double()).backward()
    with pytest.raises(RuntimeError, match="changed in place"):
        look(squares)


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(backward_inside):
    model, x = mlp().float(), torch.randn(N, 4).float()
    expected = one_by_one(copy.deepcopy(model).double(), *terms(x.double()))
    squares = watch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model(x).double())
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    for name, found in look(squares).items():
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected[name], rtol=0.1, atol=1e-4)


def test_sparse_gradients():
    model = nn.Embedding(5, 2, sparse=True)
    squares = watch(model)
    loss_of(model(torch.randint(0, 5, (N,)))).backward()
    with pytest.raises(RuntimeError, match="sparse"):
        look(squares)


# The gatherer itself ------------------------------------------------------------------------------


def test_a_gradient_that_was_not_backpropagated():
    model = mlp()
    squares = watch(model)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    with pytest.raises(RuntimeError, match=r"'0\.weight' has a gradient, but none"):
        look(squares)


def test_parameters_of_another_model():
    with pytest.raises(ValueError, match=r"not model=Sequential's"):
        ExampleSquares(mlp(), Ledger()).require(list(mlp().parameters()), LIKELIHOOD)


def test_layers_that_are_added_later():
    model, x = mlp(), torch.randn(N, 4)
    squares = watch(model)
    model.append(nn.Linear(3, 2))
    squares.require(list(model.parameters()), LIKELIHOOD)
    expected = one_by_one(model, *terms(x))
    loss_of(model(x)).backward()
    same(look(squares), expected)
    assert squares.coverage["3.weight"] == "hooks: Linear"


def hooks(model):
    found = [
        *(module._forward_hooks for module in model.modules()),
        *(module._forward_pre_hooks for module in model.modules()),
        *(p._post_accumulate_grad_hooks for p in model.parameters()),
    ]
    return [hook for of_one in found for hook in (of_one or {}).values()]


def test_nothing_outlives_the_gatherer():
    model = mlp()
    squares = watch(model)
    assert len(hooks(model)) == 2 + 2 + 4
    loss = loss_of(model(torch.randn(N, 4)))
    loss.backward()
    gone = weakref.ref(squares)
    del squares, loss
    gc.collect()
    assert gone() is None
    assert not hooks(model)


def test_inputs_are_let_go_of_when_they_were_looked_at():
    model = nn.Sequential(nn.Tanh(), nn.Linear(4, 3))
    squares, kept = watch(model), []
    model[1].register_forward_pre_hook(lambda module, args: kept.append(weakref.ref(args[0])))
    for step in range(3):
        loss = loss_of(model(torch.randn(N, 4)))  # which is kept until the next
        loss.backward(retain_graph=step == 2)
        look(squares)
        squares.clear()
        squares.ledger.clear()
        model.zero_grad()
        probe, *rest = kept
        assert probe() is None
        assert [ref() is None for ref in rest] == [True] * step + [step < 2]
    unused = model(torch.randn(N, 4))
    del unused
    assert kept[-1]() is None
    loss.backward()
    with pytest.raises(RuntimeError, match="again after a step"):
        look(squares)


def test_training_by_another_optimizer_keeps_nothing():
    """However long it lasts, and whether layers tell all or nothing."""
    model, x = nn.Sequential(Doubled(4, 5), nn.Linear(5, 3)), torch.randn(N, 4)
    squares, expected = watch(model), one_by_one(model, *terms(x))
    for _ in range(5):
        model.zero_grad()
        loss_of(model(3 * x)).backward()
    gc.collect()
    assert len(squares._spent) == 0
    assert len(squares._calls) == len(squares._owed) == 1
    model.zero_grad()
    loss_of(model(x)).backward()
    same(look(squares), expected)


def test_large_outputs_are_not_kept_once_layers_tell_all():
    model, x = mlp(), torch.randn(N, 4)
    squares = watch(model)
    loss_of(model(x)).backward()
    look(squares)
    squares.clear()
    loss_of(model(x)).backward()
    assert not squares._calls
    assert not squares._arrived


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_by_themselves(copied):
    model, x = mlp(), torch.randn(N, 4)
    squares = watch(model)
    loss_of(model(x)).backward()
    other, theirs = copied((model, squares))
    assert theirs.model is other
    other.zero_grad()
    expected = one_by_one(other, *terms(2 * x))
    loss_of(other(2 * x)).backward()
    same(look(theirs), expected)
    same(look(squares), one_by_one(model, *terms(x)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own
def test_compiled_models():
    torch._dynamo.reset()
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    squares = watch(model)
    loss_of(torch.compile(model, backend="eager")(x)).backward()
    same(look(squares), expected)


# The likelihood -----------------------------------------------------------------------------------


def filters(batch_size, uncovered="error"):
    return Filter(Static(), PerExample(batch_size, beta1=None, uncovered=uncovered), Diagonal(0.5))


def test_a_step_adds_the_examples_squares_to_the_precision():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    opt = filteropt.FilterOptimizer(model.parameters(), filters, batch_size=N, model=model)
    loss_of(model(x)).backward()
    opt.step()
    for name, p in model.named_parameters():
        precision = 1 / opt.posterior_variance(p)
        torch.testing.assert_close(precision, 2 + N**2 * expected[name], rtol=1e-10, atol=0)


def test_draws_of_the_weights_through_the_optimizer():
    """Squares are averaged over draws, and taken at each, by the layers or by torch.func."""
    model, x = nn.Sequential(Doubled(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(N, 4)
    opt = filteropt.FilterOptimizer(model.parameters(), filters, batch_size=N, model=model)
    expected = []
    for _ in range(2):
        with opt.sampled_params(train=True):
            opt.zero_grad()
            loss_of(model(x)).backward()
            expected.append(one_by_one(model, *terms(x)))
    opt.step()
    for name, p in model.named_parameters():
        mean = N**2 * (expected[0][name] + expected[1][name]) / 2
        torch.testing.assert_close(1 / opt.posterior_variance(p), 2 + mean, rtol=1e-10, atol=0)


def test_gradients_that_are_scaled_behind_autograds_back():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, *terms(x))
    opt = filteropt.FilterOptimizer(model.parameters(), filters, batch_size=N, model=model)
    loss_of(model(x)).backward()
    for p in model.parameters():
        p.grad.data.mul_(0.5)
    opt.step()
    for name, p in model.named_parameters():
        precision = 1 / opt.posterior_variance(p)
        torch.testing.assert_close(precision, 2 + 9 * expected[name], rtol=1e-10, atol=0)


def test_the_likelihood_can_be_averaged():
    model, x = mlp(), torch.randn(N, 4)

    def averaged(batch_size):
        return Filter(Static(), Averaged(PerExample(batch_size, beta1=None), 0.9), Diagonal(0.5))

    opt = filteropt.FilterOptimizer(model.parameters(), averaged, batch_size=N, model=model)
    for _ in range(2):
        opt.zero_grad()
        loss_of(model(x)).backward()
        opt.step()
    assert all(bool((opt.posterior_variance(p) < 0.5).all()) for p in model.parameters())


@pytest.mark.parametrize("field", [{"uncovered": "ignore"}, {"memory": 0.0}, {"scale": -1.0}])
def test_bad_arguments(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        PerExample(**field)
