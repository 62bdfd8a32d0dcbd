"""One table for every problem, on the screen, in Markdown and as rows, and the figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.momentum.arms import ranges
from experiments.momentum.plot import plot_curves, plot_splits
from experiments.momentum.quadratic import TARGET, Quadratic
from experiments.momentum.runs import Problem, arms_of
from experiments.momentum.study import Outcome
from experiments.momentum.tables import numbers, pace, tabulate

_BREAKS = {
    "settings that reach it": "settings\nthat reach it",
    "median over settings": "median\nover\nsettings",
    "diverged settings": "diverged\nsettings",
    "test error (%)": "test error\n(%)",
    "validation NLL": "validation\nNLL",
}  # so that the tables fit 80 columns


def write_report(outcomes: Sequence[Outcome], out: Path, console: Console) -> None:
    """Print the tables; save them, the figures and the rows.

    Args:
        outcomes: What was found.
        out: Where to save.
        console: Where to print.
    """
    text = []
    for problem, mine in by_problem(outcomes):
        table, lines = tabulate(mine), notes(problem, mine)
        console.print(rich_table(table, heading(problem, mine)))
        for line in lines:
            console.print(line, highlight=False, markup=False)
        numbers(mine).to_csv(out / f"{problem.name}.csv", index=False)
        lines += [f"Tried: {line}." for line in ranges(arms_of(problem))]
        text += [markdown(table, heading(problem, mine)), *(f"- {line}" for line in lines), ""]
    (out / "table.md").write_text("\n".join(text), encoding="utf-8")
    curve_rows(outcomes).to_csv(out / "curves.csv", index=False)
    split_rows(outcomes).to_csv(out / "split.csv", index=False)
    plot_curves(outcomes, out / "curves")
    plot_splits(outcomes, out / "split")
    names = ", ".join(f"{problem.name}.csv" for problem, _ in by_problem(outcomes))
    console.print(
        f"Saved under {out}: table.md, {names}, curves.csv, split.csv, and the figures "
        "curves.png/.svg and split.png/.svg",
        highlight=False,
    )


def by_problem(outcomes: Sequence[Outcome]) -> list[tuple[Problem, list[Outcome]]]:
    """Group what was found.

    Args:
        outcomes: What was found.

    Returns:
        Each problem with its outcomes, in order.
    """
    problems = {outcome.best.problem.name: outcome.best.problem for outcome in outcomes}
    return [
        (problem, [o for o in outcomes if o.best.problem.name == name])
        for name, problem in problems.items()
    ]


def heading(problem: Problem, outcomes: Sequence[Outcome]) -> str:
    """Title one problem's table.

    Args:
        problem: The problem.
        outcomes: What was found on it.

    Returns:
        The problem, the budget, and how many seeds the result is over.
    """
    return (
        f"{problem.name}: {len(outcomes[0].trials)} settings each, "
        f"{len(outcomes[0].results)} fresh seeds"
    )


def notes(problem: Problem, outcomes: Sequence[Outcome]) -> list[str]:
    """Say what the numbers are, and how the filters' steps are made up.

    Args:
        problem: The problem.
        outcomes: What was found on it.

    Returns:
        Lines of text.
    """
    if not isinstance(problem, Quadratic):
        how = "the NLL on validation images; means ± standard errors are on the test images"
    elif problem.batch is None:
        how = f"the steps to a relative loss of {TARGET:.0e}, within {problem.steps}"
    else:
        how = f"the mean relative loss over the last tenth of {problem.steps} steps"
    lines = [
        f"{problem.description}. Settings are selected by {how}. The implied decay per step is "
        "lr² B / (2 lr_sgd)."
    ]
    if isinstance(problem, Quadratic) and problem.batch is None:
        lines += pace(outcomes)
    for outcome in outcomes:
        if outcome.split is not None and outcome.split["curves"]["step"]:
            curves = outcome.split["curves"]
            share = sum(curves["total"]) / len(curves["total"])
            first, last = curves["rate"][0], curves["rate"][-1]
            lines.append(
                f"{outcome.best.arm.entry.title}: on average {share:.0%} of the step is momentum; "
                f"r B Σ_ww is {first:.2g} in the first step and {last:.2g} in the last one split; "
                f"η Σ_wp/Σ_ww is there {curves['ratio'][-1]:.2g} of Nesterov's 1 - η_p."
            )
    return lines


def rich_table(table: pd.DataFrame, title: str) -> Table:
    """Lay one problem's table out for the screen, its settings on lines of their own.

    Args:
        table: What :func:`tabulate` returned.
        title: Its title.

    Returns:
        The table.
    """
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for name in table.columns[:-1]:
        left = name == "optimizer"
        justify: Literal["left", "right"] = "left" if left else "right"
        shown.add_column(_BREAKS.get(name, name), justify=justify, no_wrap=not left)
    shown.columns[0].min_width = 16
    for _, row in table.iterrows():
        shown.add_row(*map(str, row.iloc[:-1]))
    return shown


def markdown(table: pd.DataFrame, title: str) -> str:
    """Write one problem's table in Markdown.

    Args:
        table: What :func:`tabulate` returned.
        title: Its title.

    Returns:
        The text.
    """
    lines = [f"## {title}", "", f"| {' | '.join(table.columns)} |"]
    lines += ["|---" + "|---:" * (len(table.columns) - 2) + "|---|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in table.itertuples(index=False)]
    return "\n".join([*lines, ""])


def curve_rows(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate every curve of the best settings.

    Args:
        outcomes: What was found.

    Returns:
        One row per run and point.
    """
    return _stack(
        {
            "problem": o.best.problem.name,
            "optimizer": o.best.arm.entry.title,
            "settings": json.dumps(o.best.values),
            "seed": k + 1,
            **result["curves"],
        }
        for o in outcomes
        for k, result in enumerate(o.results)
    )


def split_rows(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate how the filters' steps are made up.

    Args:
        outcomes: What was found.

    Returns:
        One row per filter, problem and step.
    """
    return _stack(
        {
            "problem": o.best.problem.name,
            "optimizer": o.best.arm.entry.title,
            **o.split["curves"],
        }
        for o in outcomes
        if o.split is not None
    )


def _stack(columns: Any) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(part) for part in columns], ignore_index=True)
