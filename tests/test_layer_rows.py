"""Rows of layers: which backward passes count, for which parameters, and what is refused."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import filteropt
from filteropt.approximations import Diagonal, PerExample
from filteropt.engine import Filter
from filteropt.finite import NonFiniteGradientError
from filteropt.gathering import Gathering, LayerWatch, Ledger, sources
from filteropt.gathering.layer_homes import biases, covered
from filteropt.gathering.layer_rows import LIMIT
from filteropt.models import Static
from tests.layer_rows import Asks, curvature, forget, look, sum_of_products, watch
from tests.test_per_example import (
    Doubled,
    Functional,
    Position,
    differentiate,
    evaluate,
    hooks,
    loss_of,
    mlp,
    transform,
)

N = 6
REDUCE = Asks("reduce")


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def grads(model):
    """Gradients of the weights of which there are rows, as matrices."""
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: p.grad.flatten(1) for p in covered(model) if p.grad is not None}


def adds_up(watcher, part=None):
    """What rows there are, which must add up to the gradients."""
    found, expected = look(watcher, part), grads(watcher.model)
    assert found.keys() == expected.keys()
    for name, rows in found.items():
        near(sum_of_products(rows), expected[name])
    return found


def one_by_one(model, x):
    r"""Σ_i g_i g_iᵀ of every weight by one backward pass per example."""
    model, weights = copy.deepcopy(model), torch.linspace(1, 2, len(x))
    names, total = {p: name for name, p in model.named_parameters()}, {}
    for i in range(len(x)):
        model.zero_grad()
        (weights[i] * model(x[i : i + 1]).sin().sum() / len(x)).backward()
        for p in covered(model):
            grad = p.grad.flatten()
            total[names[p]] = total.get(names[p], 0.0) + grad[:, None] * grad
    return total


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, rows in found.items():
        near(curvature(rows), expected[name])


def check(model, x, part=None, **coverage):
    """A model's rows add up."""
    watcher = watch(model, part)
    loss_of(model(x)).backward()
    found = adds_up(watcher, part)
    for name, how in coverage.items():
        assert watcher.coverage[name.replace("__", ".")] == how, watcher.coverage
    return found


# Sharing ------------------------------------------------------------------------------------------


def test_a_network_without_places_tells_its_examples_gradients():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, x)
    found = check(model, x, **{"0__weight": "hooks: Linear"})
    same(found, expected)
    assert [rows.inputs.shape for rows in found.values()] == [(N, 4), (N, 5)]


class Tied(nn.Module):
    """A language model whose embedding is its read-out, too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.hidden(self.embedding(x)).tanh())


@pytest.mark.parametrize("shape", [(N,), (N, 3)])
def test_tied_embeddings(shape):
    found = check(Tied(), torch.randint(0, 7, shape), embedding__weight="hooks: Linear, Embedding")
    each = 2 * torch.Size(shape).numel()
    assert found["embedding.weight"].inputs.shape == (each, 4)
    assert found["embedding.weight"].deltas.shape == (each, 7)


def test_tied_embeddings_have_one_bias():
    """The read-out's is a column of the shared table; tokens do not see it."""
    model, x = Tied(), torch.randint(0, 7, (N, 3))
    assert biases(model)[model.embedding.weight] is model.out.bias
    watcher = watch(model, Asks(joint=True))
    loss_of(model(x)).backward()
    rows = look(watcher, Asks(joint=True))["embedding.weight"]
    assert sorted(rows.inputs[:, -1].tolist()) == [0.0] * 3 * N + [1.0] * 3 * N
    weight, bias = model.out.weight.grad, model.out.bias.grad
    near(sum_of_products(rows), torch.cat([weight, bias[:, None]], 1))


def test_one_weight_with_two_biases_has_no_column():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert not biases(model)
    watcher = watch(model, Asks(joint=True))
    loss_of(model(torch.randn(N, 4))).backward()
    assert adds_up(watcher, Asks(joint=True))["0.weight"].inputs.shape == (2 * N, 4)


def test_convolutions_and_sequences():
    check(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)),
            *(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, bias=False, groups=2)),
            *(nn.BatchNorm2d(6), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 3)),
        ),
        torch.randn(N, 1, 8, 8),
        **{"4__weight": "hooks: Conv2d"},
    )


