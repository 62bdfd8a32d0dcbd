"""The figures: every method at a glance, reliability diagrams, and what a shift does."""

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
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.uncertainty.metrics import BINS
from experiments.uncertainty.shifts import ANGLES
from experiments.uncertainty.study import Outcome

# Okabe and Ito's palette.
_KINDS = {
    "point": ("#000000", "o", "point estimate"),
    "scaled": ("#E69F00", "D", "point estimate, logits scaled"),
    "posterior": ("#D55E00", "s", "posterior predictive (or average)"),
    "laplace": ("#0072B2", "^", "last-layer Laplace"),
}
_OVERVIEW = {
    "nll": ("NLL", 1.0),
    "ece": ("ECE (%)", 100.0),
    "rotated_nll": ("NLL, rotated images", 1.0),
    "auroc": ("AUROC, foreign digits (%)", 100.0),
}
_SHIFT = {
    "error": ("error (%)", 100.0),
    "nll": ("NLL", 1.0),
    "ece": ("ECE (%)", 100.0),
    "auroc": ("AUROC of the entropy\nagainst upright images (%)", 100.0),
}
_LINES: tuple[tuple[str, Any], ...] = (
    ("#D55E00", "-"),
    ("#0072B2", "-"),
    ("#009E73", "-"),
    ("#CC79A7", "-"),
    ("#E69F00", "-."),
    ("#56B4E9", "-."),
    ("#000000", "-"),
    ("#000000", "--"),
    ("#000000", ":"),
)
_FEWEST = 20  # predictions in a bin, over all seeds


def plot_overview(summary: pd.DataFrame, path: Path) -> None:
    """Draw every method's metrics, one row each.

    Args:
        summary: What :func:`experiments.uncertainty.tables.summarise` returned.
        path: Where to save, without the suffix.
    """
    titles = list(dict.fromkeys(summary["title"]))
    figure = Figure(figsize=(11.5, 0.30 * len(titles) + 1.5), layout="constrained")
    axes = _axes(figure, 1, len(_OVERVIEW), sharey=True)[0]
    for axis, (name, (words, factor)) in zip(axes, _OVERVIEW.items(), strict=True):
        for kind, (colour, marker, _) in _KINDS.items():
            mine = summary[summary["predictive"] == kind]
            if kind == "scaled":
                mine = mine[mine["method"] == "adamw"]
            axis.errorbar(
                mine[name] * factor,
                [titles.index(title) for title in mine["title"]],
                xerr=(mine[f"{name}_se"] * factor).fillna(0.0),
                fmt=marker,
                color=colour,
                markerfacecolor="white" if kind == "point" else colour,
                markersize=4.5,
                linewidth=1.0,
            )
        axis.set_xlabel(words)
        if name == "nll":  # some are several times as large
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(0.7, 1.0, 1.4, 2.0, 3.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}"))
            axis.xaxis.set_minor_locator(NullLocator())
        _dress(axis)
    axes[0].set_yticks(range(len(titles)), titles)
    axes[0].set_ylim(len(titles) - 0.4, -0.6)
    shown = [kind for kind in _KINDS if kind in set(summary["predictive"])]
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            linestyle="",
            markersize=5,
            markerfacecolor="white" if kind == "point" else colour,
            label=words,
        )
        for kind, (colour, marker, words) in _KINDS.items()
        if kind in shown
    ]
    _save(figure, handles, path)


