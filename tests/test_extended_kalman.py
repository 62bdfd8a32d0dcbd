"""The extended Kalman filter as an optimizer: refusals, checkpoints and copies."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import filteropt
from filteropt import NonFiniteGradientError


def mlp(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), *more).double()


def ekf(model, **options):
    options = {"loss": "cross_entropy", "initial_variance": 0.1, "drift": 0.01, **options}
    return filteropt.ExtendedKalmanFilter(model.named_parameters(), model=model, **options)


def learn(model, opt, seed, steps=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(6, 4, dtype=torch.float64, generator=generator)
        y = torch.randint(0, 3, (6,), generator=generator)
        opt.zero_grad()
        cross_entropy(model(x), y, reduction="sum").backward()
        opt.step()


def everything(model, opt):
    """Weights and beliefs, as tensors."""
    state = [x for s in opt.state.values() for x in s.values()]
    return [x.detach().clone() for x in (*model.parameters(), *state)]


def assert_same(found, expected):
    assert all(map(torch.equal, found, expected))
    assert len(found) == len(expected)


def nothing_seen(model, opt):
    for p in model.parameters():
        p.grad = torch.ones_like(p)


def other_model(model, opt):
    other = copy.deepcopy(model)
    cross_entropy(other(torch.ones(2, 4).double()), torch.tensor([0, 1])).backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = q.grad


def normalised(model, opt):
    model.append(nn.BatchNorm1d(3).double())
    model(torch.ones(2, 4).double()).sum().backward()


def dropped(model, opt):
    model.append(nn.Dropout(0.5))
    model(torch.ones(2, 4).double()).sum().backward()


def examples_last(model, opt):
    model.append(nn.Flatten(0))
    model(torch.ones(2, 4).double()).sum().backward()


def scalar_outputs(model, opt):
    model.append(nn.Linear(3, 1).double())
    model.append(nn.Flatten(0))
    model(torch.ones(2, 4).double()).sum().backward()


def pixels(model, opt):
    model.append(nn.Unflatten(1, (3, 1)))
    model(torch.ones(2, 4).double()).sum().backward()


def infinite(model, opt):
    with torch.no_grad():
        model[2].bias.zero_()
    loss = model(torch.full((2, 4), float("inf"), dtype=torch.float64)).sum()
    loss.backward()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)


@pytest.mark.parametrize(
    ("trouble", "error", "words"),
    [
        (nothing_seen, RuntimeError, ["no minibatch", "model(x)", "backward"]),
        (other_model, RuntimeError, ["no minibatch", "model"]),
        (normalised, ValueError, ["BatchNorm1d", "'3'", "eval()", "GroupNorm"]),
        (dropped, ValueError, ["Dropout", "'3'", "eval()"]),
        (examples_last, TypeError, ["(2, 4)", "(6,)", "first dimension"]),
        (scalar_outputs, ValueError, ["cross_entropy", "logits", "()"]),
        (pixels, ValueError, ["cross_entropy", "logits", "(3, 1)"]),
        (infinite, NonFiniteGradientError, ["Jacobian", "weight"]),
    ],
)
def test_refusals_say_what_to_do_and_change_nothing(trouble, error, words):
    model = mlp()
    opt = ekf(model)
    learn(model, opt, seed=0)
    opt.zero_grad()
    trouble(model, opt)
    before = everything(model, opt)
    with pytest.raises(error) as raised:
        opt.step()
    assert_same(everything(model, opt), before)
    missing = [word for word in words if word not in str(raised.value)]
    assert not missing, str(raised.value)


def test_a_skipped_jacobian_changes_nothing_either():
    model = mlp()
    opt = ekf(model, on_nonfinite="skip")
    learn(model, opt, seed=0)
    opt.zero_grad()
    infinite(model, opt)
    before = everything(model, opt)
    opt.step()
    assert_same(everything(model, opt), before)


def test_the_model_is_asked_for():
    model = mlp()
    with pytest.raises(ValueError, match=r"model=, the module whose output the loss"):
        filteropt.ExtendedKalmanFilter(model.parameters())


def test_models_of_several_outputs_are_refused_in_the_forward_pass():
    class Twice(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    model = Twice(2, 1)
    opt = filteropt.ExtendedKalmanFilter(model.parameters(), model=model)
    with pytest.raises(TypeError, match=r"tuple.*one tensor"):
        model(torch.ones(1, 2))
    with torch.no_grad():
        model(torch.ones(1, 2))
    assert not opt.state


def test_a_parameter_that_is_not_the_models_is_refused_when_it_is_given():
    model, stranger = mlp(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    opt = ekf(model)
    with pytest.raises(ValueError, match=r"\(2,\).*Sequential.*module that owns every"):
        opt.add_param_group({"params": [("stranger", stranger)]})
    assert len(opt.param_groups) == 1
    learn(model, opt, seed=0)
    with pytest.raises(ValueError, match="module that owns every"):
        filteropt.ExtendedKalmanFilter([stranger], model=model)


def test_a_tensor_too_large_for_dense_is_refused_with_the_memory_that_it_would_take():
    """Float32 and 10,000 weights: 4e8 bytes."""
    model = nn.Linear(100, 100, bias=False)
    words = r"(?s)\(100, 100\).*10000.*8192.*0\.37 GiB.*Diagonal.*max_weights"
    with pytest.raises(ValueError, match=words):
        filteropt.ExtendedKalmanFilter(model.parameters(), model=model)


def test_evaluation_mode_of_a_mixing_layer_is_accepted():
    model = mlp(nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[3].eval(), model[4].eval()
    learn(model, ekf(model), seed=0)


@pytest.mark.parametrize("flat", [False, True])
def test_training_resumes_bit_for_bit(flat):
    def fresh():
        model = filteropt.Flat(mlp()) if flat else mlp()
        return model, ekf(model)

    model, opt = fresh()
    learn(model, opt, seed=0, steps=3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
    learn(model, opt, seed=1, steps=3)
    file.seek(0)
    saved = torch.load(file)
    again, opt_again = fresh()
    again.load_state_dict(saved["model"])
    opt_again.load_state_dict(saved["opt"])
    learn(again, opt_again, seed=1, steps=3)
    assert_same(everything(again, opt_again), everything(model, opt))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("flat", [False, True])
def test_a_copy_of_model_and_optimizer_trains_alike_and_apart(copied, flat):
    model = filteropt.Flat(mlp()) if flat else mlp()
    opt = ekf(model)
    learn(model, opt, seed=0, steps=2)
    other, opt_other = copied((model, opt))
    before = everything(model, opt)
    learn(other, opt_other, seed=1, steps=2)
    assert_same(everything(model, opt), before)
    learn(model, opt, seed=1, steps=2)
    assert_same(everything(other, opt_other), everything(model, opt))


def test_a_copy_of_the_model_alone_is_not_watched():
    """Its forward passes are no minibatches of the original's optimizer."""
    model = mlp()
    opt = ekf(model)
    other = copy.deepcopy(model)
    other(torch.ones(9, 4).double()).sum().backward()
    learn(model, opt, seed=0)
    reference = mlp()
    opt_reference = ekf(reference)
    learn(reference, opt_reference, seed=0)
    assert_same(everything(model, opt), everything(reference, opt_reference))


def test_two_optimizers_of_one_model_look_each_for_itself():
    model = mlp()
    halves = [list(model[0].parameters()), list(model[2].parameters())]
    options = {"loss": "cross_entropy", "initial_variance": 0.1, "drift": 0.01, "model": model}
    opts = [filteropt.ExtendedKalmanFilter(half, **options) for half in halves]
    x, y = torch.ones(2, 4).double(), torch.tensor([0, 2])
    cross_entropy(model(x), y, reduction="sum").backward()
    for opt in opts:
        opt.step()
    assert sum(len(opt.state) for opt in opts) == 4


def test_the_optimizer_may_be_dropped_while_the_model_lives():
    model = mlp()
    opt = ekf(model)
    del opt
    model(torch.ones(2, 4).double()).sum().backward()
    assert model[0].weight.grad is not None
