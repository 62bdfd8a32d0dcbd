"""The report: tables as Markdown and HTML, figures, and every number as rows."""

import base64
import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.ablate.outcomes import Outcome
from experiments.ablate.plan import Plan
from experiments.ablate.plot import FIGURES, draw
from experiments.ablate.tables import (
    NEAR,
    arm_rows,
    best_of,
    factor_rows,
    frame,
    target_of,
    verdict,
)
from experiments.intervals import Interval
from experiments.tasks import Task

HEADINGS = (
    *("arm", "best setting", "test NLL", "test error (%)", "NLL minus the reference's"),
    *("told apart?", "decades of good rates", "epochs to the target", "trials that failed"),
)
ON_SCREEN = ("arm", "test NLL", "error (%)", "told apart?")
FACTORS = ("factor", "level", "against", "arms", "NLL difference", "told apart?")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-size:14px;display:block;overflow-x:auto}"
    "td,th{padding:.25em .6em;border-bottom:1px solid #ddd}img{max-width:100%}"
)


def write_report(plan: Plan, outcomes: Sequence[Outcome], out: Path, console: Console) -> None:
    """Print the table; save the report, the figures and the rows.

    Args:
        plan: What was done.
        outcomes: What was found.
        out: Where to save.
        console: Where to print.
    """
    parts, arms, factors = [f"# Ablation of {len(plan.arms)} arms", "", *_protocol(plan)], [], []
    for task in plan.tasks:
        mine = [outcome for outcome in outcomes if outcome.task.name == task.name]
        target = target_of(plan, mine)
        rows, effects = arm_rows(plan, mine, target), factor_rows(plan, mine)
        lines = [cells(row) for row in rows]
        console.print(_screen(plan, task, rows), _means(plan), highlight=False)
        parts += [f"## {_title(plan, task)}", "", *table(HEADINGS, lines), ""]
        parts += [_legend(plan, target), ""]
        if effects:
            parts += ["### What each factor does", ""]
            parts += [*table(FACTORS, [effect_cells(row) for row in effects]), ""]
            parts += [_EFFECTS, ""]
        drawn = draw(plan, mine, rows, out / task.name)
        for name in drawn:
            parts += [f"### {FIGURES[name]}", "", f"![{FIGURES[name]}]({task.name}-{name}.png)", ""]
        arms.append(frame(rows, task.name))
        factors.append(frame(effects, task.name))
    if plan.skipped:
        parts += ["## Left out", "", *(f"- {why}" for why in plan.skipped), ""]
    text = "\n".join(parts).rstrip() + "\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.html").write_text(page(text, out), encoding="utf-8")
    pd.concat(arms).to_csv(out / "arms.csv", index=False)
    _best_of(plan, outcomes).to_csv(out / "best-of-k.csv", index=False)
    pd.concat(factors).to_csv(out / "factors.csv", index=False)
    _timings(outcomes).to_csv(out / "timings.csv", index=False)
    console.print(
        f"Saved under {out}: report.md, report.html, the figures, arms.csv, factors.csv, "
        "best-of-k.csv, timings.csv, config.yaml, and every run in runs.db",
        highlight=False,
    )


def cells(row: dict[str, Any]) -> list[str]:
    """An arm's line of the table.

    Args:
        row: What :func:`experiments.ablate.tables.arm_rows` said of it.

    Returns:
        Texts, one for each of :data:`HEADINGS`.
    """
    gap, time = row.get("difference"), row.get("time")
    return [
        row["arm"],
        row["setting"],
        written(row.get("nll"), 3),
        written(row.get("error"), 2),
        written(gap.interval, 3, signed=True) if gap else "-",
        verdict(gap) if gap else "-",
        written(row.get("width"), 1),
        _time(time),
        f"{row['trials_diverged']} of {row['trials']}",
    ]


def effect_cells(row: dict[str, Any]) -> list[str]:
    """A factor's line of its table.

    Args:
        row: What :func:`experiments.ablate.tables.factor_rows` said of it.

    Returns:
        Texts, one for each of :data:`FACTORS`.
    """
    gap = row["difference"]
    told = written(gap.interval, 3, signed=True), verdict(gap)
    return [row["factor"], row["level"], row["against"], str(row["arms"]), *told]


def written(one: Interval | None, digits: int, *, signed: bool = False) -> str:
    """An estimate with its interval.

    Args:
        one: The interval.
        digits: After the point.
        signed: Whether a plus is written.

    Returns:
        Such as ``0.12 [0.10, 0.14]``; the estimate alone where there are no ends.
    """
    if one is None or math.isnan(one.estimate):
        return "-"
    sign = "+" if signed else ""
    middle, low, high = (f"{x:{sign}.{digits}f}" for x in (one.estimate, one.low, one.high))
    return middle if math.isnan(one.low) else f"{middle} [{low}, {high}]"


