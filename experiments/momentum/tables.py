"""What a problem's table says: one row per optimizer, as texts and as numbers."""

import json
import math
from collections.abc import Sequence

import pandas as pd

from experiments.momentum.quadratic import TARGET, Quadratic
from experiments.momentum.runs import score
from experiments.momentum.study import Outcome
from experiments.stats import mean_and_error

REFERENCE = "nesterov"


def tabulate(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate one problem.

    Args:
        outcomes: What was found on it.

    Returns:
        One row per optimizer, of texts and numbers that :func:`rich_table` and :func:`markdown`
        write as they are.
    """
    problem = outcomes[0].best.problem
    if not isinstance(problem, Quadratic):
        return pd.DataFrame([_task_row(outcome) for outcome in outcomes])
    exact = problem.batch is None
    return pd.DataFrame([_quadratic_row(outcome, problem, exact=exact) for outcome in outcomes])


def _quadratic_row(outcome: Outcome, problem: Quadratic, *, exact: bool) -> dict[str, object]:
    found = {"optimizer": outcome.best.arm.entry.title}
    trials = [trial["metrics"] for trial in outcome.trials]
    if exact:
        steps = [result["metrics"]["steps"] for result in outcome.results]
        done = [trial["steps"] for trial in trials if trial["steps"] is not None]
        found[f"steps to {TARGET:.0e}"] = (
            f"> {problem.steps}" if None in steps else _mean(steps, ".0f")
        )
        found["settings that reach it"] = f"{len(done)} of {len(trials)}"
    found["relative loss"] = _mean([r["metrics"]["loss"] for r in outcome.results], ".1e")
    if not exact:
        losses = [math.inf if t["loss"] is None else t["loss"] for t in trials]
        found["median over settings"] = f"{sorted(losses)[len(losses) // 2]:.1e}"
    found["diverged settings"] = f"{sum(t['diverged'] for t in outcome.trials)} of {len(trials)}"
    return found | {"settings": written(outcome)}


def _task_row(outcome: Outcome) -> dict[str, object]:
    metrics = [result["metrics"] for result in outcome.results]
    losses = [score(outcome.best.problem, trial)[0] for trial in outcome.trials]
    return {
        "optimizer": outcome.best.arm.entry.title,
        "test error (%)": _mean([m["test_error"] for m in metrics], ".2f", 100.0),
        "test NLL": _mean([m["test_nll"] for m in metrics], ".3f"),
        "ECE (%)": _mean([m["test_ece"] for m in metrics], ".2f", 100.0),
        "validation NLL": f"{min(losses):.3f}",
        "median over settings": f"{sorted(losses)[len(losses) // 2]:.3f}",
        "settings": written(outcome),
    }


def _mean(values: Sequence[float | None], digits: str, factor: float = 1.0) -> str:
    numbers = [value * factor for value in values if value is not None]
    if len(numbers) < len(values):
        return f"diverged {len(values) - len(numbers)}/{len(values)}"
    mean, error = mean_and_error(numbers)
    return f"{mean:{digits}} ± {error:{digits}}" if math.isfinite(error) else f"{mean:{digits}}"


def written(outcome: Outcome) -> str:
    """Write the settings that were selected.

    Args:
        outcome: What was found.

    Returns:
        The numbers that were tuned.
    """
    return ", ".join(f"{name}={value:g}" for name, value in outcome.best.values.items())


def numbers(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate one problem with all digits.

    Args:
        outcomes: What was found on it.

    Returns:
        One row per optimizer: each metric's mean over the fresh seeds and its ``_se``, which a
        metric that a run lacks does not have.
    """
    rows = []
    for outcome in outcomes:
        row: dict[str, object] = {
            "optimizer": outcome.best.arm.entry.title,
            "settings_tried": len(outcome.trials),
            "settings_diverged": sum(trial["diverged"] for trial in outcome.trials),
            "seeds": len(outcome.results),
        }
        for name in outcome.results[0]["metrics"]:
            values = [result["metrics"][name] for result in outcome.results]
            known = (math.nan, math.nan) if None in values else mean_and_error(values)
            row[name], row[f"{name}_se"] = known
        rows.append(row | {"settings": json.dumps(outcome.best.values)})
    return pd.DataFrame(rows)


def pace(outcomes: Sequence[Outcome]) -> list[str]:
    """Compare the steps to the target with those of SGD with Nesterov momentum.

    Args:
        outcomes: What was found on a quadratic with exact gradients.

    Returns:
        One line, if that optimizer reached the target from every seed.
    """
    steps = {
        outcome.best.arm.entry.name: [result["metrics"]["steps"] for result in outcome.results]
        for outcome in outcomes
    }
    usual = steps.get(REFERENCE, [None])
    if None in usual:
        return []
    ratios = []
    for outcome in outcomes:
        name, title = outcome.best.arm.entry.name, outcome.best.arm.entry.title
        if name != REFERENCE:
            reached = None not in steps[name]
            ratio = f"{sum(steps[name]) / sum(usual):.2f}" if reached else "not reached"
            ratios.append(f"{title} {ratio}")
    return [f"Steps in units of those of tuned Nesterov SGD: {', '.join(ratios)}."]