def test_positions_tell_the_sums_of_all_examples():
    model, x = Position(), torch.randint(0, 7, (N, 3))
    found = check(model, x)
    assert found["position.weight"].inputs.shape == (3, 4)
    assert found["token.weight"].inputs.shape == (3 * N, 4)
    model.zero_grad()
    watcher = watch(model, REDUCE)
    loss_of(model(x)).backward()
    found = look(watcher, REDUCE)
    near(sum_of_products(found["position.weight"]), model.position.weight.grad)
    assert found["token.weight"].inputs.shape == (N, 4)


class TimesFirst(nn.Module):
    """Has examples in another dimension than the first, inside."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


def test_layers_that_see_times_before_examples_cannot_be_reduced():
    model, x = TimesFirst(), torch.randn(N, 5, 4)
    check(model, x)
    model.zero_grad()
    watcher = watch(model, REDUCE)
    loss_of(model(x)).backward()
    with pytest.raises(RuntimeError, match=r"'layer\.weight'.*5, 6, 4.*use 'expand'"):
        look(watcher, REDUCE)


# Which backward passes count ----------------------------------------------------------------------


def test_gradients_are_accumulated():
    model, (x, y) = mlp(), torch.randn(2, N, 4)
    first, second = one_by_one(model, x), one_by_one(model, y)
    watcher = watch(model)
    loss_of(model(x)).backward()
    loss_of(model(y)).backward()
    same(adds_up(watcher), {name: first[name] + second[name] for name in first})


def test_a_call_of_another_size_under_one_loss():
    """Which gradients by example could not be told from."""
    watcher = watch(model := mlp())
    (loss_of(model(torch.randn(3, 4))) + loss_of(model(torch.randn(2, 4)))).backward()
    assert len(adds_up(watcher)["0.weight"].inputs) == 5


@pytest.mark.parametrize("factor", [1 / 64, 3.0])
def test_what_is_done_to_the_gradient_is_done_to_its_rows(factor):
    """A scaler, or a clipped norm: the curvature is multiplied by the square."""
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, x)
    watcher = watch(model)
    loss_of(model(x)).mul(1 / factor).backward()
    for p in model.parameters():
        p.grad *= factor
    same(adds_up(watcher), expected)


def test_clipped_gradients():
    model, x = mlp(), torch.randn(N, 4)
    watcher = watch(model)
    loss_of(model(x)).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
    assert float(norm) > 1e-2
    adds_up(watcher)


@pytest.mark.parametrize("to_none", [False, True])
def test_gradients_that_are_taken_away_take_their_rows_with_them(to_none):
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, x)
    watcher = watch(model)
    loss_of(model(3 * x)).backward()
    model.zero_grad(set_to_none=to_none)
    loss_of(model(x)).backward()
    same(adds_up(watcher), expected)


@pytest.mark.parametrize("use", [evaluate, differentiate, transform], ids=lambda use: use.__name__)
@pytest.mark.parametrize("between", [False, True])
def test_other_uses_of_the_model_do_not_count(use, between):
    model, x = mlp(), torch.randn(N, 4)
    watcher = watch(model)
    use(model, torch.randn(3, 4))
    output = model(x)
    if between:
        use(model, torch.randn(3, 4))
    loss_of(output).backward()
    assert len(adds_up(watcher)["0.weight"].inputs) == N


def test_a_pause():
    model, x = mlp(), torch.randn(N, 4)
    watcher, loss = watch(model), loss_of(model(x))
    loss.backward(retain_graph=True)
    kept = [p.grad for p in model.parameters()]
    watcher.paused = watcher.ledger.paused = True
    model.zero_grad()
    loss.backward()
    for p, grad in zip(model.parameters(), kept, strict=True):
        p.grad = grad
    watcher.paused = watcher.ledger.paused = False
    assert len(adds_up(watcher)["0.weight"].inputs) == N


def test_frozen_weights_are_left_out():
    model, x = mlp(), torch.randn(N, 4)
    expected = one_by_one(model, x)
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    watcher = watch(model)
    loss_of(model(x)).backward()
    same(adds_up(watcher), {"2.weight": expected["2.weight"]})
    model[0].weight.requires_grad_()
    forget(watcher)
    model.zero_grad()
    loss_of(model(x)).backward()
    same(adds_up(watcher), expected)


def test_graphs_of_gradients():
    watcher = watch(model := mlp())
    torch.set_warn_always(True)  # else it warns once
    try:
        with pytest.warns(UserWarning, match="create_graph=True"):
            loss_of(model(torch.randn(N, 4))).backward(create_graph=True)
    finally:
        torch.set_warn_always(False)
    found = adds_up(watcher)
    assert not any(
        rows.inputs.requires_grad or rows.deltas.requires_grad for rows in found.values()
    )
    model.zero_grad()


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(backward_inside):
    model, x = mlp().float(), torch.randn(N, 4).float()
    expected = one_by_one(copy.deepcopy(model).double(), x.double())
    watcher = watch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model(x).double())
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    for name, rows in look(watcher).items():
        assert rows.inputs.dtype == rows.deltas.dtype == torch.float32
        error = curvature(rows).double() - expected[name]
        assert error.norm() < 0.1 * expected[name].norm()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_checkpoints(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Linear(4, 4), mlp()

        def forward(self, x):
            return checkpoint(self.inner, self.first(x), use_reentrant=reentrant)

    model, x = Checkpointed(), torch.randn(N, 4)
    watcher = watch(model)
    loss_of(model(x)).backward()
    if not reentrant:
        adds_up(watcher)
        return
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        look(watcher)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own
def test_compiled_models():
    torch._dynamo.reset()
    watcher = watch(model := mlp())
    loss_of(torch.compile(model, backend="eager")(torch.randn(N, 4))).backward()
    adds_up(watcher)


def test_rows_outlast_a_buffer_that_is_filled_again():
    model, x = mlp(), torch.randn(N, 4)
    watcher = watch(model)
    for _ in range(2):
        loss_of(model(x)).backward()
        x.normal_()
    adds_up(watcher)


def test_inputs_that_are_changed_before_the_backward_pass():
    model, x = nn.Sequential(nn.Linear(4, 3).float()), torch.randn(N, 4).float()
    watcher = watch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    x.zero_()
    loss_of(output.double()).backward()
    with pytest.raises(RuntimeError, match="changed in place"):
        look(watcher)


# Sub-samples --------------------------------------------------------------------------------------


def test_sub_samples_move_on_and_draw_nothing():
    """Over as many passes as it takes to see every row equally often, the mean is exact."""
    model, x = nn.Conv2d(1, 2, 3), torch.randn(3, 1, 5, 5)
    whole = watch(model)
    loss_of(model(x)).backward()
    expected = curvature(look(whole)["weight"])
    part, seen = Asks(rows=6), []
    watcher = watch(model, part)
    state = torch.get_rng_state()
    for step in range(9):
        model.zero_grad()
        forget(watcher)
        watcher.ages = {model.weight: step}
        loss_of(model(x)).backward()
        rows = look(watcher, part)["weight"]
        assert len(rows.inputs) == len(rows.deltas) == 6
        seen.append(curvature(rows))
    near(sum(seen) / 9, expected)
    assert not torch.allclose(seen[0], seen[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sub_sample_of_every_backward_pass():
    model, part = mlp(), Asks(rows=4)
    watcher = watch(model, part)
    for _ in range(3):
        loss_of(model(torch.randn(N, 4))).backward()
    assert [len(rows.inputs) for rows in look(watcher, part).values()] == [12, 12]


# What is refused ----------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.inner(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("part", [Asks(), REDUCE, Asks(rows=2)])
def test_a_hook_that_never_fires_is_noticed(part):
    """The layer that projects attention's output is owned, but never called."""
    watcher = watch(model := Attention(), part)
    assert covered(model)[model.inner.out_proj.weight].startswith("inner.out_proj (")
    loss_of(model(torch.randn(N, 5, 4))).backward()
    dead = r"'inner\.out_proj\.weight' of inner\.out_proj \(.*hook never fired.*another filter"
    with pytest.raises(RuntimeError, match=dead):
        look(watcher, part)


