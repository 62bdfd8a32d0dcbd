"""The figures: loss against steps and seconds, and the steps to the target at a glance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.kronecker.study import Outcome
from experiments.kronecker.tables import reached
from experiments.stats import mean_and_error

# Okabe and Ito's palette: the filters are solid, the others dashed.
_STYLES: dict[str, tuple[str, Any]] = {
    "adamw": ("#000000", "-"),
    "soap": ("#0072B2", "--"),
    "shampoo": ("#009E73", "--"),
    "singd": ("#CC79A7", "--"),
    "adabayes-fp": ("#999999", "-"),
    "eigenbasis-soap": ("#56B4E9", "-"),
    "eigenbasis": ("#D55E00", "-"),
    "kronecker-forward": ("#E69F00", "-"),
    "kronecker-reverse": ("#8856A7", "-"),
}
_AXES = {"step": "steps", "seconds": "seconds of processor time"}


def plot_curves(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw one task's loss against steps and against seconds.

    Args:
        outcomes: What was found on it.
        path: Where to save, without the suffix.
    """
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, words) in zip(axes, _AXES.items(), strict=True):
        for outcome in outcomes:
            _draw(axis, outcome, name)
        axis.axhline(outcomes[0].target, color="#555555", linestyle=":", linewidth=1.0, zorder=1)
        axis.set_xlabel(words)
        _dress(axis)
    axes[0].set_xlim(left=0)
    starts = [result["curves"]["loss"][:1] for o in outcomes for result in o.results]
    axes[0].set_ylim(top=1.5 * max(start[0] for start in starts if start))  # above it is divergence
    axes[0].set_ylabel("loss on training examples")
    axes[0].annotate(
        "target",
        (1.0, outcomes[0].target),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color="#555555",
    )
    axes[1].set_xscale("log")
    axes[1].xaxis.set_major_formatter(FuncFormatter(_plain))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"{outcomes[0].task.name} (mean ± standard error over seeds)", fontsize=11)
    _save(figure, path)


def _draw(axis: Axes, outcome: Outcome, name: str) -> None:
    """Draw the mean of an optimizer's runs and its error, as far as all of them go."""
    curves = [result["curves"] for result in outcome.results]
    length = min(len(found["loss"]) for found in curves)
    if length == 0:
        return
    x = np.mean([found[name][:length] for found in curves], 0)
    y = np.array([found["loss"][:length] for found in curves])
    mean = y.mean(0)
    error = y.std(0, ddof=1) / len(y) ** 0.5 if len(y) > 1 else np.zeros_like(mean)
    colour, dashes = _STYLES[outcome.contender.name]
    if name == "seconds":  # whose axis is logarithmic
        x, mean, error = x[1:], mean[1:], error[1:]
    thick = 1.9 if outcome.contender.ours else 1.4
    axis.plot(
        x, mean, color=colour, linestyle=dashes, linewidth=thick, label=outcome.contender.title
    )
    low = np.maximum(mean - error, mean * 0.02)
    axis.fill_between(x, low, mean + error, color=colour, alpha=0.18, linewidth=0)


def plot_overview(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw every optimizer's steps and seconds to the target, one column per task.

    Args:
        outcomes: What was found.
        path: Where to save, without the suffix.
    """
    tasks = list(dict.fromkeys(outcome.task.name for outcome in outcomes))
    titles = list(dict.fromkeys(outcome.contender.title for outcome in outcomes))
    height = 2 * (0.27 * len(titles) + 0.8)
    figure = Figure(figsize=(max(5.5, 2.9 * len(tasks) + 1.2), height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(tasks), sharey=True, squeeze=False)
    for column, task in enumerate(tasks):
        for row, words in enumerate(("steps to the target", "seconds to the target")):
            axis = axes[row][column]
            for outcome in (o for o in outcomes if o.task.name == task):
                _point(axis, outcome, row, titles.index(outcome.contender.title))
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(_plain))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel(words)
            axis.grid(axis="x", color="#DDDDDD", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][column].set_title(task, fontsize=10)
    for row in axes:
        row[0].set_yticks(range(len(titles)), titles)
        row[0].set_ylim(len(titles) - 0.5, -0.5)
    _save(figure, path)


def _point(axis: Axes, outcome: Outcome, row: int, place: int) -> None:
    """Draw a mean and its error; an arrow head where a run has not reached the target."""
    colour, _ = _STYLES[outcome.contender.name]
    values = reached(outcome)[row]
    if len(values) == len(outcome.results):
        mean, error = mean_and_error(values)
        axis.errorbar(mean, place, xerr=np.nan_to_num(error), fmt="o", color=colour, markersize=5.5)
        return
    ends = [r["curves"]["seconds" if row else "step"][-1:] or [1] for r in outcome.results]
    axis.plot(max(end[0] for end in ends), place, ">", color=colour, fillstyle="none")


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _dress(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(_plain))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "filteropt", "svg.fonttype": "none"}):
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})
