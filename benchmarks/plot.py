"""The figure: optimizers' ratios to torch's fused AdamW, and where their bytes would put them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.contenders import COPY

Row = dict[str, Any]
_LISTS = {"resnet34": ("#0072B2", "o", -0.14), "transformer": ("#D55E00", "s", 0.14)}
_FLOOR, _GRID = "#555555", "#DDDDDD"


def plot_ratios(rows: list[Row], path: Path) -> None:
    """Draw a panel per size and save them as PNG and SVG, at ``path`` without its suffix."""
    rows = [row for row in rows if row["optimizer"] != COPY.name]
    sizes = sorted({row["size"] for row in rows})
    titles = list({row["title"]: row["ours"] for row in rows}.items())
    with mpl.rc_context({"svg.hashsalt": "filteropt", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(
            figsize=(2.6 + 3.0 * len(sizes), 1.3 + 0.24 * len(titles)), layout="constrained"
        )
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(sizes), sharex=True, sharey=True, squeeze=False)[0]
        for axis, size in zip(panels, sizes, strict=True):
            _draw(axis, [row for row in rows if row["size"] == size], [t for t, _ in titles])
            axis.set_title(_size(size), fontsize=10)
        panels[0].set_yticks(range(len(titles)), [title for title, _ in titles])
        for label, (_, ours) in zip(panels[0].get_yticklabels(), titles, strict=True):
            label.set_fontweight("bold" if ours else "normal")
        panels[0].set_ylim(len(titles) - 0.5, -0.5)
        figure.legend(
            handles=_legend(rows),
            loc="outside lower center",
            ncols=3 if len(sizes) > 1 else 1,
            frameon=False,
            fontsize=9,
        )
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})


def _draw(axis: Axes, rows: list[Row], titles: list[str]) -> None:
    axis.set_xscale("log")
    axis.axvline(1.0, color=_FLOOR, linewidth=0.8, zorder=1)
    for row in rows:
        colour, marker, off = _LISTS[row["shapes"]]
        y = titles.index(row["title"]) + off
        floor = [row["floor"]] * 2
        axis.plot(floor, [y - 0.2, y + 0.2], color=_FLOOR, linewidth=1.2, zorder=2)
        spread = [row["ratio_low"], row["ratio_high"]]
        axis.plot(spread, [y, y], color=colour, linewidth=1.4, zorder=3)
        axis.plot(row["ratio"], y, marker, color=colour, markersize=4.2, zorder=4)
    axis.set_xlabel("step time / torch's fused AdamW")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    if axis.get_xlim()[1] > 30 * axis.get_xlim()[0]:
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_tick_params(length=0)
    axis.grid(which="major", color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _size(size: float) -> str:
    """A number of weights in words: 1e5 weights is 10^5, 2e7 is 2 x 10^7."""
    factor, power = f"{size:.0e}".split("e")
    head = "" if factor == "1" else rf"{factor}\times "
    return rf"${head}10^{{{int(power)}}}$ weights"


def _legend(rows: list[Row]) -> list[Line2D]:
    lists = {row["shapes"] for row in rows}
    return [
        *(
            Line2D(
                [], [], color=colour, marker=marker, markersize=4.2, label=f"{name} (middle half)"
            )
            for name, (colour, marker, _) in _LISTS.items()
            if name in lists
        ),
        Line2D(
            *([], []),
            color=_FLOOR,
            linestyle="none",
            marker="|",
            markersize=8,
            label="ratio of the bytes that must be moved",
        ),
    ]
