"""Parts as text, such as ``FixedNoise(discretization="exact")`` or ``Averaged(CentredGradient)``.

A part is a name of :mod:`filteropt.models` or :mod:`filteropt.approximations`, with arguments where
they differ from the defaults; an argument may be a part. What is not given is a hyperparameter.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from inspect import Parameter, Signature
from typing import Any

from experiments.errors import UserError
from experiments.registry import SLOTS
from filteropt import approximations, models
from filteropt.engine import Filter
from filteropt.testing import parts


@dataclass(frozen=True)
class Part:
    """A part with the arguments that were given.

    Attributes:
        cls: Its class.
        given: The arguments, values or parts.
    """

    cls: type[Any]
    given: Mapping[str, Any]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What was not given, also of inner parts, with the defaults."""
        own = {f.name: _default(f) for f in fields(self.cls) if f.name not in self.given}
        inner = [p.hyperparameters for p in self.given.values() if isinstance(p, Part)]
        return {name: value for found in (*inner, own) for name, value in found.items()}

    def make(self, values: Mapping[str, Any]) -> Any:
        """The part; an inner one takes the hyperparameters of its own that have the name.

        Args:
            values: Hyperparameters.

        Returns:
            The part.
        """
        own = {f.name for f in fields(self.cls)} - set(self.given)
        given = {k: v.make(values) if isinstance(v, Part) else v for k, v in self.given.items()}
        return self.cls(**{name: values[name] for name in own if name in values}, **given)


class Preset:
    """The function from hyperparameters to the filter of four parts."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Read the parts.

        Args:
            texts: Dynamics, likelihood, posterior and basis.
        """
        self._parts = [read_part(slot, text) for slot, text in zip(SLOTS, texts, strict=True)]
        names = {k: v for part in self._parts for k, v in part.hyperparameters.items()}
        self.__signature__ = Signature(
            [Parameter(k, Parameter.KEYWORD_ONLY, default=v) for k, v in names.items()]
        )
        self.__name__ = " + ".join(texts)

    def __call__(self, **values: Any) -> Filter:
        """Make the filter.

        Args:
            **values: Hyperparameters, each for every part that has it.

        Returns:
            The filter.
        """
        return Filter(*(part.make(values) for part in self._parts))


def read_part(slot: str, text: str) -> Part:
    """Read a part.

    Args:
        slot: Where it belongs.
        text: The part.

    Returns:
        The part.

    Raises:
        UserError: If the text is no part of that slot, or has an argument that the part has not.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise UserError(f"cannot read --{slot} {text!r}; write it like {_EXAMPLES[slot]}") from None
    part = _read(node, f"--{slot} {text!r}")
    if not isinstance(part, Part) or part.cls.__name__ not in parts(slot):
        named = part.cls.__name__ if isinstance(part, Part) else text
        raise UserError(f"unknown {slot} {named!r}; there are {', '.join(parts(slot))}")
    return part


_EXAMPLES = {
    "dynamics": "FixedNoise or FixedNoise(discretization='exact')",
    "likelihood": "SquaredGradient or Averaged(CentredGradient)",
    "posterior": "Diagonal or FixedPoint('exact')",
    "basis": "Identity or KroneckerEigenbasis(update_every=10)",
}


def _read(node: ast.expr, where: str) -> Any:
    """A part, or a plain value."""
    called = isinstance(node, ast.Call)
    name = node.func if isinstance(node, ast.Call) else node
    if not isinstance(name, ast.Name):
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise UserError(f"{where}: cannot read {ast.unparse(node)!r}") from None
    cls = getattr(models, name.id, None) or getattr(approximations, name.id, None)
    if not isinstance(cls, type):
        slot = where.split()[0].removeprefix("--")
        raise UserError(f"unknown {slot} {name.id!r}; there are {', '.join(parts(slot))}")
    if not called:
        return _with_inner(cls, {})
    assert isinstance(node, ast.Call)
    names = [f.name for f in fields(cls)]
    pairs = [*zip(names, node.args, strict=False)]
    pairs += [(str(keyword.arg), keyword.value) for keyword in node.keywords]
    given = {name: _read(value, where) for name, value in pairs}
    unknown = [*(set(given) - set(names)), *(map(ast.unparse, node.args[len(names) :]))]
    if unknown:
        takes = f"it takes {', '.join(names)}" if names else "it takes nothing"
        raise UserError(f"{where}: {cls.__name__} has no argument {unknown[0]!r}; {takes}")
    return _with_inner(cls, given)


def _with_inner(cls: type[Any], given: Mapping[str, Any]) -> Part:
    """A part whose inner part, where it has one by default, is one whose arguments are known."""
    defaults = {f.name: _default(f) for f in fields(cls)}
    inner = {k: _with_inner(type(v), {}) for k, v in defaults.items() if is_dataclass(v)}
    return Part(cls, {**inner, **given})


def _default(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()
