"""The tables on the screen, in Markdown and as rows, from what was measured."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import COPY, REFERENCE

Row = dict[str, Any]
HEADINGS = (
    *("optimizer", "ratio (middle half)", "over floor", "ms"),
    *("bytes", "of copy", "peak", "first step (s)"),
)


def write_report(
    rows: list[Row], left_out: dict[str, str], machine: Row, out: Path, console: Console
) -> None:
    """Print the tables; save them, the rows and the figure."""
    found = [numbers for _, group in grouped(rows) for numbers in summarise(group)]
    texts = ["Machine: " + ", ".join(f"{k} {v}" for k, v in machine.items()), ""]
    for (name, _), group in grouped(found):
        weights, tensors = group[0]["weights"], group[0]["tensors"]
        title = f"{name}: {weights:,} weights in {tensors} tensors"
        console.print(_rich_table(title, group))
        texts += [f"**{title}**", "", *_markdown(group), ""]
    remarks = notes(rows, left_out, on_gpu=machine["device"] != "CPU")
    for note in remarks:
        console.print(note, highlight=False, markup=False)
    texts += [f"- {note}" for note in remarks]
    (out / "table.md").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (out / "overview.md").write_text(overview(found, machine), encoding="utf-8")
    summary = {"machine": machine, "left_out": left_out, "rows": found}
    (out / "bench.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    saved = ["table.md", "overview.md", "bench.json"]
    if found:
        from benchmarks.plot import plot_ratios

        plot_ratios(found, out / "steps")
        saved += ["steps.png", "steps.svg"]
    console.print(f"Saved under {out}: {', '.join(saved)}", highlight=False)


def grouped(rows: list[Row]) -> list[tuple[tuple[str, float], list[Row]]]:
    """Rows by list and size, in their order, without those that were given up."""
    key = ("shapes", "size")
    measured = [row for row in rows if "left_out" not in row]
    return [(k, list(g)) for k, g in groupby(measured, lambda r: (r[key[0]], r[key[1]]))]


def summarise(rows: list[Row]) -> list[Row]:
    """The numbers of one list's optimizers.

    A ratio is the median over rounds of the optimizer's time to torch's fused AdamW's in the same
    round. ``over_floor`` is that over the ratio of the bytes that have to be moved, and ``of_copy``
    the bandwidth which these bytes come to, in units of the copy's.
    """
    found = []
    per_weight = {row["optimizer"]: row["least"] / row["weights"] for row in rows}
    copy = next(row for row in rows if row["optimizer"] == COPY.name)
    copied = per_weight[COPY.name] / _quartiles(copy)[1]
    for row in rows:
        low, middle, high = _quartiles(row)
        least, weights = per_weight[row["optimizer"]], row["weights"]
        found.append(
            {
                **{k: row[k] for k in ("shapes", "size", "optimizer", "title", "ours")},
                **{k: row[k] for k in ("weights", "tensors", "warnings")},
                "rounds": len(row["seconds"]),
                "ratio": middle,
                "ratio_low": low,
                "ratio_high": high,
                "milliseconds": 1e3 * float(np.median(row["seconds"])),
                "least_bytes": least,
                "floor": least / per_weight[REFERENCE.name],
                "over_floor": middle / (least / per_weight[REFERENCE.name]),
                "of_copy": least / middle / copied,
                "kept_bytes": row["kept"] / weights,
                "peak_bytes": (row["kept"] + row["temporary"]) / weights,
                "first_seconds": row["first"],
            }
        )
    return found


def _quartiles(row: Row) -> tuple[float, float, float]:
    ratios = np.array(row["seconds"]) / np.array(row["reference"])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def cells(row: Row) -> list[str]:
    """One optimizer's line, a text for each of :data:`HEADINGS`."""
    copy = row["optimizer"] == COPY.name
    return [
        row["title"],
        f"{_digits(row['ratio'])} ({_digits(row['ratio_low'])}–{_digits(row['ratio_high'])})",
        "-" if copy else _digits(row["over_floor"]),
        _digits(row["milliseconds"]),
        f"{row['least_bytes']:.1f}",
        f"{row['of_copy']:.0%}",
        "-" if copy else f"{row['peak_bytes']:.1f}",
        "-" if copy else f"{row['first_seconds']:.2g}",
    ]


def overview(rows: list[Row], machine: Row) -> str:
    """A table per list in Markdown: ratios at every size, and the rest at the largest one."""
    texts = [", ".join(f"{name} {value}" for name, value in machine.items()) + ".", ""]
    for shapes in dict.fromkeys(row["shapes"] for row in rows):
        mine = [row for row in rows if row["shapes"] == shapes]
        sizes = {row["size"]: row for row in mine}
        weights = ", ".join(f"{row['weights']:,}" for row in sizes.values())
        texts += [f"**{shapes}**: {mine[0]['tensors']} tensors, {weights} weights", ""]
        heads = [f"{size:.0e}".replace("e+0", "e") for size in sizes]
        names = ["optimizer", *(f"ratio at {head}" for head in heads)]
        names += ["over floor", "of copy", "ms", "peak", "first step (s)"]
        texts += [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
        for name in dict.fromkeys(row["optimizer"] for row in mine):
            own = {row["size"]: row for row in mine if row["optimizer"] == name}
            ratios = [cells(own[size])[1] if size in own else "-" for size in sizes]
            _, _, over, ms, _, copy, peak, first = cells(own[max(own)])
            line = [own[max(own)]["title"], *ratios, over, copy, ms, peak, first]
            texts.append(f"| {' | '.join(line)} |")
        texts.append("")
    return "\n".join(texts)


def _digits(value: float) -> str:
    """Three digits or two decimals, whichever is less."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _rich_table(title: str, rows: list[Row]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title=title,
        title_justify="left",
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column(HEADINGS[0], min_width=20)
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right", min_width=5)
    for row in rows:
        table.add_row(*cells(row), style="bold" if row["ours"] else None)
    return table


def _markdown(rows: list[Row]) -> list[str]:
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    return [*lines, *(f"| {' | '.join(cells(row))} |" for row in rows)]


def notes(rows: list[Row], left_out: dict[str, str], *, on_gpu: bool) -> list[str]:
    """What the numbers are, and what is missing."""
    said = {
        f"{row['title']} warned: {text}": None for row in rows for text in row.get("warnings", ())
    }
    gave_up = [
        f"{row['title']} is left out of {row['shapes']} at {row['size']:.0e}: {row['left_out']}"
        for row in rows
        if "left_out" in row
    ]
    return [
        "ratio: time of a step to torch's fused AdamW's, whose steps alternate with it; median "
        "over rounds. Of an optimizer with a period (a basis turns every so many steps), means of "
        "whole periods are compared.",
        "bytes: those per weight that have to be moved. A step reads weights, gradients and "
        "state, and writes weights and state, each once. over floor: the ratio over that of these "
        "bytes. of copy: the bandwidth that these bytes come to, in units of a copy's.",
        "peak: bytes per weight of the state and of the most that a step allocates besides. first "
        "step: in it state is made and kernels are compiled, with nothing cached.",
        "Where weights are drawn (VON, Vadam, IVON), times include the draw and bytes do not.",
        *said,
        *gave_up,
        *(f"{title} is left out: {reason}" for title, reason in left_out.items()),
        "This was run on a GPU, which no published number was: report what looks wrong."
        if on_gpu
        else "GPUs are unmeasured: --device cuda is written for them, and has not been run.",
    ]