def _time(time: Any) -> str:
    if time is None:
        return "-"
    reached, median = time.reached.estimate, time.median.estimate
    text = f"{median:g}" if math.isfinite(median) else "never"
    return text if reached == 1 else f"{text} ({100 * reached:.0f} % arrive)"


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown.

    Args:
        headings: Of the columns.
        lines: Texts.

    Returns:
        Its lines.
    """
    rows = [" | ".join(text.replace("|", "\\|") for text in line) for line in (headings, *lines)]
    rule = "|---" + "|---:" * (len(headings) - 1) + "|"
    return [f"| {rows[0]} |", rule, *(f"| {row} |" for row in rows[1:])]


def page(text: str, folder: Path) -> str:
    """The report as one HTML file, with its figures inside.

    Args:
        text: Markdown.
        folder: Where the figures are.

    Returns:
        The page.
    """
    body = MarkdownIt("commonmark").enable("table").render(text)

    def inline(found: re.Match[str]) -> str:
        image = (folder / html.unescape(found[1])).read_bytes()
        return f'src="data:image/png;base64,{base64.b64encode(image).decode()}"'

    body = re.sub(r'src="([^"]+)"', inline, body)
    title = html.escape(text.splitlines()[0].lstrip("# "))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}</body></html>\n"
    )


def _screen(plan: Plan, task: Task, rows: Sequence[dict[str, Any]]) -> Table:
    shown = Table(box=SIMPLE_HEAD, title=_title(plan, task), title_justify="left", pad_edge=False)
    for k, heading in enumerate(ON_SCREEN):
        shown.add_column(heading, justify="right" if k else "left", overflow="fold")
    for row in rows:
        told = verdict(row["difference"]) if "difference" in row else "-"
        numbers = [_short(row.get("nll"), 3), _short(row.get("error"), 2), told]
        shown.add_row(row["arm"], *numbers)
    return shown


def _short(one: Interval | None, digits: int) -> str:
    if one is None or math.isnan(one.estimate):
        return "-"
    tail = "" if math.isnan(one.half) else f" ± {one.half:.{digits}f}"
    return f"{one.estimate:.{digits}f}{tail}"


def _title(plan: Plan, task: Task) -> str:
    return f"{task.name}: {plan.epochs(task)} epochs, seeds {', '.join(map(str, plan.seeds))}"


def _protocol(plan: Plan) -> list[str]:
    asked = plan.asked
    how = "random search" if asked.tuner == "random" else "Optuna's TPE"
    ranges = dict.fromkeys(
        f"{n} from {a:g} to {b:g}" for arm in plan.arms for n, a, b in arm.ranges
    )
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions)
    rate = "follow a cosine to 0" if asked.schedule == "cosine" else "are constant"
    return [
        f"Every arm was tried at {asked.trials} settings on a held-out fifth of the training "
        f"examples ({how}: {', '.join(ranges) or 'nothing is tuned'}; seed 0), and its best was "
        f"trained on all of them and tested under fresh seeds, the same initial weights and "
        f"minibatches for all arms. Steps {rate}. Made with {versions}; options: config.yaml.",
        "",
    ]


def _means(plan: Plan) -> str:
    percent = f"{100 * plan.asked.level:g} %"
    return (
        f"Means over seeds with {percent} confidence intervals. Reference: {plan.reference.label}; "
        f"differences are paired by seed, and told apart at {percent} after Holm's correction for "
        f"the number of arms."
    )


def _legend(plan: Plan, target: float) -> str:
    return (
        f"{_means(plan)} Decades of good rates: around the best, held-out NLL within "
        f"{100 * NEAR:.0f} % of the lowest. Target: test NLL {target:g}, median over seeds. "
        f"Lower is better everywhere but for the decades."
    )


_EFFECTS = (
    "A level against the factor's first one, averaged over the arms that exist at all of its "
    "levels and paired by seed: below 0, it is better."
)


def _best_of(plan: Plan, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    independent = plan.asked.tuner == "random"
    return pd.DataFrame(
        [
            (one.task.name, one.arm.label, k, best.estimate, best.low, best.high)
            for one in outcomes
            for k, best in enumerate(best_of(one, plan.asked.level, independent=independent), 1)
        ],
        columns=["task", "arm", "k", "nll", "nll_low", "nll_high"],
    )


def _timings(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (one.task.name, one.arm.label, purpose, runs, seconds)
            for one in outcomes
            for purpose, runs, seconds in one.seconds
        ],
        columns=["task", "arm", "purpose", "runs", "seconds"],
    )