def test_attention_without_its_projection():
    model = Attention()
    params = [p for p in covered(model) if p is not model.inner.out_proj.weight]
    watcher = watch(model, params=params)
    loss_of(model(torch.randn(N, 5, 4))).backward()
    near(sum_of_products(look(watcher)["out.weight"]), model.out.weight.grad)


@pytest.mark.parametrize("part", [Asks(), REDUCE, Asks(rows=2)])
def test_a_weight_that_is_used_outside_of_its_layer_is_noticed(part):
    watcher = watch(model := Functional(), part)
    loss_of(model(torch.randn(N, 4))).backward()
    with pytest.raises(RuntimeError, match=r"'layer\.weight'.*do not add up"):
        look(watcher, part)


def test_a_gradient_that_was_not_backpropagated():
    watcher = watch(model := mlp())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    with pytest.raises(RuntimeError, match=r"'0\.weight' of 0 \(Linear\).*no gradient was back"):
        look(watcher)


def test_several_processes(monkeypatch):
    watcher = watch(model := mlp())
    loss_of(model(torch.randn(N, 4))).backward()
    monkeypatch.setattr("filteropt.gathering.layer_watch.several", lambda: True)
    with pytest.raises(RuntimeError, match="on one process"):
        look(watcher)


def test_what_is_covered():
    model = nn.Sequential(
        *(nn.Embedding(LIMIT + 1, 2), nn.Linear(2, 3), nn.LayerNorm((2, 3)), Doubled(3, 3)),
        *(nn.Conv1d(2, 2, 1), nn.LSTM(3, 2), nn.Embedding(3, 2), nn.LazyLinear(3)),
    )
    shared = nn.Linear(3, 3)
    shared.weight = model[3].weight  # which a layer of no known kind uses, too
    model.append(shared)
    found = {name for name, p in model.named_parameters() if p in covered(model)}
    assert found == {"1.weight", "4.weight", "6.weight"}
    assert biases(model) == {model[1].weight: model[1].bias, model[4].weight: model[4].bias}
    same_layer = nn.Sequential(model[1], model[1])
    assert list(covered(same_layer).values()) == ["0 (Linear)"]


