"""The figures: curves over the learning rate, and maps over lr and lr_sgd."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's palette; a colour is an optimizer in every panel.
_STYLES = {
    "AdaBayes": ("#D55E00", "-", "o"),
    "AdaBayes-FP": ("#0072B2", "-", "s"),
    "AdamW": ("#000000", "--", "^"),
    "Bayesian RMSprop": ("#009E73", "-.", "D"),
    "SGD (momentum 0.9)": ("#CC79A7", ":", "v"),
}
_PANELS = {
    "train_loss": ("training loss", 1.0),
    "nll": ("held-out NLL", 1.0),
    "error": ("held-out error (%)", 100.0),
}
_CEILING = 3.0  # losses far above that of guessing are cut off


def plot_curves(rows: pd.DataFrame, task: str, path: Path) -> None:
    """Draw a panel per quantity: means over seeds, with a band of one standard error.

    Args:
        rows: Every run.
        task: What was learned.
        path: Where to save, without the suffix.
    """
    with _style():
        figure = Figure(figsize=(11.0, 4.3), layout="constrained")
        FigureCanvasAgg(figure)
        for axis, (name, (label, factor)) in zip(
            figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True
        ):
            for optimizer, runs in rows.groupby("optimizer", sort=False):
                _draw(axis, runs, name, factor, str(optimizer))
            _dress(axis, label, name)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        place = "outside lower center"
        figure.legend(handles, labels, loc=place, ncols=len(labels), frameon=False)
        figure.suptitle(f"{task}: sensitivity to the learning rate (mean ± standard error)")
        _save(figure, path)


def _draw(axis: Axes, runs: pd.DataFrame, name: str, factor: float, optimizer: str) -> None:
    by_rate = runs.groupby("lr")[name]
    mean = by_rate.agg(lambda x: x.mean(skipna=False)) * factor
    error = (by_rate.sem() * factor).fillna(0.0)
    colour, dashes, mark = _STYLES[optimizer]
    axis.plot(
        mean.index, mean, color=colour, linestyle=dashes, marker=mark, markersize=4,
        label=optimizer, linewidth=1.6, zorder=3,
    )  # fmt: skip
    low = np.maximum(mean - error, mean * 0.02)
    axis.fill_between(mean.index, low, mean + error, color=colour, alpha=0.15, linewidth=0)


def _dress(axis: Axes, label: str, name: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("lr")
    axis.set_ylabel(label)
    if name != "error":
        axis.set_ylim(top=_CEILING)
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def plot_maps(rows: pd.DataFrame, task: str, path: Path) -> None:
    """Draw a map per optimizer: the mean NLL over lr and lr_sgd, and below its standard error.

    Args:
        rows: Every run.
        task: What was learned.
        path: Where to save, without the suffix.
    """
    groups = list(rows.groupby("optimizer", sort=False))
    means = [one.groupby(["lr_sgd", "lr"])["nll"].agg(_all).unstack() for _, one in groups]
    errors = [one.groupby(["lr_sgd", "lr"])["nll"].sem().unstack() for _, one in groups]
    with _style():
        figure = Figure(figsize=(0.8 + 4.9 * len(groups), 7.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, len(groups), squeeze=False)
        for row, (grids, label, colours) in enumerate(
            ((means, "held-out NLL", "viridis_r"), (errors, "standard error", "magma_r"))
        ):
            values = np.concatenate([grid.to_numpy().ravel() for grid in grids])
            values = values[np.isfinite(values) & (values > 0)]
            ends = (values.min(), min(values.max(), _CEILING)) if len(values) else (0.1, 1.0)
            norm = LogNorm(ends[0], max(ends[1], ends[0] * 1.01))
            for column, ((optimizer, _), grid) in enumerate(zip(groups, grids, strict=True)):
                axis = axes[row, column]
                shown = _map(axis, grid, norm, colours, mark=row == 0)
                axis.set_title(str(optimizer) if row == 0 else "")
                axis.set_xlabel("lr" if row else "")
                axis.set_ylabel("lr_sgd" if column == 0 else "")
            bar = figure.colorbar(shown, ax=list(axes[row]), label=label, pad=0.02, extend="max")
            bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            bar.ax.yaxis.set_minor_formatter(NullFormatter())
        seeds = rows["seed"].nunique()
        figure.suptitle(f"{task}: both rates ({seeds} seeds; cross: lowest mean; grey: diverged)")
        _save(figure, path)


def _map(axis: Axes, grid: pd.DataFrame, norm: LogNorm, colours: str, *, mark: bool) -> object:
    axis.set_facecolor("#BBBBBB")
    values = np.ma.masked_invalid(grid.to_numpy())
    x, y = (np.log10(grid.columns.to_numpy(float)), np.log10(grid.index.to_numpy(float)))
    shown = axis.pcolormesh(x, y, values, norm=norm, cmap=colours, shading="nearest")
    if mark and values.count():
        row, column = np.unravel_index(int(np.ma.argmin(values)), values.shape)
        axis.plot(x[column], y[row], "x", color="#D55E00", markersize=10, markeredgewidth=2.5)
    for which, places in ((axis.xaxis, x), (axis.yaxis, y)):
        whole = list(range(int(np.ceil(places[0])), int(np.floor(places[-1])) + 1))
        which.set_ticks(whole, [f"$10^{{{p}}}$" for p in whole])
    axis.spines[:].set_visible(False)
    return shown


def _all(values: pd.Series) -> float:
    return float(values.mean(skipna=False))


def _style() -> object:
    return mpl.rc_context({"svg.hashsalt": "filteropt", "svg.fonttype": "none", "font.size": 10})


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
    figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})
