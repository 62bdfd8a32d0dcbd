"""The table on the screen, in Markdown and as rows, and the figure."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.limits.laws import Decay, Identity, Power, Verdict, rule
from experiments.limits.plot import plot_limits

HEADINGS = (
    *("case", "composition", "limit", "parameter", "order: theory", "measured"),
    *("constant: theory", "measured", "points", "result"),
)


def write_report(verdicts: Sequence[Verdict], out: Path, console: Console) -> None:
    """Print the table; save it, the figure and every measured error.

    Args:
        verdicts: What was found.
        out: Where to save.
        console: Where to print.
    """
    console.print(rich_table(verdicts))
    for note in notes(verdicts):
        console.print(note, highlight=False, markup=False)
    summary(verdicts).to_csv(out / "table.csv", index=False)
    points(verdicts).to_csv(out / "points.csv", index=False)
    (out / "table.md").write_text(markdown(verdicts), encoding="utf-8")
    plot_limits(verdicts, out / "limits")
    console.print(
        f"Saved under {out}: table.md, table.csv, points.csv, limits.png, limits.svg",
        highlight=False,
    )


def cells(verdict: Verdict) -> list[str]:
    """Write one case's line of the table.

    Args:
        verdict: What was found of it.

    Returns:
        Texts, one for each of :data:`HEADINGS`.
    """
    case, law = verdict.case, verdict.curve.law
    result = "pass" if verdict.passed else "FAIL"
    head = [case.name, case.composition, case.limit, case.parameter or "-"]
    if isinstance(law, Identity):
        largest = verdict.curve.error.max().item()
        texts = ["identity", "-", f"≤ {law.tolerance:.0e}", f"{largest:.1e}"]
    elif isinstance(law, Decay):
        found = math.exp(verdict.slope)
        texts = [f"{law.factor:.4f}^t", f"{found:.4f}^t", *_constants(law, verdict)]
    else:
        texts = [f"{law.order:g}", f"{verdict.slope:.4f}", *_constants(law, verdict)]
    return [*head, *texts, str(int(verdict.fitted.sum())), result]


def _constants(law: Power | Decay, verdict: Verdict) -> list[str]:
    return [f"{law.constant:.4g}", f"{verdict.constant:.4g}"]


def notes(verdicts: Sequence[Verdict]) -> list[str]:
    """Say what the numbers are.

    Args:
        verdicts: What was found.

    Returns:
        Paragraphs.
    """
    held = sum(verdict.passed for verdict in verdicts)
    return [
        "The error is relative, order and constant those of error = constant × parameter^order, "
        "or of error = constant × factor^t; of an identity, the constant is the largest error and "
        "its tolerance.",
        rule(),
        f"{held} of {len(verdicts)} cases pass.",
    ]


def rich_table(verdicts: Sequence[Verdict]) -> Table:
    """Lay the table out for the screen, narrow: the measured numbers, with theory's behind them.

    Args:
        verdicts: What was found.

    Returns:
        The table.
    """
    table = Table(
        box=SIMPLE_HEAD,
        title="Limits of the theory: measured (theory)",
        title_justify="left",
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for k, heading in enumerate(("case", "parameter", "order", "constant", "result")):
        table.add_column(heading, justify="right" if k in {2, 3} else "left", no_wrap=True)
    for verdict in verdicts:
        name, _, _, parameter, order, slope, constant, found, _, result = cells(verdict)
        if isinstance(verdict.curve.law, Identity):
            line = [name, parameter, order, f"{found} ({constant})", result]
        else:
            order = order.removesuffix("^t")
            line = [name, parameter, f"{slope} ({order})", f"{found} ({constant})", result]
        table.add_row(*line, style=None if verdict.passed else "bold red")
    return table


def markdown(verdicts: Sequence[Verdict]) -> str:
    """Write the table in Markdown.

    Args:
        verdicts: What was found.

    Returns:
        The text.
    """
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * 4 + "|---:" * (len(HEADINGS) - 4) + "|"]
    lines += [f"| {' | '.join(cells(verdict))} |" for verdict in verdicts]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(verdicts))]) + "\n"


def summary(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Tabulate the verdicts with all their digits.

    Args:
        verdicts: What was found.

    Returns:
        One row per case.
    """
    return pd.DataFrame([_row(verdict) for verdict in verdicts])


def _row(verdict: Verdict) -> dict[str, object]:
    case, law, error = verdict.case, verdict.curve.law, verdict.curve.error
    row: dict[str, object] = {
        "case": case.name,
        "composition": case.composition,
        "limit": case.limit,
        "parameter": case.parameter,
        "law": type(law).__name__.lower(),
        "order": math.nan,
        "order_measured": math.nan,
        "factor": math.nan,
        "factor_measured": math.nan,
        "constant": math.nan,
        "constant_measured": verdict.constant,
        "points": int(verdict.fitted.sum()),
        "largest_error": error.max().item(),
        "passed": verdict.passed,
    }
    if isinstance(law, Power):
        row |= {"order": law.order, "order_measured": verdict.slope, "constant": law.constant}
    elif isinstance(law, Decay):
        measured = math.exp(verdict.slope)
        row |= {"factor": law.factor, "factor_measured": measured, "constant": law.constant}
    return row


def points(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Tabulate every measured error.

    Args:
        verdicts: What was found.

    Returns:
        One row per case and parameter, with the error that the law gives.
    """
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "case": verdict.case.name,
                    "x": verdict.curve.x,
                    "error": verdict.curve.error,
                    "theory": 0.0
                    if isinstance(verdict.curve.law, Identity)
                    else verdict.curve.law(verdict.curve.x),
                    "fitted": verdict.fitted,
                }
            )
            for verdict in verdicts
        ],
        ignore_index=True,
    )