@pytest.mark.parametrize("name", ["0.bias", "1.weight", "2.weight"])
def test_parameters_without_rows_are_refused(name):
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm((2, 3)), nn.Embedding(LIMIT + 1, 2))
    with pytest.raises(ValueError, match=f"'{name}' of .* no matrix of a layer"):
        watch(model, params=[model.get_parameter(name)])


def test_vectors_may_be_left_out():
    model = mlp()
    watcher = LayerWatch(model, Ledger())
    watcher.require(list(model.parameters()), Asks(), vectors=True)
    assert set(watcher.wanted) == {model[0].weight, model[2].weight}
    loss_of(model(torch.randn(N, 4))).backward()
    found = watcher.look(list(model.parameters()), Asks())
    assert set(found) == {model[0].weight, model[2].weight}


def test_parameters_of_another_model():
    with pytest.raises(ValueError, match=r"not model=Sequential's"):
        watch(mlp(), params=[mlp()[0].weight])


@dataclass(frozen=True)
class Other(Asks):
    """Another part that asks for rows."""


def test_two_parts_must_ask_for_the_same():
    model = mlp()
    watcher = watch(model)
    weights = list(covered(model))
    watcher.require(weights, Other())
    watcher.require(weights, Other(rows=3))  # which changed its mind
    with pytest.raises(ValueError, match=r"Other asks for .*rows=3.* and Asks for .*rows=None"):
        watcher.require(weights, Asks())
    watcher.clear()
    watcher.require(weights, Asks())


# The gatherer itself ------------------------------------------------------------------------------


def test_nothing_outlives_the_gatherer():
    model = mlp()
    watcher = watch(model)
    assert len(hooks(model)) == 2 + 2 + 2
    loss = loss_of(model(torch.randn(N, 4)))
    loss.backward()
    gone = weakref.ref(watcher)
    del watcher, loss
    gc.collect()
    assert gone() is None
    assert not hooks(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_by_themselves(copied):
    part = Asks(rows=4, joint=True)
    model, x = mlp(), torch.randn(N, 4)
    watcher = watch(model, part)
    loss_of(model(x)).backward()
    other, theirs = copied((model, watcher))
    assert theirs.model is other
    for one, its in ((model, watcher), (other, theirs)):
        forget(its)
        one.zero_grad()
        loss_of(one(2 * x)).backward()
    found, expected = look(theirs, part), look(watcher, part)
    assert found["0.weight"].inputs.shape == (4, 5)
    for name, rows in found.items():
        assert torch.equal(rows.inputs, expected[name].inputs)
        assert torch.equal(rows.deltas, expected[name].deltas)


def test_probing_is_for_reduced_rows_alone():
    """Examples are told from other things where something depends on it."""
    model, calls = mlp(), []
    model.register_forward_hook(lambda *_: calls.append(model.training))
    watcher = watch(model)
    model(torch.randn(N, 4))
    assert calls == [True]
    watcher.require(list(covered(model)), REDUCE)
    model(torch.randn(N, 4))
    assert calls == [True, False, True]


# In an optimizer ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowSquares(PerExample):
    """The squares of the examples' gradients, taken from rows."""

    needs: ClassVar = frozenset({"grad", "layer"})
    source: ClassVar = "layers"
    sharing: ClassVar = "expand"
    rows: int | None = None

    def observe(self, like, raw, p, prior, scalars):
        squares = (raw.layer.deltas.square().mT @ raw.layer.inputs.square()).reshape(p.shape)
        return super().observe(like, raw._replace(squares=squares), p, prior, scalars)


def with_rows(batch_size, rows=None):
    return Filter(Static(), RowSquares(batch_size, beta1=None, rows=rows), Diagonal(0.5))


def with_examples(batch_size):
    return Filter(Static(), PerExample(batch_size, beta1=None), Diagonal(0.5))


def plain():
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))


