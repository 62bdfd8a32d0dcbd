"""The table and the figure of the study of the gap."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.gap import EDGE, END, GRID, NOISE, TITLES, Band, Data

HEADINGS = ("method", "at data", "in gap", "gap/data", "gap/exact", "error")
_BLUE, _ORANGE, _DOTS = "#0072B2", "#D55E00", "#222222"


def write_report(data: Data, bands: Mapping[str, Band], out: Path, console: Console) -> None:
    """Print the table; save it and the figure.

    Args:
        data: The examples.
        bands: What every method predicts, the reference among them.
        out: Where to save.
        console: Where to print.
    """
    rows = [cells(name, band, bands["reference"]) for name, band in bands.items()]
    table = Table(*HEADINGS, box=None, padding=(0, 1))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    note = (
        "Median standard deviations due to the weights, at data and in the gap; error of the mean."
    )
    console.print(note, highlight=False)
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (out / "table.md").write_text(f"{text}\n\n{note}\n", encoding="utf-8")
    plot_gap(data, bands, out / "gap")
    console.print(f"Saved under {out}: table.md, gap.png, gap.svg", highlight=False)


def spreads(band: Band) -> tuple[float, float]:
    """The median standard deviation where data are, and within the gap.

    Args:
        band: A prediction on the grid.

    Returns:
        Both.
    """
    away = GRID.flatten().abs()
    seen = (away >= EDGE) & (away <= END)
    return band.sd[seen].median().item(), band.sd[away < EDGE].median().item()


def cells(name: str, band: Band, reference: Band) -> list[str]:
    """Write one method's line of the table.

    Args:
        name: The method.
        band: What it predicts.
        reference: What the exact posterior predicts.

    Returns:
        Texts, one for each of :data:`HEADINGS`.
    """
    away = GRID.flatten().abs()
    seen = (away >= EDGE) & (away <= END)
    data, gap = spreads(band)
    error = (band.mean - reference.mean)[seen].square().mean().sqrt().item()
    ratio = gap / spreads(reference)[1]
    return [name, f"{data:.3f}", f"{gap:.3f}", f"{gap / data:.1f}", f"{ratio:.2f}", f"{error:.3f}"]


def plot_gap(data: Data, bands: Mapping[str, Band], path: Path) -> None:
    """Draw a panel per method and save them as PNG and SVG.

    Args:
        data: The examples.
        bands: What every method predicts, the reference among them.
        path: Where to save, without the suffix.
    """
    with mpl.rc_context({"svg.hashsalt": "filteropt", "svg.fonttype": "none", "font.size": 9.5}):
        figure = Figure(figsize=(10.0, 5.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3, sharex=True, sharey=True)
        for axis, (name, band) in zip(axes.flat, bands.items(), strict=True):
            _draw(axis, data, band, None if name == "reference" else bands["reference"])
            axis.set_title(TITLES[name], fontsize=10)
        for axis in axes[:, 0]:
            axis.set_ylabel("y")
        for axis in axes[1]:
            axis.set_xlabel("x")
        handles, labels = axes.flat[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=130)
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})


def _draw(axis: Axes, data: Data, band: Band, reference: Band | None) -> None:
    x = GRID.flatten()
    axis.axvspan(-EDGE, EDGE, color="#F2F2F2", zorder=0, label="no data")
    low, high = band.mean - 2 * band.sd, band.mean + 2 * band.sd
    axis.fill_between(x, low, high, color=_BLUE, alpha=0.25, lw=0, label="mean ± 2 sd, weights")
    axis.plot(x, band.mean, color=_BLUE, lw=1.6)
    if reference is not None:
        for sign, label in ((-2, "exact posterior"), (2, None)):
            edge = reference.mean + sign * reference.sd
            axis.plot(x, edge, color=_ORANGE, lw=1.1, ls=(0, (4, 2)), label=label)
    noisy = {"ms": 3, "mec": "none", "color": _DOTS, "ls": "none", "marker": "o"}
    axis.plot(data.x.flatten(), data.y.flatten(), label=f"data, noise {NOISE:g}", **noisy)
    axis.set_xlim(float(x[0]), float(x[-1]))
    axis.set_ylim(-3.0, 3.0)
    axis.spines[["top", "right"]].set_visible(False)
