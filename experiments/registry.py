"""Tasks and compositions by name, and how a user's own file adds to them.

A plugin is a Python file with decorated functions, given by ``--plugin my_tasks.py``::

    from experiments.registry import composition, task

    @task("spirals", model=lambda: mlp(inputs=2, hidden=32, classes=3), classes=3, epochs=30)
    def spirals() -> Dataset:
        "Three spirals in the plane"
        ...

    @composition("mine", lr=(1e-4, 1e-1))
    def mine(lr: float = 1e-3, batch_size: int = 1) -> Filter:
        "Fixed noise and squared gradients"
        ...
"""

import hashlib
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from experiments.data import Dataset, Source
from experiments.errors import UserError
from experiments.tasks import TASKS, Task
from filteropt import presets
from filteropt.engine import Filter
from filteropt.testing import parts

SLOTS = ("dynamics", "likelihood", "posterior", "basis")


@dataclass(frozen=True)
class Composition:
    """A function from hyperparameters to a filter, by name.

    Attributes:
        name: The name used on the command line.
        description: One line for the user.
        build: The function.
        search: Ranges of hyperparameters to tune, beside the usual ones.
        keywords: Arguments of the optimizer whose default differs.
    """

    name: str
    description: str
    build: Callable[..., Filter]
    search: dict[str, tuple[float, float]] = field(default_factory=dict)
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plugin:
    """A user's file: its text travels with the runs, so that any process can read it."""

    path: str
    text: str

    @property
    def version(self) -> str:
        """A hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


def first_line(documented: Any) -> str:
    """The first line of a docstring.

    Args:
        documented: A function or a class.

    Returns:
        The line, without its full stop and marks.
    """
    lines = (getattr(documented, "__doc__", None) or "").strip().splitlines()
    plain = re.sub(r":[\w:]+:`([^`]*)`|``", r"\1", lines[0] if lines else "")
    return plain.replace("\\Sigma", "Σ").replace("\\Lambda", "Λ").rstrip(".")


def _shipped() -> dict[str, Composition]:
    """The presets of filteropt; of one that has a class, with the class' word on its defaults."""
    found = [getattr(presets, name) for name in presets.__all__]
    classes = {made.preset: made for made in found if isinstance(made, type)}
    return {
        name.replace("_", "-"): Composition(
            name.replace("_", "-"),
            first_line(classes.get(build, build)),
            build,
            keywords=dict(classes[build].keywords) if build in classes else {},
        )
        for name, build in zip(presets.__all__, found, strict=True)
        if not isinstance(build, type)
    }


COMPOSITIONS = _shipped()


def task(
    name: str,
    *,
    model: Callable[[], nn.Module],
    classes: int,
    batch_size: int = 64,
    epochs: int = 20,
    cost: float = 0.1,
) -> Callable[[Callable[[], Dataset]], Callable[[], Dataset]]:
    """Register a classification task; decorates the function that makes its data.

    Args:
        name: The name used on the command line.
        model: Builds the network, from inputs ``(n, ...)`` to logits ``(n, classes)``.
        classes: Number of classes.
        batch_size: Examples per step.
        epochs: Passes over the training examples.
        cost: Seconds per epoch on one core, roughly; weighs the progress bar.

    Returns:
        The decorator. The function returns training and test examples, an
        :class:`experiments.data.Dataset`; its docstring's first line describes the task.
    """

    def register(load: Callable[[], Dataset]) -> Callable[[], Dataset]:
        source = Source(partial(_load, load))
        made = (model, classes, batch_size, epochs, epochs, cost)
        TASKS[_new(name, TASKS)] = Task(name, first_line(load), source, *made)
        return load

    return register


def composition(
    name: str, **search: tuple[float, float]
) -> Callable[[Callable[..., Filter]], Callable[..., Filter]]:
    """Register a composition; decorates a function from hyperparameters to a filter.

    ``batch_size``, ``scale``, ``dataset_size``, ``steps_per_epoch`` and ``loss`` are told by the
    task to a function that takes them.

    Args:
        name: The name used on the command line.
        **search: Ranges of hyperparameters to tune, such as ``lr=(1e-4, 1e-1)``.

    Returns:
        The decorator; the function's docstring's first line describes the composition.
    """

    def register(build: Callable[..., Filter]) -> Callable[..., Filter]:
        COMPOSITIONS[_new(name, COMPOSITIONS)] = Composition(
            name,
            first_line(build),
            build,
            {k: (float(a), float(b)) for k, (a, b) in search.items()},
        )
        return build

    return register


def _load(load: Callable[[], Dataset], _: Path) -> Dataset:
    return load()


def _new(name: str, known: dict[str, Any]) -> str:
    if name in known:
        raise UserError(f"the name {name!r} is taken; choose another")
    return name


_LOADED: dict[str, str] = {}


def load_plugins(plugins: Sequence[Plugin]) -> None:
    """Execute users' files, each once in a process.

    Args:
        plugins: The files.

    Raises:
        UserError: If a file raises an error, or registers a name that is taken.
    """
    for plugin in plugins:
        if _LOADED.get(plugin.path) == plugin.version:
            continue
        try:
            code = compile(plugin.text, plugin.path, "exec")
            exec(code, {"__name__": "experiments_plugin", "__file__": plugin.path})
        except Exception as fault:  # whatever a user's file raises is one line about that file
            line = traceback.extract_tb(fault.__traceback__)[-1].lineno
            where = getattr(fault, "lineno", None) or line
            what = fault if isinstance(fault, UserError) else f"{type(fault).__name__}: {fault}"
            raise UserError(f"--plugin {plugin.path}, line {where}: {what}") from fault
        _LOADED[plugin.path] = plugin.version


def read_plugins(paths: Sequence[Path]) -> tuple[Plugin, ...]:
    """Read and execute users' files.

    Args:
        paths: Where they are.

    Returns:
        The files.

    Raises:
        UserError: If one cannot be read, or fails.
    """
    found = []
    for path in paths:
        try:
            found.append(Plugin(str(path.resolve()), path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as fault:
            reason = getattr(fault, "strerror", None) or "it is not text"
            raise UserError(f"--plugin {path} cannot be read: {reason}") from fault
    load_plugins(found)
    return tuple(found)


def listing() -> dict[str, dict[str, str]]:
    """Describe the compositions and the parts.

    Returns:
        For each heading, names with one line each.
    """
    described = {name: made.description for name, made in COMPOSITIONS.items()}
    found = {"Compositions (ablate --compositions)": described}
    for slot in SLOTS:
        lines = {name: first_line(cls) for name, cls in parts(slot).items()}
        found[f"Parts: {slot} (ablate --{slot})"] = lines
    return found
