"""The table on the screen, in Markdown and as rows, and the figures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.sweep.plot import plot_curves, plot_maps
from experiments.sweep.runs import COLUMNS, Trial

Found = Sequence[tuple[Trial, dict[str, Any]]]
HEADINGS = ("optimizer", "best lr", "held-out NLL", "error (%)", "decades within 25 %", "diverged")
NEAR = 1.25


def write_report(
    found: Sequence[tuple[Trial, dict[str, Any]]], out: Path, console: Console
) -> None:
    """Print the table; save it, the figures and every member's numbers.

    Args:
        found: The sweeps and their results.
        out: Where to save.
        console: Where to print.
    """
    rows = tabulate(found)
    curves, maps = rows[rows["kind"] == "curve"], rows[rows["kind"] == "map"]
    lines = [cells(str(name), one) for name, one in curves.groupby("optimizer", sort=False)]
    title = f"Sensitivity to the learning rate: {found[0][0].task_name}"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for k, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if k else "left")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    seeds, width = rows["seed"].nunique(), math.log10(curves["lr"].max() / curves["lr"].min())
    note = (
        f"Mean ± standard error over {seeds} seeds, at the lr with the lowest mean NLL, which is "
        "chosen on the same held-out examples. Decades: the range of lr around it with a mean NLL "
        f"within 25 % of the lowest, out of {width:.0f}. Diverged: runs of the curve whose "
        "gradient stopped being finite."
    )
    console.print(note, highlight=False, markup=False)
    marks = [f"| {' | '.join(line)} |" for line in (HEADINGS, *lines)]
    marks.insert(1, "|---" + "|---:" * (len(HEADINGS) - 1) + "|")
    (out / "table.md").write_text("\n".join([f"{title}.", "", *marks, "", note]) + "\n", "utf-8")
    rows.to_csv(out / "runs.csv", index=False)
    plot_curves(curves, found[0][0].task_name, out / "curves")
    saved = ["table.md", "runs.csv", "curves.png", "curves.svg"]
    if len(maps):
        plot_maps(maps, found[0][0].task_name, out / "maps")
        saved += ["maps.png", "maps.svg"]
    console.print(f"Saved under {out}: {', '.join(saved)}", highlight=False)


def tabulate(found: Found) -> pd.DataFrame:
    """Every member of every sweep.

    Args:
        found: The sweeps and their results.

    Returns:
        One row each.
    """
    frames = []
    for trial, result in found:
        frame = pd.DataFrame(result["curves"]).astype(float)
        frame.insert(0, "kind", "map" if trial.priors else "curve")
        frame.insert(1, "optimizer", trial.arm.title)
        frame.insert(2, "seed", trial.seed)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def cells(name: str, rows: pd.DataFrame) -> tuple[str, ...]:
    """One optimizer's line of the table.

    Args:
        name: The optimizer.
        rows: Its runs.

    Returns:
        Texts, one for each of :data:`HEADINGS`.
    """
    by_rate = rows.groupby("lr")
    mean = by_rate[list(COLUMNS)].agg(lambda x: x.mean(skipna=False))
    error = by_rate[list(COLUMNS)].sem()
    diverged = f"{int(rows['nll'].isna().sum())} of {len(rows)}"
    if mean["nll"].isna().all():
        return name, "-", "-", "-", "-", diverged
    best = mean["nll"].idxmin()
    nll = f"{mean['nll'][best]:.3f} ± {error['nll'][best]:.3f}"
    wrong = f"{100 * mean['error'][best]:.2f} ± {100 * error['error'][best]:.2f}"
    return name, f"{best:.3g}", nll, wrong, f"{decades(mean['nll']):.1f}", diverged


def decades(mean: pd.Series) -> float:
    """The width, in decades, of the run of learning rates about the best that are nearly as good.

    Args:
        mean: Mean NLL by learning rate, in increasing order.

    Returns:
        The logarithm of the ratio of its ends.
    """
    near = (mean <= NEAR * mean.min()).to_numpy()
    place = int(np.nanargmin(mean.to_numpy()))
    low = high = place
    while low > 0 and near[low - 1]:
        low -= 1
    while high + 1 < len(near) and near[high + 1]:
        high += 1
    rates = mean.index.to_numpy(float)
    return math.log10(rates[high] / rates[low])
