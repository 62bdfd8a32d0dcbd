"""What every reproduction writes: figures, a page in Markdown and its numbers as JSON."""

import dataclasses
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments.plan import installed
from experiments.reproduce.part import Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY, YELLOW = "#E69F00", "#56B4E9", "#000000", "#999999", "#B8A800"
_PACKAGES = ("torch", "filteropt", "numpy", "scipy", "pytorch-optimizer")


def versions() -> dict[str, str]:
    """What computed the numbers."""
    return {"python": platform.python_version()} | {name: installed(name) for name in _PACKAGES}


def command(study: Part) -> str:
    """The command line that repeats a study.

    Args:
        study: The study.

    Returns:
        The command, with the options that differ from their defaults, wherever they came from.
    """
    words = ["python", "-m", "experiments", "reproduce", study.name]
    for field in dataclasses.fields(study):
        value = getattr(study, field.name)
        if field.name == "config" or value == field.default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        values = value if isinstance(value, tuple) else (value,)
        words += [flag] if value is True else [flag, *map(str, values)]
    return shlex.join(words)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right.

    Args:
        headings: Names of the columns.
        rows: Their texts.

    Returns:
        The table.
    """
    lines = [f"| {' | '.join(row)} |" for row in (headings, *rows)]
    lines.insert(1, "|---" + "|---:" * (len(headings) - 1) + "|")
    return "\n".join(lines)


def write(
    study: Part,
    title: str,
    parts: Sequence[str],
    numbers: Mapping[str, Any],
    out: Console,
) -> None:
    """Save a study's page and numbers, and print the page.

    Args:
        study: The study.
        title: Title of the page.
        parts: Paragraphs and tables.
        numbers: What the page is made of, in plain values.
        out: Where to print.
    """
    made = {"command": command(study), "versions": versions()}
    origin = f"Made by `{made['command']}` with " + ", ".join(
        f"{package} {text}" for package, text in made["versions"].items()
    )
    page = "\n\n".join([f"# {title}", *parts, f"{origin}."])
    folder, name = study.out, study.name
    (folder / f"{name}.md").write_text(page + "\n", encoding="utf-8")
    text = json.dumps({**made, **numbers}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    out.print(page, highlight=False, markup=False, soft_wrap=True)
    out.print(f"Saved under {folder}: {name}.md, {name}.json, {name}.png", highlight=False)


def figure(width: float, height: float, rows: int, columns: int) -> tuple["Figure", Any]:
    """An empty figure in the style of the others.

    Args:
        width: Inches.
        height: Inches.
        rows: Rows of panels.
        columns: Columns of panels.

    Returns:
        The figure and an array of its panels.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 10}):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(which="major", color="#E3E3E3", linewidth=0.6)
        axis.set_axisbelow(True)
    return drawn, axes


def save(drawn: "Figure", study: Part) -> None:
    """Save a figure.

    Args:
        drawn: The figure.
        study: The study.
    """
    drawn.savefig(study.out / f"{study.name}.png", dpi=130)


def log_axes(axis: "Axes", x: str, y: str) -> None:
    """Make both axes logarithmic and name them.

    Args:
        axis: The panel.
        x: Name of the first.
        y: Name of the second.
    """
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
