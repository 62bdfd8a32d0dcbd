"""One table for every task, on the screen, in Markdown and as rows, and the figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.kronecker.arms import REFRESH
from experiments.kronecker.plot import plot_curves, plot_overview
from experiments.kronecker.study import Outcome
from experiments.kronecker.tables import AGAIN, curve_rows, rows, tabulate
from experiments.kronecker.targets import FRACTION
from experiments.momentum.arms import ranges
from experiments.momentum.report import markdown

_ON_SCREEN = {
    "optimizer": "optimizer",
    "steps to target": "steps to\ntarget",
    "seconds to target": "seconds to\ntarget",
    AGAIN: "AdamW's\nsteps / these",
    "last loss": "last loss",
    "ms per step": "ms per\nstep",
}  # these fit 80 columns


def write_report(
    outcomes: Sequence[Outcome], missing: Sequence[str], out: Path, console: Console
) -> None:
    """Print the tables; save them, the figures and the rows.

    Args:
        outcomes: What was found.
        missing: A line for each optimizer that could not run.
        out: Where to save.
        console: Where to print.
    """
    text = []
    names = list(dict.fromkeys(outcome.task.name for outcome in outcomes))
    for name in names:
        mine = [outcome for outcome in outcomes if outcome.task.name == name]
        table = tabulate(mine)
        console.print(rich_table(table, heading(mine)))
        text += [markdown(table, heading(mine)), *(f"- {line}" for line in notes(mine)), ""]
        plot_curves(mine, out / name)
    plot_overview(outcomes, out / "overview")
    lines = [*protocol(outcomes), *missing]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    lines += [f"Tried: {line}." for line in tried(outcomes)]
    text += ["## How it was measured", "", *(f"- {line}" for line in lines), ""]
    (out / "table.md").write_text("\n".join(text), encoding="utf-8")
    rows(outcomes).to_csv(out / "runs.csv", index=False)
    curve_rows(outcomes).to_csv(out / "curves.csv", index=False)
    files = ", ".join(f"{name}.png/.svg" for name in (*names, "overview"))
    console.print(
        f"Saved under {out}: table.md, runs.csv, curves.csv, and the figures {files}",
        highlight=False,
    )


def heading(outcomes: Sequence[Outcome]) -> str:
    """Title one task's table.

    Args:
        outcomes: What was found on it.

    Returns:
        The task, the target, the budget, and how many seeds the result is over.
    """
    first = outcomes[0]
    return (
        f"{first.task.name}: target loss {first.target:.4g}, {len(first.trials)} settings of "
        f"{first.steps} steps each, {len(first.results)} fresh seeds"
    )


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """Say what the task is.

    Args:
        outcomes: What was found on it.

    Returns:
        Lines of text.
    """
    task = outcomes[0].task
    version = task.version()
    each = "examples" if task.terms == 1 else f"windows of {task.terms} characters"
    lines = [f"{task.description}; batches of {task.batch_size} {each}."]
    if version:
        found = task.load()
        lines.append(
            f"The text's alphabet has {found.characters} characters; its SHA-256 starts with "
            f"{version}."
        )
    return lines


def protocol(outcomes: Sequence[Outcome]) -> list[str]:
    """Say how the numbers came about.

    Args:
        outcomes: What was found.

    Returns:
        Lines of text.
    """
    every = outcomes[0].task.every
    return [
        f"The loss is the mean over fixed training examples, looked at every {every} steps. "
        "AdamW's settings are those of the lowest last loss, and the target is what they have seen "
        f"in {FRACTION:.0%} of the steps on every fresh seed. The others' settings are selected on "
        "another seed by the steps to the target, then by the loss; half of them are spread about "
        "the best of the others. Their runs that tune end at the target.",
        "Means ± standard errors over fresh seeds. Seconds are processor time of training on one "
        "thread, without the looks. No weight decay, no schedule; bases and roots are refreshed "
        f"every {REFRESH} steps, and the Kronecker filter drifts as rarely.",
    ]


def tried(outcomes: Sequence[Outcome]) -> list[str]:
    """Write the ranges down.

    Args:
        outcomes: What was found.

    Returns:
        One line for each optimizer.
    """
    arms = {outcome.contender.name: outcome.contender.arm for outcome in outcomes}
    return ranges(list(arms.values()))


def rich_table(table: pd.DataFrame, title: str) -> Table:
    """Lay one task's table out for the screen.

    Args:
        table: What :func:`experiments.kronecker.tables.tabulate` returned.
        title: Its title.

    Returns:
        The table.
    """
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for name, words in _ON_SCREEN.items():
        justify: Literal["left", "right"] = "left" if name == "optimizer" else "right"
        shown.add_column(words, justify=justify, no_wrap=name != "optimizer")
    for row in table[list(_ON_SCREEN)].itertuples(index=False):
        shown.add_row(*map(str, row))
    return shown
