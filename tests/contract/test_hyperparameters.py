"""Bad hyperparameters are refused by name, value and allowed range, before anything changes."""

import inspect
import math
import re
import typing

import pytest
import torch

from .problems import assert_same, drive, give_gradients, parameters, photograph
from .subjects import FILTERS, SUBJECTS, is_number

NOT_A_NUMBER = ["0.1", True, [0.1], {}, 1j]
OPEN_TO_NONE = {"weight_decay"}  # None: the decay that the model itself implies


def bad_numbers(name, default):
    """Return values that no hyperparameter of this name and default can take."""
    bad = [-1.0, math.nan, -math.inf, *NOT_A_NUMBER]
    if name.startswith("beta"):
        bad += [1.0, 1.5]
    if name in {"lr", "eps", "weight_decay", "batch_size"}:
        bad.append(math.inf)
    if name == "batch_size":
        bad.append(0)
    return bad if default is None or name in OPEN_TO_NONE else [*bad, None]


def bad_values(name, default):
    """Return pairs of a bad value and the part of it that the message must show."""
    if isinstance(default, tuple):
        entries = [
            ((*default[:i], bad, *default[i + 1 :]), bad)
            for i, entry in enumerate(default)
            for bad in bad_numbers(name, entry)
        ]
        lengths = [default[:1], (*default, default[-1])]
        return [*entries, *((v, v) for v in lengths), (0.5, 0.5), ("ab", "ab"), (None, None)]
    return [(bad, bad) for bad in bad_numbers(name, default)]


def every_bad_value():
    """Return (subject, name, value, what the message must show) for the library's classes."""
    return [
        pytest.param(subject, name, value, shown, id=f"{subject}-{name}-{value}")
        for subject in FILTERS
        for name, default in subject.numeric().items()
        for value, shown in bad_values(name, default)
        if value is not None or not none_is_legal(subject.cls, name)
    ]


def none_is_legal(cls, name):
    """Return whether the class itself lets the hyperparameter be None."""
    parameter = inspect.signature(cls).parameters[name]
    return parameter.default is None or type(None) in typing.get_args(parameter.annotation)


def assert_clear(message, name, shown, allowed):
    """Assert that a message has the name, the value and what is allowed."""
    assert re.search(rf"\b{name}\b", message), message
    assert repr(shown) in message, message
    rest = message.replace(repr(shown), "")
    assert re.search(allowed, rest), message


RANGE = r"in [\[(]|[<>≤≥]|\d+ numbers"


@pytest.mark.parametrize(("subject", "name", "value", "shown"), every_bad_value())
def test_bad_value_is_refused_everywhere(subject, name, value, shown):
    """In the constructor, in a group, in a late group, and in a group changed mid-run."""
    late, *params = parameters((2,), (3, 4), (5,))
    for build in (
        lambda: subject(params, **{name: value}),
        lambda: subject([{"params": params[:1]}, {"params": params[1:], name: value}]),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            build()
        assert_clear(str(error.value), name, shown, RANGE)

    opt = subject([{"params": [p]} for p in params])
    drive(opt, 2)
    before = photograph(opt)
    with pytest.raises((ValueError, TypeError)) as error:
        opt.add_param_group({"params": [late], name: value})
    assert_clear(str(error.value), name, shown, RANGE)
    assert len(opt.param_groups) == 2

    legal = opt.param_groups[1][name]
    opt.param_groups[1][name] = value
    give_gradients(params, 2)
    with pytest.raises((ValueError, TypeError)) as error:
        opt.step()
    assert_clear(str(error.value), name, shown, RANGE)
    assert_same(photograph(opt), before)

    opt.param_groups[1][name] = legal
    opt.step()


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_negative_value_is_refused(subject):
    """The part of the law that AdamW keeps too, learning rate and weight decay included."""
    for name, default in subject.numeric().items():
        bad = -1.0 if is_number(default) else (-1.0, *default[1:])
        with pytest.raises((ValueError, TypeError), match=r"-1\.0"):
            subject(parameters(), **{name: bad})


def test_unknown_name_is_refused(subject):
    """A misspelt keyword is not swallowed."""
    with pytest.raises(TypeError, match="lerning_rate"):
        subject(parameters(), lerning_rate=0.1)


def choices(subject):
    """Return the names and defaults of the hyperparameters that are one of several words."""
    words = {k: v for k, v in subject.defaults().items() if isinstance(v, str)}
    return {**words, "schedule": "gain", "on_nonfinite": "raise"}.items()


CHOICES = [(subject, *choice) for subject in FILTERS for choice in choices(subject)]


@pytest.mark.parametrize(("subject", "name", "default"), CHOICES, ids=str)
@pytest.mark.parametrize("wrong", ["sideways", None, 1, True])
def test_wrong_word_is_refused_with_the_right_ones(subject, name, default, wrong):
    """The message lists what would have been fine."""
    with pytest.raises((ValueError, TypeError)) as error:
        subject(parameters(), **{name: wrong})
    assert_clear(str(error.value), name, wrong, repr(default))


@pytest.mark.parametrize("wrong", ["yes", None, 1, 0.0])
def test_maximize_must_be_true_or_false(library_subject, wrong):
    """A string would be true."""
    with pytest.raises((ValueError, TypeError)) as error:
        library_subject(parameters(), maximize=wrong)
    assert_clear(str(error.value), "maximize", wrong, "True or False")


def test_whole_numbers_are_numbers(subject):
    """An int where a float is due acts as that float."""
    params, same = parameters(), parameters()
    name = "weight_decay" if "weight_decay" in subject.defaults() else "batch_size"
    drive(subject(params, **{name: 1}), 2)
    drive(subject(same, **{name: 1.0}), 2)
    assert_same(params, same)


def test_tuples_may_be_lists(subject):
    """JSON and YAML know no tuples."""
    params, same = parameters(), parameters()
    keywords = {k: v for k, v in subject.numeric().items() if isinstance(v, tuple)}
    drive(subject(params, **{k: list(v) for k, v in keywords.items()}), 2)
    drive(subject(same, **keywords), 2)
    assert_same(params, same)


def test_tensor_lr_acts_as_the_number(library_subject):
    """Compiled training loops keep the learning rate in a 0-d tensor."""
    params, same = parameters(), parameters()
    opt = library_subject(params, lr=torch.tensor(0.25))
    drive(opt, 3)
    drive(library_subject(same, lr=0.25), 3)
    assert_same(params, same)
    opt.param_groups[0]["lr"].fill_(-1.0)
    with pytest.raises((ValueError, TypeError), match="lr"):
        drive(opt, 1)


def test_refused_group_leaves_no_trace(library_subject):
    """The same parameters can be added again with good values."""
    first, second = parameters()
    opt = library_subject([first])
    with pytest.raises(ValueError, match="lr"):
        opt.add_param_group({"params": [second], "lr": -1.0})
    opt.add_param_group({"params": [second], "lr": 1e-3})
    drive(opt, 1)
