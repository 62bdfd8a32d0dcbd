"""The tables on the screen, in Markdown and as rows, and the figures."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.momentum.arms import ranges
from experiments.report import Column
from experiments.uncertainty.plot import plot_overview, plot_reliability, plot_shift
from experiments.uncertainty.predictives import DRAWS, LAPLACE_DRAWS
from experiments.uncertainty.study import Outcome, Plan
from experiments.uncertainty.tables import best_filters, differences, rows, summarise

COLUMNS = {
    "error": Column("error (%)", 100.0, 2),
    "nll": Column("NLL", 1.0, 3),
    "ece": Column("ECE (%)", 100.0, 2),
    "brier": Column("Brier (%)", 100.0, 2),
    "auroc": Column("AUROC, digits (%)", 100.0, 1),
    "rotated_nll": Column("NLL, rotated", 1.0, 2),
}
_ON_SCREEN = ("error", "nll", "ece", "auroc")
_WORDS = {
    "point": "point estimate",
    "scaled": "point estimate, logits scaled",
    "posterior": "posterior predictive",
    "laplace": "last-layer Laplace",
}
_OF_METHOD = {"dropout": "average over dropout", "ensemble": "average over members"}


def write_report(outcomes: Sequence[Outcome], plan: Plan, out: Path, console: Console) -> None:
    """Print the tables; save them, the figures and the rows.

    Args:
        outcomes: What was found.
        plan: What was done.
        out: Where to save.
        console: Where to print.
    """
    table = rows(outcomes, plan)
    summary, gaps = summarise(table), differences(table)
    shown = [row for _, row in summary.iterrows() if is_shown(row)]
    console.print(rich_table(shown, heading(plan)))
    lines = notes(outcomes, gaps, plan)
    for line in lines:
        console.print(line, highlight=False, markup=False)
    text = [markdown(shown, heading(plan)), gap_table(gaps), *(f"- {line}" for line in lines)]
    text += [f"- Tried: {line}." for line in ranges([o.method.arm for o in outcomes])]
    text += [f"- Selected: {line}." for line in selected(outcomes)]
    (out / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    table.to_csv(out / "runs.csv", index=False)
    summary.to_csv(out / "summary.csv", index=False)
    gaps.to_csv(out / "paired.csv", index=False)
    plot_overview(summary, out / "overview")
    plot_reliability(outcomes, out / "reliability")
    plot_shift(outcomes, best_filters(outcomes), out / "shift")
    console.print(
        f"Saved under {out}: table.md, runs.csv, summary.csv, paired.csv, and the figures "
        "overview, reliability and shift as .png and .svg",
        highlight=False,
    )


def is_shown(row: pd.Series) -> bool:
    """Whether a row of the summary is in the table: scaled logits are, of AdamW alone."""
    return row["predictive"] != "scaled" or row["method"] == "adamw"


def predictive_of(row: pd.Series) -> str:
    """Name a row's predictive distribution in words."""
    if row["predictive"] == "posterior":
        return _OF_METHOD.get(row["method"], _WORDS["posterior"])
    return _WORDS[row["predictive"]]


def heading(plan: Plan) -> str:
    """Title the table.

    Args:
        plan: What was done.

    Returns:
        The budget, and how many seeds the result is over.
    """
    budget = f"{2 * plan.epochs:g} passes" if plan.equal == "passes" else f"{plan.epochs:g} epochs"
    return (
        f"LeNet-5 on 4,000 MNIST images: {budget} per example, {plan.count} settings each, "
        f"{plan.seeds} fresh seeds"
    )


def cell(row: pd.Series, name: str, *, signed: bool = False, column: Column | None = None) -> str:
    """Write a mean and its standard error.

    Args:
        row: A row of the summary, or of the differences.
        name: The metric.
        signed: Whether a plus sign is written.
        column: How, where not as in the table.

    Returns:
        Such as ``1.23 ± 0.04``.
    """
    _, factor, digits = column or COLUMNS[name]
    mean, error = row[name] * factor, row[f"{name}_se"] * factor
    if not math.isfinite(mean):
        return "-"
    text = f"{mean:{'+' if signed else ''}.{digits}f}"
    return f"{text} ± {error:.{digits}f}" if math.isfinite(error) else text


