"""Parameter groups: how they may be given, and that each has its own hyperparameters."""

import pytest
import torch
from torch import nn

from .problems import (
    assert_close,
    assert_same,
    assert_same_weights,
    clones,
    drive,
    give_gradients,
    moved,
    network,
    parameters,
    train,
    weights,
)
from .subjects import LATER_VARIATIONS, REWORDINGS, VARIATIONS


def test_empty_group_is_legal(subject):
    """Trainers build a no-decay group even if nothing falls into it."""
    params = parameters()
    alone = clones(params)
    opt = subject([{"params": []}, {"params": params}])
    drive(opt, 3)
    drive(subject(alone), 3)
    assert_close(params, alone)
    opt.load_state_dict(opt.state_dict())


def test_group_added_mid_run_starts_its_own_belief(subject):
    """A late group trains like a fresh optimizer; the first group does not notice."""
    first, late = parameters()
    first_alone, late_alone = clones([first, late])
    opt, one, two = subject([first]), subject([first_alone]), subject([late_alone])
    for t in range(6):
        if t == 3:
            opt.add_param_group({"params": [late]})
        give_gradients([first], t)
        give_gradients([first_alone], t)
        one.step()
        if t >= 3:
            give_gradients([late], t)
            give_gradients([late_alone], t)
            two.step()
        opt.step()
    assert_close([first, late], [first_alone, late_alone])


def test_added_group_takes_the_defaults(subject):
    """A group without hyperparameters gets those of the constructor."""
    opt = subject(parameters((2,)), lr=0.0123)
    opt.add_param_group({"params": parameters((3,))})
    first, second = ({k: v for k, v in g.items() if k != "params"} for g in opt.param_groups)
    assert_same(first, second)


@pytest.mark.parametrize(("subject", "name", "value"), VARIATIONS, ids=str)
def test_hyperparameter_acts_in_its_group_only(subject, name, value):
    """Set in the second group, it acts as if that group was alone with it."""
    first, second = parameters()
    first_alone, second_alone = clones([first, second])
    opt = subject([{"params": [first]}, {"params": [second], name: value}])
    one, two = subject([first_alone]), subject([second_alone], **{name: value})
    for t in range(4):
        for p in (first, second, first_alone, second_alone):
            give_gradients([p], t)
        for o in (opt, one, two):
            o.step()
    assert_close([first, second], [first_alone, second_alone])


@pytest.mark.parametrize(("subject", "name", "value"), VARIATIONS, ids=str)
def test_hyperparameter_does_something(subject, name, value):
    """Every numeric hyperparameter changes the trajectory, or the belief where that cancels."""
    params = parameters()
    varied = clones(params)
    opt, other = subject(params), subject(varied, **{name: value})
    drive(opt, 5)
    drive(other, 5)
    if name in subject.cancels:
        assert_close(params, varied)
        params, varied = (
            [o.posterior_variance(p) for p in ps] for o, ps in ((opt, params), (other, varied))
        )
    assert moved(*(subject.concerned(name, ps) for ps in (params, varied)))


@pytest.mark.parametrize(("subject", "name", "value"), LATER_VARIATIONS, ids=str)
def test_hyperparameter_changed_mid_run_acts_from_then_on(subject, name, value):
    """Writing into the group is the way of every scheduler and sweep."""
    params = parameters()
    plain = clones(params)
    opt, other = subject(params), subject(plain)
    drive(opt, 3)
    drive(other, 3)
    assert_same(params, plain)
    opt.param_groups[0][name] = value
    drive(opt, 3, start=3)
    drive(other, 3, start=3)
    assert moved(*(subject.concerned(name, ps) for ps in (params, plain)))


@pytest.mark.parametrize(("subject", "name", "word"), REWORDINGS, ids=str)
def test_word_acts_in_its_group_only(subject, name, word):
    """So do hyperparameters that are words, under a changing rate."""
    first, second = parameters()
    alone = clones([first, second])
    opt = subject([{"params": [first]}, {"params": [second], name: word}])
    singles = [subject([alone[0]]), subject([alone[1]], **{name: word})]
    for t in range(4):
        for o in (opt, *singles):
            for group in o.param_groups:
                group["lr"] *= 0.5
        for p in (first, second, *alone):
            give_gradients([p], t)
        for o in (opt, *singles):
            o.step()
    assert_close([first, second], alone)


@pytest.mark.parametrize(("subject", "name", "word"), REWORDINGS, ids=str)
def test_word_does_something(subject, name, word):
    """It changes the trajectory, unless it provably cancels."""
    params = parameters()
    varied = clones(params)
    opt, other = subject(params, lr=0.02), subject(varied, lr=0.02, **{name: word})
    for start, lr in enumerate((0.02, 0.01, 0.005)):
        for o in (opt, other):
            o.param_groups[0]["lr"] = lr
            drive(o, 1, start=start)
    if name in subject.cancels:
        assert_close(params, varied)
    else:
        assert moved(*(subject.concerned(name, ps) for ps in (params, varied)))


def test_extra_keys_are_kept(subject):
    """Layer-wise decay puts `lr_scale` into groups; it survives steps and checkpoints."""
    params = parameters()
    groups = [{"params": [p], "lr_scale": 0.5**i, "tag": f"g{i}"} for i, p in enumerate(params)]
    opt = subject(groups)
    drive(opt, 1)
    loaded = subject([{"params": [p]} for p in clones(params)])
    loaded.load_state_dict(opt.state_dict())
    for o in (opt, loaded):
        assert [g["lr_scale"] for g in o.param_groups] == [1.0, 0.5]
        assert [g["tag"] for g in o.param_groups] == ["g0", "g1"]


def test_named_parameters_are_accepted(subject):
    """Named input trains alike, and the names travel in the state dict."""
    named, plain = network(), network()
    opt = subject(named.named_parameters())
    train(named, opt, 3)
    train(plain, subject(plain.parameters()), 3)
    assert_same_weights(named, plain)
    names = [name for name, _ in named.named_parameters()]
    assert opt.state_dict()["param_groups"][0]["param_names"] == names


def test_named_groups_are_accepted(subject):
    """Groups of names and parameters work like groups of parameters."""
    a, b = parameters()
    opt = subject([{"params": [("a", a)]}, {"params": [("b", b)], "weight_decay": 0.0}])
    assert_same(weights(opt), [a, b])
    drive(opt, 1)


def test_generator_input_is_consumed_once(subject):
    """`model.parameters()` is a generator."""
    opt = subject(p for p in parameters())
    assert len(weights(opt)) == 2


def test_no_parameters_is_an_error(subject):
    """An exhausted generator should not train nothing silently."""
    with pytest.raises(ValueError, match="empty parameter list"):
        subject([])


def test_parameter_in_two_groups_is_an_error(subject):
    """It would be stepped twice."""
    (p,) = parameters((2,))
    with pytest.raises(ValueError, match="more than one parameter group"):
        subject([{"params": [p]}, {"params": [p]}])


def test_non_leaf_tensor_is_an_error(subject):
    """A computed tensor cannot be trained."""
    with pytest.raises(ValueError, match="non-leaf"):
        subject([nn.Parameter(torch.ones(2)) * 2])


def test_repr_names_the_class_and_its_hyperparameters(subject):
    """What a log line shows."""
    text = repr(subject(parameters()))
    assert subject.cls.__name__ in text
    assert all(name in text for name in subject.numeric())