def both(make, train, **options):
    """The same training by rows and by squared gradients of examples."""
    model, opts = make(), []
    for preset in (with_rows, with_examples):
        mine = copy.deepcopy(model)
        opt = filteropt.FilterOptimizer(
            mine.parameters(), preset, batch_size=N, model=mine, **options
        )
        torch.manual_seed(1)
        train(mine, opt)
        opts.append((mine, opt))
    (first, found), (second, expected) = opts
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        near(p, q)
        near(found.posterior_variance(p), expected.posterior_variance(q))
        assert not torch.equal(found.posterior_variance(p), torch.full_like(p, 0.5))


def steps(model, opt):
    for _ in range(3):
        opt.zero_grad()
        loss_of(model(torch.randn(N, 4))).backward()
        opt.step()


def accumulating(model, opt):
    for _ in range(2):
        opt.zero_grad()
        for _ in range(3):
            loss_of(model(torch.randn(N, 4))).backward()
        opt.step()


def clipped(model, opt):
    loss_of(model(torch.randn(N, 4))).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
    opt.step()


def scaled(model, opt):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(2):
        opt.zero_grad()
        scaler.scale(loss_of(model(torch.randn(N, 4)))).backward()
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()


def drawn(model, opt):
    for _ in range(3):
        with opt.sampled_params(train=True):
            opt.zero_grad()
            loss_of(model(torch.randn(N, 4))).backward()
    opt.step()


def with_a_closure(model, opt):
    x = torch.randn(N, 4)

    def closure():
        opt.zero_grad()
        loss = loss_of(model(x))
        loss.backward()
        return loss

    for _ in range(2):
        opt.step(closure)


TRAINING = [steps, accumulating, clipped, scaled, drawn, with_a_closure]


@pytest.mark.parametrize("train", TRAINING, ids=lambda train: train.__name__)
def test_an_optimizer_that_learns_from_rows(train):
    both(plain, train)


def test_maximizing():
    both(plain, steps, maximize=True)


def test_a_step_forgets_its_rows():
    model = plain()
    opt = filteropt.FilterOptimizer(model.parameters(), with_rows, batch_size=N, model=model)
    steps(model, opt)
    assert all(opt._gathering.ledger.look(p, "deltas") is None for p in model.parameters())


@pytest.mark.parametrize(("value", "what"), [(float("inf"), "gradient"), (1e200, "layer's input")])
def test_rows_that_are_not_finite(value, what):
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    opt = filteropt.FilterOptimizer(model.parameters(), with_rows, batch_size=N, model=model)
    x = torch.zeros(N, 4)
    x[0, 0] = value
    (model(x).sum() * 1e-200).backward()
    before = model[0].weight.clone()
    with pytest.raises(NonFiniteGradientError, match=what):
        opt.step()
    assert torch.equal(model[0].weight, before)


def test_a_likelihood_needs_rows_of_every_parameter():
    model = mlp()
    with pytest.raises(ValueError, match=r"'0\.bias' of 0 \(Linear\)"):
        filteropt.FilterOptimizer(model.parameters(), with_rows, batch_size=N, model=model)
    with pytest.raises(ValueError, match="pass model="):
        filteropt.FilterOptimizer([model[0].weight], with_rows, batch_size=N)


class Turning:
    """A part that is no likelihood, as a filter's basis is none."""

    needs, source = frozenset({"grad", "layer"}), "layers"


def test_parts_that_are_no_likelihood_may_leave_vectors_out():
    gathering, model = Gathering(), mlp()
    params = list(model.parameters())
    gathering.watch("Owner", model, Turning(), params)
    loss_of(model(torch.randn(N, 4))).backward()
    found = gathering.look(Turning(), params)
    assert set(found) == {model[0].weight, model[2].weight}
    near(sum_of_products(found[model[0].weight]["layer"]), model[0].weight.grad)
    gathering.clear()
    with pytest.raises(RuntimeError, match="no gradient was backpropagated"):
        gathering.look(Turning(), params)
    assert sources.SOURCES["layers"] == {"layer"}
