"""What Lightning, Accelerate, the Hugging Face Trainer and timm do to an optimizer."""

import copy
import inspect
import types

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as dcp

from .problems import (
    assert_close,
    assert_same,
    assert_same_weights,
    clones,
    drive,
    give_gradients,
    loss_of,
    network,
    parameters,
    photograph,
    train,
    trained,
    weights,
)
from .subjects import DECAYING

ORDERS = ["posterior", "prediction"]
# A momentum moves the prediction, too: test_momentum_modes.py has that.
WITHOUT_MOMENTUM = [s for s in DECAYING[1:] if s.cls.__name__ != "MomentumFilter"]


class Wrapper:
    """Becomes an instance of the wrapped optimizer's class, as Lightning's wrapper does."""

    def __init__(self, optimizer):
        """Take over the attributes, the step excepted, and change class."""
        self.__dict__ = {k: v for k, v in optimizer.__dict__.items() if k != "step"}
        own, theirs = type(self), type(optimizer)
        self.__class__ = type(f"Wrapped{theirs.__name__}", (own, theirs), {})
        self.inner = optimizer

    def step(self, closure=None):
        """Forward the step, with a closure always."""
        return self.inner.step(closure=closure)


def test_dynamic_subclass_works(subject):
    """No `__slots__`, and no test for the exact class."""
    model = network()
    opt = subject(model.parameters())
    wrapped = Wrapper(opt)
    assert isinstance(wrapped, subject.cls)
    assert isinstance(wrapped, torch.optim.Optimizer)
    assert wrapped.param_groups is opt.param_groups

    for t in range(3):

        def closure(t=t):
            wrapped.zero_grad()
            loss = loss_of(model, t)
            loss.backward()
            return loss

        assert wrapped.step(closure).item() > 0
    assert_same_weights(model, trained(subject, 3))
    assert subject.cls.__name__ in repr(wrapped)
    saved = copy.deepcopy(wrapped.state_dict())
    wrapped.load_state_dict(saved)
    assert_same(saved, opt.state_dict())


def test_plain_subclass_works(subject):
    """A user's subclass may log around the step."""
    calls = []

    class Logged(subject.cls):
        def step(self, closure=None):
            calls.append(len(self.param_groups))
            return super().step(closure)

    params, twin = parameters(), parameters()
    drive(Logged(params, **subject.keywords), 2)
    drive(subject(twin), 2)
    assert calls == [1, 1]
    assert_same(params, twin)


def test_step_can_be_swapped_on_the_instance(subject):
    """Accelerate patches `step` to see whether a scaler called it."""
    params = parameters()
    opt = subject(params)
    original, calls = opt.step, []

    def patched(self, *args, **kwargs):
        calls.append(self)
        return original(*args, **kwargs)

    opt.step = types.MethodType(patched, opt)
    twin = parameters()
    drive(opt, 2)
    drive(subject(twin), 2)
    assert calls == [opt, opt]
    assert_same(params, twin)


def test_zero_grad_states_its_keyword(subject):
    """Accelerate asks the signature for `set_to_none`."""
    opt = subject(parameters())
    assert "set_to_none" in inspect.signature(opt.zero_grad).parameters


def test_state_moved_by_hand_is_used(subject):
    """Accelerate sends the whole state dict through a device move, even if it is a copy only."""
    params = parameters()
    opt = subject(params)
    drive(opt, 2)
    state = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(state)
    twin = parameters()
    other = subject(twin)
    drive(other, 4)
    drive(opt, 2, start=2)
    assert_same(params, twin)


@pytest.mark.parametrize("subject", DECAYING, ids=str)
def test_decay_and_no_decay_groups(subject):
    """The Trainer's and timm's two groups, either of which may be empty; extra keys included."""
    model = network()
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    opt = subject(
        [
            {"params": rest, "weight_decay": 0.0, "lr_scale": 1.0},
            {"params": decay, "weight_decay": 0.3},
            {"params": [], "weight_decay": 0.0},
        ],
        weight_decay=0.1,
    )
    before = clones(rest)
    for _ in range(2):
        for p in weights(opt):
            p.grad = torch.zeros_like(p)
        opt.step()
    assert_same(rest, before)
    lr = opt.param_groups[1]["lr"]
    fresh = [p for p in network().parameters() if p.ndim > 1]
    assert_close(decay, [p * (1 - 0.3 * lr) ** 2 for p in fresh])


