"""The figure: one small panel per limit, measured errors against the derived law."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from experiments.limits.catalogue import IDENTITIES
from experiments.limits.laws import WINDOW, Decay, Identity, Verdict

_COLOURS = ("#0072B2", "#D55E00")  # blue and vermilion of Okabe and Ito's palette
_BAND, _LAW = "#E8E8E8", "#555555"
_COLUMNS = 4
_MARKS = 24  # drawn of a curve with more points
_FLOOR = 3e-17


def plot_limits(verdicts: Sequence[Verdict], path: Path) -> None:
    """Draw the panels and save them as PNG and SVG.

    Args:
        verdicts: What was found, cases of one panel together.
        path: Where to save, without the suffix.
    """
    panels = [list(group) for _, group in groupby(verdicts, lambda v: v.case.panel)]
    with mpl.rc_context({"svg.hashsalt": "filteropt", "svg.fonttype": "none", "font.size": 9}):
        rows = math.ceil(sum(map(_width, panels)) / _COLUMNS)
        figure = Figure(figsize=(12.0, 2.75 * rows + 0.5), layout="constrained")
        FigureCanvasAgg(figure)
        grid = GridSpec(rows, _COLUMNS, figure=figure)
        place = 0
        for panel in panels:
            row, column = divmod(place, _COLUMNS)
            wide = min(_width(panel), _COLUMNS - column)
            axis = figure.add_subplot(grid[row, column : column + wide])
            _draw_panel(axis, panel, first=column == 0)
            place += wide
        figure.legend(
            handles=_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=10
        )
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})


def _width(panel: Sequence[Verdict]) -> int:
    return 2 if panel[0].case.panel == IDENTITIES else 1


def _draw_panel(axis: Axes, panel: Sequence[Verdict], *, first: bool) -> None:
    axis.set_title(panel[0].case.panel, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    if isinstance(panel[0].curve.law, Identity):
        _draw_identities(axis, panel)
        return
    decays = isinstance(panel[0].curve.law, Decay)
    axis.set_yscale("log")
    if not decays:
        axis.set_xscale("log")
    for k, verdict in enumerate(panel):
        _draw_curve(axis, verdict, k)
    _label_curves(axis, panel, right=decays)
    _dress(axis, panel[0].case.parameter, decays=decays, first=first)
    _frame(axis, panel)


def _draw_curve(axis: Axes, verdict: Verdict, k: int) -> None:
    curve = verdict.curve
    assert not isinstance(curve.law, Identity), "identities are drawn otherwise"
    law = curve.law(curve.x)
    axis.plot(curve.x, law, color=_LAW, linewidth=1.1, zorder=2)
    chosen = torch.zeros_like(verdict.fitted)
    chosen[:: max(1, len(chosen) // _MARKS)] = True
    chosen &= curve.error > 0
    for which, face in ((verdict.fitted, _COLOURS[k]), (~verdict.fitted, "white")):
        axis.plot(
            curve.x[which & chosen],
            curve.error[which & chosen],
            linestyle="none",
            marker="os"[k],
            markersize=4.2,
            markerfacecolor=face,
            markeredgecolor=_COLOURS[k],
            markeredgewidth=0.9,
            zorder=3,
        )


def _label_curves(axis: Axes, panel: Sequence[Verdict], *, right: bool) -> None:
    """Write each law and what was measured, in the corner that the curves leave free."""
    for k, verdict in enumerate(panel):
        law, name = verdict.curve.law, verdict.case.label
        assert not isinstance(law, Identity), "identities are drawn otherwise"
        slope = math.exp(verdict.slope) if isinstance(law, Decay) else verdict.slope
        theory = law.factor if isinstance(law, Decay) else law.order
        axis.annotate(
            f"{name}{': ' if name else ''}theory {_formula(law.constant, theory, decays=right)}\n"
            f"measured {_formula(verdict.constant, slope, decays=right)}",
            (0.99 if right else 0.02, 0.99 - 0.19 * k),
            xycoords="axes fraction",
            ha="right" if right else "left",
            va="top",
            fontsize=8.5,
            color=_COLOURS[k] if len(panel) > 1 else "#222222",
        )


def _formula(constant: float, slope: float, *, decays: bool) -> str:
    if not math.isfinite(slope):
        return "nothing"
    factor, power = f"{constant:.4g}", f"{slope:.4g}"
    if decays:
        return rf"${factor}\times{power}^{{\,t}}$"
    shown = "x" if power == "1" else rf"x^{{{power}}}"
    return rf"${shown}$" if factor == "1" else rf"${factor}\,{shown}$"


def _frame(axis: Axes, panel: Sequence[Verdict]) -> None:
    """Show every error, with room above for the labels."""
    errors = torch.cat([v.curve.error for v in panel])
    errors = errors[errors.isfinite() & (errors > 0)]
    if not len(errors):
        return
    low = max(errors.min().log10().item(), math.log10(_FLOOR)) - 0.3
    high = errors.max().log10().item()
    room = 0.05 + 0.17 * len(panel)
    axis.set_ylim(10**low, 10 ** (high + room / (1 - room) * (high - low)))
    ticks = LogLocator(numticks=6).tick_values(10**low, 10**high)
    axis.set_yticks([tick for tick in ticks if 10**low <= tick <= 2 * 10**high])
    if 10**low < WINDOW[0]:
        axis.axhspan(10**low, WINDOW[0], color=_BAND, linewidth=0, zorder=0)


def _dress(axis: Axes, parameter: str, *, decays: bool, first: bool) -> None:
    axis.set_xlabel(parameter if decays else f"x = {parameter}")
    if first:
        axis.set_ylabel("relative error")
    axis.yaxis.set_minor_locator(NullLocator())
    if decays:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    else:
        axis.xaxis.set_major_locator(LogLocator(numticks=5))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(which="major", color="#DDDDDD", linewidth=0.6, zorder=1)
    axis.set_axisbelow(True)


def _draw_identities(axis: Axes, panel: Sequence[Verdict]) -> None:
    axis.set_xscale("log")
    for k, verdict in enumerate(panel):
        law = verdict.curve.law
        assert isinstance(law, Identity), "a panel of identities"
        errors = verdict.curve.error.clamp_min(_FLOOR)
        axis.plot([law.tolerance] * 2, [k - 0.3, k + 0.3], color=_LAW, linewidth=1.4)
        axis.plot(errors, [k] * len(errors), "o", color=_COLOURS[0], markersize=5)
        text = f"{verdict.case.composition}\n= {verdict.case.limit}"
        axis.text(1e-9, k, text, va="center", fontsize=8.5)
    axis.set_xlim(_FLOOR / 3, 1e-1)
    axis.set_ylim(len(panel) - 0.5, -0.5)
    axis.set_xticks([10.0**k for k in (-16, -14, -12, -10)])
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.spines["bottom"].set_bounds(_FLOOR / 3, 1e-10)
    axis.minorticks_off()
    axis.set_xlabel("largest relative error (bar: tolerance)", x=0.0, ha="left")
    axis.grid(which="major", axis="x", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)


def _legend() -> list[Line2D | Patch]:
    dot = partial(Line2D, [], [], linestyle="none", marker="o", markeredgecolor=_COLOURS[0])
    return [
        Line2D([], [], color=_LAW, linewidth=1.4, label="theory: order and constant"),
        dot(markerfacecolor=_COLOURS[0], label="measured, fitted"),
        dot(markerfacecolor="white", label="measured, not fitted"),
        Patch(color=_BAND, label="rounding"),
    ]