def plot_reliability(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw how often predictions of a confidence are right, over all seeds together.

    Args:
        outcomes: What was found.
        path: Where to save, without the suffix.
    """
    columns = min(6, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure = Figure(figsize=(max(6.0, 2.25 * columns), 2.4 * rows + 0.6), layout="constrained")
    axes = _axes(figure, rows, columns, sharex=True, sharey=True)
    for axis, outcome in zip(axes.flat, outcomes, strict=False):
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, zorder=1)
        for kind, (colour, marker, _) in _KINDS.items():
            if kind == "scaled" and outcome.method.name != "adamw":
                continue
            x, y, error = pooled_bins(outcome, kind)
            axis.errorbar(
                x,
                y,
                yerr=error,
                color=colour,
                marker=marker,
                markerfacecolor="white" if kind == "point" else colour,
                markersize=3.5,
                linewidth=1.0,
            )
        axis.set_title(outcome.method.title, fontsize=8.5)
        axis.set_aspect("equal")
        axis.set_xlim(0.2, 1.03)
        axis.set_ylim(0.2, 1.03)
        axis.set_xticks([0.2, 0.4, 0.6, 0.8, 1.0])
        axis.set_yticks([0.2, 0.4, 0.6, 0.8, 1.0])
        _dress(axis)
    for axis in axes.flat[len(outcomes) :]:
        axis.set_visible(False)
    for k in range(columns):
        last = axes[(len(outcomes) - 1 - k) // columns][k]
        last.set_xlabel("confidence", fontsize=9)
        last.tick_params(labelbottom=True)
    for row in axes:
        row[0].set_ylabel("accuracy", fontsize=9)
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=4, label=words)
        for colour, marker, words in _KINDS.values()
    ]
    _save(figure, handles, path)


def pooled_bins(outcome: Outcome, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence and accuracy in the bins that hold enough predictions.

    Args:
        outcome: What was found of a method.
        kind: The predictive distribution.

    Returns:
        Confidences, accuracies and their binomial standard errors, all empty where there is none.
    """
    found = [r["curves"][kind] for r in outcome.results if kind in r["curves"]]
    sums = {
        name: np.sum([curves[name] for curves in found], 0) if found else np.zeros(BINS)
        for name in ("bin_count", "bin_confidence", "bin_hits")
    }
    count = sums["bin_count"]
    kept = count >= _FEWEST
    accuracy = sums["bin_hits"][kept] / count[kept]
    error = np.sqrt(accuracy * (1 - accuracy) / count[kept])
    return sums["bin_confidence"][kept] / count[kept], accuracy, error


def plot_shift(outcomes: Sequence[Outcome], filters: Sequence[str], path: Path) -> None:
    """Draw metrics over the angle by which images are rotated.

    Args:
        outcomes: What was found.
        filters: The filters to show.
        path: Where to save, without the suffix.
    """
    wanted = [(name, "posterior") for name in (*filters, "ivon", "vogn", "dropout", "ensemble")]
    wanted += [("adamw", "laplace"), ("adamw", "scaled"), ("adamw", "point")]
    places = {outcome.method.name: outcome for outcome in outcomes}
    kinds = [(places[name], kind) for name, kind in wanted if name in places]
    figure = Figure(figsize=(13.0, 4.0), layout="constrained")
    axes = _axes(figure, 1, len(_SHIFT))[0]
    handles = []
    for (outcome, kind), (colour, dashes) in zip(kinds, _LINES, strict=False):
        title = outcome.method.title
        label = title if kind == "posterior" else f"{title}, {_KINDS[kind][2]}"
        for axis, (name, (_, factor)) in zip(axes, _SHIFT.items(), strict=True):
            curves = [r["curves"][kind][name] for r in outcome.results if kind in r["curves"]]
            if curves:
                y = pd.DataFrame(curves) * factor
                mean, error = y.mean(), y.sem().fillna(0.0)
                axis.plot(ANGLES, mean, color=colour, linestyle=dashes, linewidth=1.3)
                axis.fill_between(
                    ANGLES, mean - error, mean + error, color=colour, alpha=0.12, linewidth=0
                )
        handles.append(Line2D([], [], color=colour, linestyle=dashes, label=label))
    for axis, (words, _) in zip(axes, _SHIFT.values(), strict=True):
        axis.set_xlabel("rotation (degrees)")
        axis.set_ylabel(words)
        axis.set_xticks(range(0, 181, 45))
        _dress(axis)
    _save(figure, handles, path)


def _axes(figure: Figure, rows: int, columns: int, **shared: bool) -> Any:
    FigureCanvasAgg(figure)
    return figure.subplots(rows, columns, squeeze=False, **shared)


def _dress(axis: Axes) -> None:
    axis.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _save(figure: Figure, handles: Sequence[Line2D], path: Path) -> None:
    columns = 2 if figure.get_figwidth() < 9 else 4
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )
    with mpl.rc_context({"svg.hashsalt": "filteropt", "svg.fonttype": "none"}):
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})