@pytest.mark.parametrize("subject", DECAYING, ids=str)
def test_weight_decay_is_a_keyword(subject):
    """Factories always pass it."""
    opt = subject(parameters(), weight_decay=0.25)
    assert [g["weight_decay"] for g in opt.param_groups] == [0.25]


@pytest.mark.parametrize("order", ORDERS)
def test_train_and_eval_between_steps_change_nothing(library_subject, order):
    """The Trainer calls train() before every micro-batch and eval() before evaluating."""
    model, plain = network(), network()
    opt = library_subject(model.parameters(), linearize_at=order)
    twin = library_subject(plain.parameters(), linearize_at=order)
    for t in range(5):
        opt.zero_grad()
        for _ in range(2):
            opt.train()
            (loss_of(model, t) / 2).backward()
        opt.step()
        if t % 2:
            opt.eval()
            loss_of(model, t)
            opt.train()
    train(plain, twin, 5)
    assert_same_weights(model, plain)
    assert_same(photograph(opt), photograph(twin))


@pytest.mark.parametrize("order", ORDERS)
def test_train_and_eval_are_idempotent(library_subject, order):
    """The second call does nothing, before the first step as well."""
    params = parameters()
    opt = library_subject(params, linearize_at=order)
    for t in range(3):
        opt.train()
        trained_weights = clones(params)
        opt.eval()
        evaluated = clones(params)
        opt.eval()
        assert_same(params, evaluated)
        opt.train()
        opt.train()
        assert_same(params, trained_weights)
        drive(opt, 1, start=t)


@pytest.mark.parametrize("library_subject", WITHOUT_MOMENTUM, ids=str)
def test_prediction_differs_from_posterior_only_in_training_mode(library_subject):
    """In eval mode the weights are the mean; in train mode they have decayed once more."""
    params = parameters()
    opt = library_subject(params, linearize_at="prediction", weight_decay=0.5)
    before = clones(params)
    drive(opt, 1 + library_subject.whole)
    predicted = clones(params)
    opt.eval()
    lr = opt.param_groups[0]["lr"]
    assert_close(predicted, [p * (1 - 0.5 * lr) for p in params])
    assert not any(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def plainly(folder, model, opt, other, resumed):
    """Carry weights and state over as state dicts."""
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))


def by_distributed_checkpoint(folder, model, opt, other, resumed):
    """Carry weights and state over in files that only fill what a fresh optimizer has."""
    opt.zero_grad()
    checkpoint.save(dict(enumerate(dcp.get_state_dict(model, opt))), checkpoint_id=folder)
    state = dict(enumerate(dcp.get_state_dict(other, resumed)))
    checkpoint.load(state, checkpoint_id=folder)
    dcp.set_state_dict(other, resumed, model_state_dict=state[0], optim_state_dict=state[1])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("carry", [plainly, by_distributed_checkpoint])
def test_checkpoint_of_either_mode_resumes(library_subject, tmp_path, order, mode, carry):
    """Weights and state saved together in one mode go on together, in both modes."""
    model, other = network(), network()
    opt = library_subject(model.parameters(), linearize_at=order, **library_subject.decay(0.5))
    resumed = library_subject(other.parameters(), linearize_at=order, **library_subject.decay(0.5))
    train(model, opt, 3)
    getattr(opt, mode)()
    carry(tmp_path, model, opt, other, resumed)
    for switch in (mode, "eval", "train"):
        getattr(opt, switch)()
        getattr(resumed, switch)()
        assert_close(other.parameters(), model.parameters())
    train(model, opt, 3, start=3)
    train(other, resumed, 3, start=3)
    assert_close(other.parameters(), model.parameters())


@pytest.mark.parametrize("order", ORDERS)
def test_bitwise_resume_in_either_order(library_subject, order):
    """A checkpoint in training mode, where the gradient is taken at the prediction too."""
    params = parameters()
    opt = library_subject(params, linearize_at=order)
    drive(opt, 3)
    resumed = library_subject(clones(params), linearize_at=order)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    drive(opt, 3, start=3)
    drive(resumed, 3, start=3)
    assert_same(photograph(resumed), photograph(opt))


def test_factory_of_a_trainer_can_build_it(subject):
    """`cls(groups, **kwargs)` with the usual keywords, and the class is importable by name."""
    module = inspect.getmodule(subject.cls)
    assert getattr(module, subject.cls.__name__) is subject.cls
    opt = subject.cls([{"params": parameters(), "weight_decay": 0.1}], **subject.keywords, lr=1e-3)
    give_gradients(weights(opt), 0)
    opt.step()
