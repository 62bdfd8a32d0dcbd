"""The figures: curves of the best settings, and what the filters' steps are made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FormatStrFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from experiments.momentum.quadratic import TARGET, Quadratic
from experiments.momentum.runs import Problem
from experiments.momentum.study import Outcome

# Okabe and Ito's palette; a colour is an optimizer in every panel.
_STYLES: dict[str, tuple[str, Any]] = {
    "momentum": ("#D55E00", "-"),
    "momentum-stationary": ("#E69F00", (0, (5, 1.5))),
    "momentum-gn": ("#0072B2", "-"),
    "momentum-gn-stationary": ("#56B4E9", (0, (5, 1.5))),
    "nesterov": ("#000000", "-"),
    "adam": ("#009E73", "-."),
    "nadam": ("#CC79A7", ":"),
}
_WINDOW = 9  # points of the running mean
_SHARES = ("recursive", "stationary")
_ROWS = {
    "recursive": "recursive: momentum's\nshare of the step",
    "stationary": "stationary: momentum's\nshare of the step",
    "rate": "rate of the gradient,\n" + r"$r\,B\,\Sigma_{ww}$ (median)",
    "ratio": r"$\eta\,\Sigma_{wp}/\Sigma_{ww}$ (median)," + "\n" + r"in units of $1-\eta_p$",
}


def plot_curves(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw a panel per problem (two for a task: its training loss and its test NLL).

    Args:
        outcomes: What was found.
        path: Where to save, without the suffix.
    """
    panels = [
        (problem, name)
        for problem in _problems(outcomes)
        for name in (("loss",) if isinstance(problem, Quadratic) else ("train_loss", "test_nll"))
    ]
    figure, axes = _figure(1, len(panels), 4.1)
    for axis, (problem, name) in zip(axes[0], panels, strict=True):
        for outcome in _mine(outcomes, problem):
            _draw_curves(axis, outcome, name)
        axis.set_yscale("log")
        if isinstance(problem, Quadratic):
            axis.set_title(problem.name, fontsize=10)
            averaged = "" if problem.batch is None else " (running mean)"
            axis.set_ylabel(f"loss above its minimum, relative{averaged}")
            axis.set_xlabel("step")
            if problem.batch is None:
                axis.axhline(TARGET, color="#999999", linewidth=0.8, zorder=1)
                axis.set_ylim(bottom=TARGET / 3)
        else:
            words = {"train_loss": "training loss", "test_nll": "test NLL"}[name]
            axis.set_title(f"{problem.name}: {words}", fontsize=10)
            axis.set_xlabel("epoch")
        _dress(axis)
    _save(figure, _legend(outcomes), path)


def _draw_curves(axis: Axes, outcome: Outcome, name: str) -> None:
    """Draw every seed; with noisy gradients a running mean over steps, and over seeds."""
    colour, dashes = _STYLES[outcome.best.arm.entry.name]
    problem = outcome.best.problem
    lines = []
    for result in outcome.results:
        y = np.array([np.nan if value is None else value for value in result["curves"][name]])
        lines.append((result["curves"].get("step", range(1, len(y) + 1)), y.astype(float)))
    if isinstance(problem, Quadratic) and problem.batch is not None:
        length = min(len(y) for _, y in lines)
        mean = pd.Series(np.mean([y[:length] for _, y in lines], 0))
        smooth = mean.rolling(_WINDOW, min_periods=1, center=True).mean()
        lines = [(list(lines[0][0])[:length], smooth.to_numpy())]
    for k, (x, y) in enumerate(lines):
        thick, alpha = (1.5, 1.0) if k == 0 else (0.5, 0.6)
        axis.plot(x, y, color=colour, alpha=alpha, linewidth=thick, linestyle=dashes)


def plot_splits(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw, for every problem, the momentum's share, the gradient's rate, and their relation.

    Args:
        outcomes: What was found.
        path: Where to save, without the suffix.
    """
    filters = [outcome for outcome in outcomes if outcome.split is not None]
    problems = _problems(filters)
    figure, axes = _figure(len(_ROWS), len(problems), 2.3)
    for column, problem in enumerate(problems):
        axes[0][column].set_title(problem.name, fontsize=10)
        axes[-1][column].set_xlabel("step")
        for row, (name, words) in enumerate(_ROWS.items()):
            axis = axes[row][column]
            for outcome in _mine(filters, problem):
                stationary = outcome.best.arm.entry.name.endswith("stationary")
                if name not in _SHARES or stationary == (name == "stationary"):
                    _draw_split(axis, outcome, name)
            if column == 0:
                axis.set_ylabel(words)
            if name in _SHARES:
                axis.set_ylim(0, 1)
                axis.yaxis.set_major_formatter(PercentFormatter(1.0))
            else:
                axis.set_yscale("log")
            if name == "ratio":
                axis.axhline(1.0, color="#000000", linewidth=0.8, zorder=1)
            _dress(axis)
    nesterov = Line2D([], [], color="#000000", linewidth=0.8, label="1: SGD, Nesterov")
    band = Patch(color="#DDDDDD", label="80 % of the weights, by step length")
    _save(figure, [*_legend(filters), nesterov, band], path)


def _draw_split(axis: Axes, outcome: Outcome, name: str) -> None:
    assert outcome.split is not None, "a filter"
    colour, dashes = _STYLES[outcome.best.arm.entry.name]
    curves = outcome.split["curves"]
    y = np.array(curves["middle" if name in _SHARES else name])
    y = np.where(y > 0, y, y if name in _SHARES else np.nan)  # before the first prediction
    axis.plot(curves["step"], y, color=colour, linestyle=dashes, linewidth=1.4)
    if name in _SHARES:
        low, high = curves["low"], curves["high"]
        axis.fill_between(curves["step"], low, high, color=colour, alpha=0.16, linewidth=0)


def _figure(rows: int, columns: int, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(max(6.0, 3.6 * columns), height * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Figure, handles: Sequence[Line2D | Patch], path: Path) -> None:
    columns = 2 if figure.get_figwidth() < 9 else 4
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    with mpl.rc_context({"svg.hashsalt": "filteropt", "svg.fonttype": "none"}):
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})


def _problems(outcomes: Sequence[Outcome]) -> list[Problem]:
    return list({o.best.problem.name: o.best.problem for o in outcomes}.values())


def _mine(outcomes: Sequence[Outcome], problem: Problem) -> list[Outcome]:
    return [o for o in outcomes if o.best.problem.name == problem.name]


def _legend(outcomes: Sequence[Outcome]) -> list[Line2D]:
    entries = {o.best.arm.entry.name: o.best.arm.entry.title for o in outcomes}
    return [
        Line2D([], [], color=_STYLES[name][0], linestyle=_STYLES[name][1], label=title)
        for name, title in entries.items()
    ]


def _dress(axis: Axes) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if axis.get_yscale() == "log":
        low, high = axis.get_ylim()
        if high < 100 * low:
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        else:
            axis.yaxis.set_major_locator(LogLocator(numticks=7))
        axis.yaxis.set_minor_locator(NullLocator())  # they take most of the time to draw
    axis.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
