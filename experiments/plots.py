"""Learning curves: mean over seeds, with a band of one standard error."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's palette, which stays distinct under the common forms of colour blindness.
COLOURS = ("#D55E00", "#0072B2", "#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_PANELS = {
    "train_loss": ("training loss", 1.0),
    "test_nll": ("test NLL", 1.0),
    "test_error": ("test error (%)", 100.0),
}


def plot_curves(curves: pd.DataFrame, title: str, path: Path) -> None:
    """Draw one task's curves and save them as PNG and SVG.

    Args:
        curves: The task's part of what :func:`experiments.stats.curve_rows` returned.
        title: Title of the figure.
        path: Where to save, without the suffix.
    """
    with mpl.rc_context({"svg.hashsalt": "filteropt", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(11.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(_PANELS))
        for axis, (name, (label, factor)) in zip(axes, _PANELS.items(), strict=True):
            for k, (optimizer, runs) in enumerate(curves.groupby("optimizer", sort=False)):
                _draw(axis, runs, name, factor, str(optimizer), k)
            _dress(axis, label)
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(
                handles,
                labels,
                loc="outside lower center",
                ncols=min(6, len(labels)),
                frameon=False,
            )
        figure.suptitle(f"{title} (mean ± standard error)")
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})


def _draw(axis: Axes, runs: pd.DataFrame, name: str, factor: float, optimizer: str, k: int) -> None:
    by_epoch = runs.groupby("epoch")[name]
    mean = by_epoch.mean() * factor
    error = (by_epoch.sem() * factor).fillna(0.0)
    colour = COLOURS[k % len(COLOURS)]
    axis.plot(
        mean.index,
        mean,
        label=optimizer,
        color=colour,
        linestyle=DASHES[k % len(DASHES)],
        linewidth=1.6,
        zorder=3 if k < 2 else 2,
    )
    low = np.maximum(mean - error, mean * 0.02)
    axis.fill_between(mean.index, low, mean + error, color=colour, alpha=0.15, linewidth=0)


def _plain(value: float, _: int) -> str:
    return np.format_float_positional(value, trim="-")


def _dress(axis: Axes, label: str) -> None:
    axis.set_yscale("log")
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(_plain))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
