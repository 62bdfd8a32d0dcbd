"""The report of Figure 4 and Table 1."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from rich.console import Console

from experiments.intervals import compare, mean_interval
from experiments.reproduce import report
from experiments.reproduce.part import Part
from experiments.reproduce.protocol import DROP, OPTIMIZERS, PROBLEMS, published
from experiments.reproduce.training import COLUMNS, Trial

Found = Sequence[tuple[Trial, dict[str, Any]]]
REFERENCE = "adamw"
_NON_ADAPTIVE = "sgd"
_METRICS = {"lowest_error": 100.0, "lowest_loss": 1.0, "last_error": 100.0, "last_loss": 1.0}
_STYLES = {
    "sgd": (report.GREY, "-"), "adam": (report.BLACK, ":"), "adagrad": (report.YELLOW, ":"),
    "amsgrad": (report.PURPLE, ":"), "adabound": (report.SKY, "--"),
    "amsbound": (report.GREEN, "--"), "adamw": (report.BLACK, "-"),
    "adabayes-fp": (report.BLUE, "-"), "adabayes": (report.RED, "-"),
}  # fmt: skip


def report_table1(study: Part, found: Found, console: Console) -> None:
    """Write Table 1: a table per problem.

    Args:
        study: The options.
        found: The runs and their results.
        console: Where to print.
    """
    numbers = {problem: _numbers(found, problem) for problem in _problems(found)}
    seeds = 1 + max(trial.seed for trial, _ in found)
    parts = [
        "Lowest test error and loss over the epochs, as the paper has them, and those of the last "
        "epoch: "
        + (f"means over {seeds} seeds, ± half of a 95 % interval. " if seeds > 1 else "one seed. ")
        + "Bold: the best adaptive method; SGD too, where it beats them all."
    ]
    if seeds > 1 and all(REFERENCE in rows for rows in numbers.values()):
        parts.append(
            f"A star: the last error or loss differs from {OPTIMIZERS[REFERENCE][0]}'s (paired by "
            "seed, corrected for the number of comparisons)."
        )
    for problem, rows in numbers.items():
        place = PROBLEMS[PROBLEMS[problem].place].title
        headings = (
            PROBLEMS[problem].title, "error (%)", "the paper's", "loss", "the paper's",
            "last error (%)", "last loss",
        )  # fmt: skip
        lines = [_line(name, rows, PROBLEMS[problem].place) for name in rows]
        parts += [f"The paper's numbers are of {place}.", report.table(headings, lines)]
    draw_table(study, numbers)
    report.write(study, "Table 1", parts, {"seeds": seeds, "problems": numbers}, console)


def report_fig4(study: Part, found: Found, console: Console) -> None:
    """Write Figure 4.

    Args:
        study: The options.
        found: The runs and their results.
        console: Where to print.
    """
    problems = _problems(found)
    drawn, axes = report.figure(3.4 * len(problems) + 0.6, 6.4, 2, len(problems))
    curves: dict[str, Any] = {}
    for column, problem in enumerate(problems):
        curves[problem] = {}
        for name in OPTIMIZERS:
            own = [r for t, r in found if (t.problem, t.optimizer) == (problem, name)]
            if not own or any(result["diverged"] for result in own):
                continue
            runs = [result["curves"] for result in own]
            mean = {key: np.array([run[key] for run in runs], float).mean(0) for key in COLUMNS}
            curves[problem][name] = {key: [float(v) for v in mean[key]] for key in COLUMNS}
            colour, dashes = _STYLES[name]
            for row, (key, factor) in enumerate((("test_loss", 1.0), ("test_error", 100.0))):
                axes[row, column].plot(
                    np.arange(1, len(mean[key]) + 1), factor * mean[key], color=colour,
                    linestyle=dashes, linewidth=1.4, label=OPTIMIZERS[name][0],
                    zorder=4 if name.startswith("adabayes") else 3,
                )  # fmt: skip
        axes[0, column].set_title(PROBLEMS[problem].title)
        axes[1, column].set_xlabel("epoch")
        epochs = next(t.epochs for t, _ in found if t.problem == problem)
        for axis in axes[:, column]:
            axis.axvline(math.ceil(DROP * epochs), color=report.GREY, linewidth=0.8, dashes=(2, 2))
            axis.set_yscale("log")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("test loss")
    axes[1, 0].set_ylabel("test error (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = {1: 3, 2: 5}.get(len(problems), len(labels))
    drawn.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    report.save(drawn, study)
    seeds = 1 + max(trial.seed for trial, _ in found)
    parts = [
        f"{f'Means over {seeds} seeds' if seeds > 1 else 'One seed'}; the learning rates fall by a "
        "factor of 10 at the vertical line. Numbers: table1.",
        "![Test loss and error over the epochs](fig4.png)",
    ]
    report.write(study, "Figure 4", parts, {"curves": curves}, console)


def _problems(found: Found) -> list[str]:
    return list(dict.fromkeys(trial.problem for trial, _ in found))


def _numbers(found: Found, problem: str) -> dict[str, Any]:
    """Means, intervals and comparisons of one problem.

    Args:
        found: The runs and their results.
        problem: The problem.

    Returns:
        By optimizer, and there by metric: ``values`` by seed, ``mean``, ``half`` of the interval,
        and ``different`` from the reference.
    """
    runs = [(t.optimizer, t.seed, r["metrics"]) for t, r in found if t.problem == problem]
    names = [name for name in OPTIMIZERS if any(name == run[0] for run in runs)]
    rows: dict[str, Any] = {name: {} for name in names}
    for metric, factor in _METRICS.items():
        values = {
            name: [
                math.nan if metrics[metric] is None else factor * metrics[metric]
                for own, _, metrics in sorted(runs, key=lambda run: run[1])
                if own == name
            ]
            for name in names
        }
        against = compare(values, REFERENCE) if REFERENCE in values else {}
        for name, one in values.items():
            interval = mean_interval(one)
            rows[name][metric] = {
                "values": [_plain(value) for value in one],
                "mean": _plain(interval.estimate),
                "half": _plain(interval.half),
                "different": name in against and against[name].different,
            }
    return rows


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _line(name: str, rows: dict[str, Any], place: str) -> tuple[str, ...]:
    error, loss = published(name, place)
    cells = {metric: _cell(name, rows, metric) for metric in _METRICS}
    return (
        OPTIMIZERS[name][0], cells["lowest_error"], f"{error:.2f}", cells["lowest_loss"],
        f"{loss:.3f}", cells["last_error"], cells["last_loss"],
    )  # fmt: skip


def _cell(name: str, rows: dict[str, Any], metric: str) -> str:
    row = rows[name][metric]
    if row["mean"] is None:
        return "diverged"
    digits = 2 if _METRICS[metric] > 1 else 3
    text = f"{row['mean']:.{digits}f}"
    if row["half"] is not None:
        text += f" ± {row['half']:.{digits}f}"
    others = [rows[other][metric]["mean"] for other in rows if other != _NON_ADAPTIVE]
    best = min((mean for mean in others if mean is not None), default=math.inf)
    star = "*" if metric.startswith("last") and row["different"] else ""
    return (f"**{text}**" if row["mean"] <= best else text) + star


def draw_table(study: Part, numbers: dict[str, Any]) -> None:
    """Draw the table: every seed, every mean, and below the paper's numbers.

    Args:
        study: The options.
        numbers: By problem, what :func:`_numbers` returned.
    """
    drawn, axes = report.figure(3.1 * len(numbers) + 1.2, 6.0, 2, len(numbers))
    for column, (problem, rows) in enumerate(numbers.items()):
        place = PROBLEMS[problem].place
        names = list(rows)[::-1]
        for row, (metric, label) in enumerate(
            (("lowest_error", "lowest test error (%)"), ("lowest_loss", "lowest test loss"))
        ):
            axis = axes[row, column]
            for k, name in enumerate(names):
                found = [v for v in rows[name][metric]["values"] if v is not None]
                axis.plot(found, [k] * len(found), "o", color=_STYLES[name][0], alpha=0.45, ms=4)
                if found:
                    axis.plot(np.mean(found), k, "|", color=_STYLES[name][0], ms=14, mew=2.2)
            axis.set_yticks(
                range(len(names)), [OPTIMIZERS[n][0] if not column else "" for n in names]
            )
            axis.set_xlabel(label, color=report.BLACK)
            beside = axis.twiny()
            values = [published(name, place)[row] for name in names]
            beside.plot(values, range(len(names)), "x", color=report.PURPLE, ms=5)
            beside.tick_params(axis="x", colors=report.PURPLE)
            beside.spines[["top", "right"]].set_visible(False)
            if not row:
                beside.set_xlabel(f"the paper's (x):\n{PROBLEMS[place].title}", color=report.PURPLE)
                axis.set_title(PROBLEMS[problem].title, pad=10)
    report.save(drawn, study)
