"""The end of a comparison: a table on the screen and in Markdown, curves, and the raw rows."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.plots import plot_curves
from experiments.stats import best, curve_rows, paired_differences, rows, summarise
from experiments.train import Run


class Column(NamedTuple):
    """How a metric is written: its heading, the factor to its unit, the digits after the point."""

    heading: str
    factor: float
    digits: int


COLUMNS = {
    "test_error": Column("test error (%)", 100.0, 2),
    "test_nll": Column("test NLL", 1.0, 3),
    "test_ece": Column("ECE (%)", 100.0, 2),
    "seconds_per_step": Column("seconds per step", 1.0, 4),
}
_HIDDEN_SETTINGS = {"base_lr", "initial_lr"}


def write_report(
    runs: Sequence[Run], results: Sequence[dict[str, Any]], out: Path, console: Console
) -> None:
    """Print the tables; save them, the curves and the rows.

    Args:
        runs: The runs.
        results: Their results.
        out: Where to save.
        console: Where to print.
    """
    table, curves = rows(runs, results), curve_rows(runs, results)
    summary, gaps = summarise(table), paired_differences(table)
    mark = "" if console.is_terminal else " *"
    for task in summary["task"].unique():
        console.print(rich_table(summary[summary["task"] == task], heading(runs, task), mark))
        plot_curves(curves[curves["task"] == task], heading(runs, task), out / task)
    notes = [*caption(runs), *paired_lines(gaps)]
    for note in [*caption(runs, "marked *" if mark else "in bold"), *paired_lines(gaps)]:
        console.print(note, highlight=False, markup=False)
    table.to_csv(out / "runs.csv", index=False)
    curves.to_csv(out / "curves.csv", index=False)
    summary.to_csv(out / "summary.csv", index=False)
    gaps.to_csv(out / "paired.csv", index=False)
    (out / "table.md").write_text(markdown(summary, runs, notes), encoding="utf-8")
    console.print(
        f"Saved under {out}: table.md, summary.csv, paired.csv, runs.csv, curves.csv, and the "
        f"curves as {', '.join(f'{task}.png/.svg' for task in summary['task'].unique())}",
        highlight=False,
    )


def cell(row: pd.Series, name: str) -> str:
    """Write a mean and its standard error.

    Args:
        row: A row of the summary.
        name: The metric.

    Returns:
        Such as ``1.23 ± 0.04``; the mean alone for one seed; what diverged, if a run did.
    """
    _, factor, digits = COLUMNS[name]
    if not math.isfinite(row[name]):
        return f"diverged {row['diverged']}/{row['seeds']}" if name == "test_error" else "-"
    mean = f"{row[name] * factor:.{digits}f}"
    error = row[f"{name}_se"]
    return f"{mean} ± {error * factor:.{digits}f}" if math.isfinite(error) else mean


def cells(summary: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Write one task's table.

    Args:
        summary: The task's part of the summary.

    Yields:
        An optimizer's name and its cells, each with whether it is the best of its column.
    """
    winners = {name: best(summary, name) for name in COLUMNS}
    for k, (_, row) in enumerate(summary.iterrows()):
        yield row["optimizer"], [(cell(row, name), k in winners[name]) for name in COLUMNS]


def rich_table(summary: pd.DataFrame, title: str, mark: str) -> Table:
    """Lay one task's table out for the screen, the best of each column in bold.

    Args:
        summary: The task's part of the summary.
        title: Its title.
        mark: What follows the best, for a screen that has no bold.

    Returns:
        The table.
    """
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, show_edge=False
    )
    table.add_column("optimizer", overflow="fold", min_width=12)
    for column in COLUMNS.values():
        heading = column.heading.replace(" per ", "\nper ").replace(" (%)", "\n(%)")  # 80 columns
        table.add_column(heading, justify="right", no_wrap=True)
    for optimizer, line in cells(summary):
        table.add_row(
            optimizer, *(f"[bold]{text}[/bold]{mark}" if top else text for text, top in line)
        )
    return table


def markdown(summary: pd.DataFrame, runs: Sequence[Run], notes: Sequence[str]) -> str:
    """Write all tables as Markdown, the best of each column in bold.

    Args:
        summary: The summary.
        runs: The runs.
        notes: Lines that follow the tables.

    Returns:
        The text.
    """
    lines = []
    for task in summary["task"].unique():
        headings = ["optimizer", *(column.heading for column in COLUMNS.values())]
        lines += [f"## {heading(runs, task)}", "", f"| {' | '.join(headings)} |"]
        lines += ["|---" + "|---:" * len(COLUMNS) + "|"]
        for optimizer, line in cells(summary[summary["task"] == task]):
            texts = (f"**{text}**" if top else text for text, top in line)
            lines.append(f"| {optimizer} | {' | '.join(texts)} |")
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def heading(runs: Sequence[Run], task: str) -> str:
    """Title one task's table and figure.

    Args:
        runs: All runs.
        task: The task's name.

    Returns:
        The task, and how long and over how many seeds it was trained.
    """
    mine = [run for run in runs if run.task.name == task]
    seeds = len({run.seed for run in mine})
    return f"{task}: {_count(mine[0].epochs, 'epoch')}, {_count(seeds, 'seed')}"


def caption(runs: Sequence[Run], best_is: str = "in bold") -> list[str]:
    """Say what the numbers are and every setting behind them.

    Args:
        runs: All runs.
        best_is: How the best of a column is shown.

    Returns:
        Lines of text.
    """
    run = runs[0]
    images = "test images" if run.evaluate_on == "test" else "training images held out"
    rate = "decays to 0 along a cosine" if run.schedule == "cosine" else "is constant"
    lines = [
        f"Mean ± standard error over seeds, on the {images}, after the last epoch; best {best_is}. "
        f"Lower is better. ECE: 15 bins. Every learning rate {rate}; batches of "
        f"{run.task.batch_size}; the seconds are the median over epochs of an epoch's training "
        "time per step, one thread per run."
    ]
    for choice in dict.fromkeys(run.choice for run in runs):
        settings = next(run.settings for run in runs if run.choice == choice)
        shown = ", ".join(
            f"{name}={_setting(value)}"
            for name, value in settings.items()
            if value is not None and not isinstance(value, bool) and name not in _HIDDEN_SETTINGS
        )
        lines.append(f"{choice.label}: {shown}")
    return lines


def paired_lines(gaps: pd.DataFrame) -> list[str]:
    """Compare the filters with AdamW, seed by seed.

    Args:
        gaps: What :func:`experiments.stats.paired_differences` returned.

    Returns:
        One line per task and filter.
    """
    lines = []
    for _, row in gaps.iterrows():
        if row["optimizer"].startswith("AdaBayes"):
            texts = []
            for name in ("test_error", "test_nll"):
                title, factor, digits = COLUMNS[name]
                error = row[f"{name}_se"]
                tail = f" ± {error * factor:.{digits}f}" if math.isfinite(error) else ""
                texts.append(f"{title} {row[name] * factor:+.{digits}f}{tail}")
            lines.append(
                f"{row['task']}: {row['optimizer']} minus AdamW, paired by seed: {', '.join(texts)}"
            )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _setting(value: object) -> str:
    return f"({', '.join(map(str, value))})" if isinstance(value, list) else str(value)