def rich_table(shown: Sequence[pd.Series], title: str) -> Table:
    """Lay the table out for the screen, a method's predictive distributions under its name.

    Args:
        shown: Rows of the summary.
        title: Its title.

    Returns:
        The table.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("method", min_width=18)
    for name in _ON_SCREEN:
        table.add_column(
            COLUMNS[name].heading.replace(", ", ",\n"), justify="right", no_wrap=True, min_width=11
        )
    last = None
    for row in shown:
        if row["method"] != last:
            table.add_row(f"[bold]{row['title']}[/bold]")
        last = row["method"]
        diverged = f" ({row['diverged']} diverged)" if row["diverged"] else ""
        table.add_row(
            f" {predictive_of(row)}{diverged}", *(f" {cell(row, name)}" for name in _ON_SCREEN)
        )
    return table


def markdown(shown: Sequence[pd.Series], title: str) -> str:
    """Write the table in Markdown, the best mean of every column in bold.

    Args:
        shown: Rows of the summary.
        title: Its title.

    Returns:
        The text.
    """
    headings = ["method", "predictive", "passes", *(c.heading for c in COLUMNS.values())]
    lines = [f"## {title}", "", f"| {' | '.join(headings)} |"]
    lines += ["|---|---" + "|---:" * (len(COLUMNS) + 1) + "|"]
    ends = {
        name: (max if name == "auroc" else min)(
            [row[name] for row in shown if math.isfinite(row[name])], default=math.nan
        )
        for name in COLUMNS
    }
    for row in shown:
        texts = [row["title"], predictive_of(row), f"{row['passes']:.3g}"]
        for name in COLUMNS:
            text = cell(row, name)
            texts.append(f"**{text}**" if row[name] == ends[name] else text)
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join([*lines, ""])


def gap_table(gaps: pd.DataFrame) -> str:
    """Write the paired differences in Markdown.

    Args:
        gaps: What :func:`experiments.uncertainty.tables.differences` returned.

    Returns:
        The text.
    """
    names = [name for name in COLUMNS if name in gaps.columns]
    lines = ["## Posterior predictives minus what they are compared with, paired by seed", ""]
    lines += [f"| method | minus | {' | '.join(COLUMNS[name].heading for name in names)} |"]
    lines += ["|---|---" + "|---:" * len(names) + "|"]
    for _, row in gaps.iterrows():
        numbers = (cell(row, name, signed=True, column=_finer(name)) for name in names)
        title = row["title"] + (", Laplace" if row["predictive"] == "laplace" else "")
        lines.append(f"| {title} | {row['minus']} | {' | '.join(numbers)} |")
    return "\n".join([*lines, ""])


def _finer(name: str) -> Column:
    heading, factor, digits = COLUMNS[name]
    return Column(heading, factor, digits + 1)


def notes(outcomes: Sequence[Outcome], gaps: pd.DataFrame, plan: Plan) -> list[str]:
    """Say what the numbers are, and what they say of the filters.

    Args:
        outcomes: What was found.
        gaps: The paired differences.
        plan: What was done.

    Returns:
        Lines of text.
    """
    lines = [
        f"Mean ± standard error over seeds, on 1,000 test images. Predictive distributions average "
        f"{DRAWS} draws ({LAPLACE_DRAWS} of the last layer, whose logits are Gaussian). ECE: 15 "
        "bins. AUROC: the entropy tells enlarged scikit-learn digits from test images. NLL, "
        "rotated: mean over 15° to 180°. Settings and temperature (prior precision, for Laplace) "
        "are selected by the NLL on validation images, for every method alike."
    ]
    titles = {outcome.method.name: outcome.method.title for outcome in outcomes}
    filters = sum(outcome.method.filters for outcome in outcomes)
    if filters > 1:
        lines.append(
            f"The best filter is the best of {filters} compositions on validation images, which "
            f"together were tried at {filters} times as many settings as any other method."
        )
    for name in best_filters(outcomes):
        mine = gaps[(gaps["method"] == name) & (gaps["predictive"] == "posterior")]
        for _, row in mine.iterrows():
            lines.append(
                f"{titles[name]}, posterior (best on validation images) minus {row['minus']}: NLL "
                f"{cell(row, 'nll', signed=True, column=_finer('nll'))}, ECE (%) "
                f"{cell(row, 'ece', signed=True)}"
            )
    return lines


def selected(outcomes: Sequence[Outcome]) -> list[str]:
    """Write the settings that were selected, and what was fitted, down.

    Args:
        outcomes: What was found.

    Returns:
        One line for each method.
    """
    return [
        f"{o.method.title}: "
        + ", ".join(f"{name}={x:.3g}" for name, x in {**o.values, **o.fitted}.items())
        + f"; validation NLL {o.validation_nll:.4f}"
        for o in outcomes
    ]
