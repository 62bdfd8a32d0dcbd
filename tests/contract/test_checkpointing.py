"""A state dict is complete, plain, and resumes bit by bit."""

import copy
import io
import json
import types

import pytest
import torch
from torch.distributed.checkpoint import state_dict as dcp
from torch.optim.lr_scheduler import LambdaLR

from .problems import (
    assert_same,
    assert_same_weights,
    clones,
    drive,
    network,
    parameters,
    photograph,
    train,
    weights,
)
from .subjects import FILTERS, SUBJECTS, Subject

PLAIN = (bool, int, float, str, types.NoneType)


def through_file(state, **_):
    """Write and read as a checkpoint, trusting nothing in it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_json(state):
    """Write and read as text: plain values only, tuples turned into lists."""

    def encode(x):
        return {"dtype": str(x.dtype).removeprefix("torch."), "values": x.tolist()}

    def decode(x):
        return torch.tensor(x["values"], dtype=getattr(torch, x["dtype"])) if "dtype" in x else x

    read = json.loads(json.dumps(state, default=encode), object_hook=decode)
    return {**read, "state": {int(key): value for key, value in read["state"].items()}}


@pytest.mark.parametrize("travel", [through_file, through_json, copy.deepcopy])
def test_resume_is_bitwise(subject, travel):
    """An optimizer of other hyperparameters becomes the saved one, and goes on as it would."""
    model = network()
    opt = subject(model.parameters(), lr=2e-3, **subject.decay(0.03))
    train(model, opt, 4)
    other = network()
    resumed = subject(other.parameters(), lr=0.5, **subject.decay(0.0))
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(travel(opt.state_dict()))
    assert_same(photograph(resumed), photograph(opt))
    train(model, opt, 4, start=4)
    train(other, resumed, 4, start=4)
    assert_same(photograph(resumed), photograph(opt))


def test_resume_under_a_scheduler_is_bitwise(subject):
    """The rate that the belief was built with survives, whatever the present rate is."""

    def build(model, lr):
        opt = subject(model.parameters(), lr=lr)
        return opt, LambdaLR(opt, lambda t: t / 5)

    def run(model, opt, scheduler, steps, start):
        for t in range(start, start + steps):
            train(model, opt, 1, start=t)
            scheduler.step()

    model, other = network(), network()
    opt, scheduler = build(model, 2e-3)
    run(model, opt, scheduler, 3, 0)
    resumed, second = build(other, 2e-3)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_file(opt.state_dict()))
    second.load_state_dict(through_file(scheduler.state_dict()))
    run(model, opt, scheduler, 4, 3)
    run(other, resumed, second, 4, 3)
    assert_same(photograph(resumed), photograph(opt))


def test_state_dict_holds_only_tensors_and_plain_values(subject):
    """Anything else would need trust to load."""
    opt = subject(network().named_parameters())
    drive(opt, 2)
    assert set(opt.state_dict()) == {"state", "param_groups"}

    def check(value):
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, (list, tuple)):
            for item in value:
                check(item)
        else:
            assert isinstance(value, (*PLAIN, torch.Tensor))

    check(opt.state_dict())


def test_saving_and_loading_its_own_state_changes_nothing(subject):
    """Accelerate does this to a fresh optimizer, trainers do it mid-run."""
    for steps in (0, 3):
        params = parameters()
        opt, twin = subject(params), subject(clones(params))
        drive(opt, steps)
        drive(twin, steps)
        opt.load_state_dict(opt.state_dict())
        assert_same(photograph(opt), photograph(twin))
        drive(opt, 3, start=steps)
        drive(twin, 3, start=steps)
        assert_same(photograph(opt), photograph(twin))


def test_loading_does_not_share_tensors(subject):
    """The checkpoint in memory may be loaded twice."""
    params = parameters()
    opt = subject(params)
    drive(opt, 2)
    checkpoint = copy.deepcopy(opt.state_dict())
    kept = copy.deepcopy(checkpoint)
    resumed = subject(clones(params))
    resumed.load_state_dict(checkpoint)
    drive(resumed, 2, start=2)
    assert_same(checkpoint["param_groups"], kept["param_groups"])
    before = photograph(opt)
    drive(resumed, 1)
    assert_same(photograph(opt), before)


FOREIGN = [*SUBJECTS, Subject(torch.optim.SGD), Subject(torch.optim.RMSprop)]
PAIRS = [(mine, other) for mine in FILTERS for other in FOREIGN if other.cls is not mine.cls]


@pytest.mark.parametrize(("subject", "other"), PAIRS, ids=str)
@pytest.mark.parametrize("steps", [0, 2])
def test_state_of_another_class_is_refused(subject, other, steps):
    """Before anything is changed, and saying which class would not take it."""
    params = parameters()
    opt = subject(params)
    drive(opt, 2)
    before, groups = photograph(opt), copy.deepcopy(opt.state_dict()["param_groups"])
    stranger = other(clones(params), lr=0.01)
    drive(stranger, steps)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=subject.cls.__name__):
        opt.load_state_dict(stranger.state_dict())
    assert_same(photograph(opt), before)
    assert_same(opt.state_dict()["param_groups"], groups)


def test_state_of_another_model_is_refused(subject):
    """Torch counts parameters; nothing changes when the count is wrong."""
    opt, other = subject(parameters()), subject(parameters((3, 4)))
    drive(opt, 2)
    before = photograph(opt)
    with pytest.raises(ValueError, match="doesn't match the size"):
        opt.load_state_dict(other.state_dict())
    assert_same(photograph(opt), before)


def test_reading_the_distributed_state_dict_changes_nothing(subject):
    """`get_state_dict` may be called at any time in a run."""
    model = network()
    opt = subject(model.parameters())
    train(model, opt, 3)
    opt.zero_grad()
    before = photograph(opt)
    dcp.get_state_dict(model, opt)
    dcp.get_optimizer_state_dict(model, opt)
    assert_same(photograph(opt), before)


def test_distributed_state_dict_before_the_first_step_leaves_no_trace(library_subject):
    """It materialises state by a step of zero gradients at lr = 0; training must not notice."""
    model, plain = network(), network()
    opt, twin = library_subject(model.parameters()), library_subject(plain.parameters())
    dcp.get_optimizer_state_dict(model, opt)
    assert_same_weights(model, plain)
    train(model, opt, 3)
    train(plain, twin, 3)
    assert_same(photograph(opt), photograph(twin))


def test_distributed_state_dict_resumes_bitwise(subject):
    """Keys are names there, not numbers, and the loading optimizer is fresh."""
    model, other = network(), network()
    opt = subject(model.parameters(), lr=2e-3)
    train(model, opt, 3)
    opt.zero_grad()
    weights_saved, optim_saved = through_file(dcp.get_state_dict(model, opt))
    resumed = subject(other.parameters(), lr=0.5)
    dcp.set_state_dict(other, resumed, model_state_dict=weights_saved, optim_state_dict=optim_saved)
    assert_same(photograph(resumed), photograph(opt))
    train(model, opt, 3, start=3)
    train(other, resumed, 3, start=3)
    assert_same(photograph(resumed), photograph(opt))


def test_flattened_distributed_state_dict_resumes_bitwise(subject):
    """The layout that survives resharding has one key per number, groups included."""
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=True)
    model, other = network(), network()
    opt = subject(model.parameters(), lr=2e-3)
    train(model, opt, 3)
    opt.zero_grad()
    saved = through_file(dcp.get_optimizer_state_dict(model, opt, options=options))
    other.load_state_dict(model.state_dict())
    resumed = subject(other.parameters(), lr=0.5)
    dcp.set_optimizer_state_dict(other, resumed, saved, options=options)
    train(model, opt, 3, start=3)
    train(other, resumed, 3, start=3)
    assert_same(photograph(resumed), photograph(opt))


def test_state_before_the_first_step_is_empty_and_loads(subject):
    """A run may be saved before it starts."""
    opt, other = subject(parameters()), subject(parameters(), lr=0.5)
    other.load_state_dict(through_file(opt.state_dict()))
    drive(opt, 2)
    drive(other, 2)
    assert_same(weights(other), weights(opt))
