"""The presets' docstrings: every argument, its words, and what the composition can take."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn

from filteropt import FilterOptimizer, presets

PRESETS = {name: getattr(presets, name) for name in presets.__all__}
CLASSES = {name: one for name, one in PRESETS.items() if inspect.isclass(one)}
SHARED = inspect.signature(FilterOptimizer.__init__).parameters
NEEDED = {"lr": 1e-3, "ess": 100, "dataset_size": 100, "batch_size": 4}


def described(thing: Any) -> dict[str, str]:
    """The section of arguments, each with its words."""
    text = re.search(r"^Args:\n((?:    .*\n)+)", inspect.getdoc(thing) or "", re.MULTILINE)
    parts = re.split(r"^    (\w+): ", text[1] if text else "", flags=re.MULTILINE)[1:]
    return {
        name: " ".join(words.split()) for name, words in zip(parts[::2], parts[1::2], strict=True)
    }


def taken(thing: Any) -> list[str]:
    """The names of the arguments; keywords that are passed on are the optimizers' own."""
    found = inspect.signature(thing).parameters
    names = [name for name, one in found.items() if one.kind is not one.VAR_KEYWORD]
    if len(names) < len(found):
        keywords = [name for name, one in SHARED.items() if one.kind is one.KEYWORD_ONLY]
        names += [name for name in keywords if name not in names]
    return names


def options(thing: Any) -> dict[str, set[str]]:
    """The words that arguments may be, of a preset and of the optimizers' own keywords."""
    function = getattr(thing, "preset", thing)
    hints = get_type_hints(FilterOptimizer.__init__) | get_type_hints(function)
    found = {}
    for name, hint in hints.items():
        kinds = [one for one in (hint, *get_args(hint)) if get_origin(one) is Literal]
        found[name] = {f'``"{word}"``' for one in kinds for word in get_args(one)}
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_every_argument_is_described_in_order(name: str) -> None:
    preset = PRESETS[name]
    if found := described(preset):
        assert list(found) == taken(preset)
        return
    (owner,) = (one for one in CLASSES.values() if one.preset is preset)
    assert f":class:`~filteropt.{owner.__name__}`" in preset.__doc__
    others = [word for word in taken(preset) if word not in described(owner)]
    assert all(f"``{word}``" in preset.__doc__ for word in others)


@pytest.mark.parametrize("name", PRESETS)
def test_every_word_that_an_argument_may_be_is_named(name: str) -> None:
    may_be = options(PRESETS[name])
    for argument, text in described(PRESETS[name]).items():
        if argument != "linearize_at" and not re.search(r"\bsee :", text):  # the next test's
            missing = [word for word in may_be.get(argument, ()) if word not in text]
            assert not missing, (argument, text)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("argument", "value"),
    [("fused", True), ("belief_dtype", torch.bfloat16), ("linearize_at", "prediction")],
)
def test_what_is_offered_is_taken_and_nothing_else(name: str, argument: str, value: Any) -> None:
    kind, model = CLASSES[name], nn.Linear(3, 2)
    known = inspect.signature(kind).parameters
    words = {key: given for key, given in NEEDED.items() if key in known} | {"model": model}
    if "params" in known:
        words["params"] = model.parameters()
    word = f'"{value}"' if isinstance(value, str) else str(value)
    if f"``{word}``" in described(kind)[argument]:
        kind(**words, **{argument: value})
    else:
        with pytest.raises(ValueError, match=argument):
            kind(**words, **{argument: value})
