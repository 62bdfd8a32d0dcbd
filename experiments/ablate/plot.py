"""The figures: results, expected best of k trials, sensitivity to the rate, learning curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.ablate.arms import Arm
from experiments.ablate.outcomes import Outcome
from experiments.ablate.plan import Plan
from experiments.ablate.tables import best_of, scores
from experiments.plots import COLOURS, DASHES

FIGURES = {
    "results": "Test results",
    "best-of-k": "Expected best of k trials",
    "rates": "Sensitivity to the rate",
    "curves": "Learning curves",
}
_CEILING = 20.0  # times the lowest: what is worse is cut off
_BANDS = 3  # arms up to which bands that reach over decades can be told apart
_WIDE = 8.0  # from which ratio of the results on their scale is logarithmic


class Looks:
    """How arms are drawn: a panel per likelihood, a colour per dynamics, a dash for the rest."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        """Assign panels, colours and dashes.

        Args:
            arms: All of them.
        """
        self.panels = list(dict.fromkeys(map(self.panel, arms)))
        self._colours = list(dict.fromkeys(map(self._colour, arms)))
        self._rests = list(dict.fromkeys(map(self._rest, arms)))

    def panel(self, arm: Arm) -> str:
        """Title of an arm's panel."""
        return arm.texts[1] if arm.kind == "parts" else "by name"

    def line(self, arm: Arm) -> dict[str, Any]:
        """Colour, dash and label of an arm's line."""
        colour = COLOURS[self._colours.index(self._colour(arm)) % len(COLOURS)]
        dash = DASHES[1:][self._rests.index(self._rest(arm)) % (len(DASHES) - 1)]
        label = ", ".join(text for text in (self._colour(arm), self._rest(arm)) if text)
        return {"color": colour, "linestyle": dash, "label": label, "linewidth": 1.6}

    @staticmethod
    def _colour(arm: Arm) -> str:
        return arm.texts[0]

    @staticmethod
    def _rest(arm: Arm) -> str:
        texts = [text for text in arm.texts[2:] if text != "Identity"]
        return ", ".join([*texts, *(f"{name}={value}" for name, value in arm.fixed)])


def draw(
    plan: Plan, outcomes: Sequence[Outcome], rows: Sequence[dict[str, Any]], path: Path
) -> list[str]:
    """Draw one task's figures.

    Args:
        plan: What was done.
        outcomes: One task's outcomes.
        rows: What :func:`experiments.ablate.tables.arm_rows` said of them.
        path: Where to save, to which the figure's name and the suffix are added.

    Returns:
        The names of those that were drawn.
    """
    drawn = []
    with mpl.rc_context({"svg.hashsalt": "filteropt", "svg.fonttype": "none", "font.size": 10}):
        for name in FIGURES:
            figure = _results(rows) if name == "results" else _lines(name, plan, outcomes)
            if figure is None:
                continue
            figure.suptitle(f"{path.name}: {FIGURES[name][0].lower()}{FIGURES[name][1:]}")
            for suffix in ("png", "svg"):
                told = {"metadata": {"Date": None}} if suffix == "svg" else {"dpi": 130}
                figure.savefig(path.with_name(f"{path.name}-{name}.{suffix}"), **told)
            drawn.append(name)
    return drawn


def _results(rows: Sequence[dict[str, Any]]) -> Figure | None:
    """Every arm's test NLL and error with their intervals, the best on top."""
    found = [row for row in rows if "nll" in row and math.isfinite(row["nll"].estimate)]
    if not found:
        return None
    found.sort(key=lambda row: -row["nll"].estimate)
    figure = _figure(11.0, 1.4 + 0.27 * len(found))
    axes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(found))
    for axis, (name, label) in zip(
        axes, {"nll": "test NLL", "error": "test error (%)"}.items(), strict=True
    ):
        middle = np.array([row[name].estimate for row in found])
        ends = np.array([[row[name].low, row[name].high] for row in found]).T
        ends = np.maximum(np.where(np.isfinite(ends), ends, middle), 0.02 * middle)
        bars = np.abs(ends - middle)
        axis.errorbar(middle, places, xerr=bars, fmt="o", color="#0072B2", capsize=2, markersize=4)
        axis.set_xlabel(label)
        if name == "nll" and middle.max() > _WIDE * middle.min():
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            axis.set_xlim(left=max(0.0, axis.get_xlim()[0]))
        _plain(axis, "x")
    axes[0].set_yticks(places, [row["arm"] for row in found])
    return figure


def _lines(name: str, plan: Plan, outcomes: Sequence[Outcome]) -> Figure | None:
    """A panel per likelihood, a line per arm."""
    looks = Looks(plan.arms)
    lines = [(one.arm, *_line(name, plan, one)) for one in outcomes if _drawable(name, one)]
    if not lines:
        return None
    count = len(looks.panels)
    columns = min(3, count)
    figure = _figure(max(5.5, 3.8 * columns), 1.0 + 3.4 * math.ceil(count / columns))
    axes = figure.subplots(math.ceil(count / columns), columns, sharey=True, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    for arm, x, y, low, high in lines:
        axis, look = axes[looks.panels.index(looks.panel(arm))], looks.line(arm)
        axis.plot(x, y, **look)
        if name != "best-of-k" or len(lines) <= _BANDS:
            axis.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
    lowest = min(np.nanmin(y) for _, _, y, _, _ in lines)
    highest = max(np.nanmax(y) for _, _, y, _, _ in lines)
    for axis, panel in zip(axes, looks.panels, strict=False):
        axis.set_title(panel, fontsize=10)
        axis.set_yscale("log")
        axis.set_ylim(lowest * 0.9, min(highest, _CEILING * lowest) * 1.1)
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel({"best-of-k": "trials k", "rates": "rate", "curves": "epoch"}[name])
        if name == "rates":
            axis.set_xscale("log")
        else:
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _plain(axis, "both")
    axes[0].set_ylabel("test NLL" if name == "curves" else "held-out NLL")
    handles = {
        label: h
        for a in axes[:count]
        for h, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", frameon=False,
        ncols=min(3, len(handles)),
    )  # fmt: skip
    return figure


def _drawable(name: str, one: Outcome) -> bool:
    runs = {"best-of-k": one.trials, "rates": one.sensitivity, "curves": one.tests}[name]
    return bool(runs) and one.best is not None


def _line(name: str, plan: Plan, one: Outcome) -> tuple[np.ndarray, ...]:
    """Places, values, and the ends of the band."""
    if name == "best-of-k":
        found = best_of(one, plan.asked.level, independent=plan.asked.tuner == "random")
        x = np.arange(1, len(found) + 1)
        y, low, high = (
            np.array([getattr(f, k) for f in found]) for k in ("estimate", "low", "high")
        )
        return x, y, np.maximum(low, 0.02 * y), high
    if name == "rates":
        values = np.array(scores(one))
        x = np.array([dict(values)[one.arm.rate or ""] for values in one.rates])
    else:
        values = np.array([run["curves"]["nll"] for run in one.tests], float)
        x = np.arange(1, values.shape[1] + 1)
    y = values.mean(0)
    error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.zeros_like(y)
    return x, y, np.maximum(y - error, 0.02 * y), y + error


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axis: Axes, grid: str) -> None:
    axis.grid(which="major", axis=grid, color="#DDDDDD", linewidth=0.6)  # type: ignore[arg-type]  # a literal
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
