"""The numbers of the report: a row for every arm, and what each factor does."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from experiments.ablate.arms import Arm
from experiments.ablate.outcomes import Outcome
from experiments.ablate.plan import Plan
from experiments.intervals import (
    Difference,
    Interval,
    compare,
    expected_best,
    first_below,
    lr_width,
    mean_interval,
    time_to_target,
)
from experiments.registry import SLOTS

NEAR = 0.25
VERDICTS = ("lower", "not told apart", "higher")


def arm_rows(plan: Plan, outcomes: Sequence[Outcome], target: float) -> list[dict[str, Any]]:
    """What was found of every arm on one task.

    Args:
        plan: What was done.
        outcomes: One task's outcomes.
        target: NLL to which time is measured.

    Returns:
        For every arm its intervals, by the quantity's name.
    """
    level = plan.asked.level
    tests = {one.arm.label: one.test("nll") for one in outcomes if one.tests}
    reference, gaps = plan.reference.label, dict[str, Difference]()
    if reference in tests:
        gaps = compare(tests, reference, level)
    rows = []
    for one in outcomes:
        row: dict[str, Any] = {"arm": one.arm.label, "setting": setting(one)}
        diverged = sum(run["nll"] is None for run in one.trials)
        row |= {"trials": len(one.trials), "trials_diverged": diverged}
        if one.tests:
            row["nll"] = mean_interval(one.test("nll"), level)
            row["error"] = mean_interval([100 * e for e in one.test("error")], level)
            row["time"] = times(one, target, level)
        if one.arm.label in gaps:
            row["difference"] = gaps[one.arm.label]
        if one.sensitivity:
            values = [dict(values)[one.arm.rate or ""] for values in one.rates]
            width = lr_width(values, scores(one), NEAR, level)
            row["width"] = replace(width, low=np.maximum(width.low, 0.0))
        rows.append(row)
    return rows


def setting(outcome: Outcome) -> str:
    """The setting that was selected, as text."""
    if outcome.best is None:
        return "all diverged"
    return ", ".join(f"{name}={value:g}" for name, value in outcome.best) or "-"


def scores(outcome: Outcome) -> list[list[float]]:
    """NLL on held-out training examples, a row per seed and a column per rate."""
    return [[_number(run["nll"]) for run in runs] for runs in outcome.sensitivity]


def target_of(plan: Plan, outcomes: Sequence[Outcome]) -> float:
    """The NLL to which time is measured: the user's, or what half of the arms end at.

    Args:
        plan: What was done.
        outcomes: One task's outcomes.

    Returns:
        The target; NaN where no arm ended.
    """
    if plan.asked.target is not None:
        return plan.asked.target
    ends = [statistics.fmean(one.test("nll")) for one in outcomes if one.tests]
    finite = [end for end in ends if math.isfinite(end)]
    return float(f"{statistics.median_high(finite):.3g}") if finite else math.nan


def times(outcome: Outcome, target: float, level: float) -> Any:
    """Epochs until the test NLL is at or below the target.

    Args:
        outcome: An arm's.
        target: The target.
        level: Level of the intervals.

    Returns:
        The median time, and the share of runs that arrive.
    """
    curves = [[_number(value) for value in run["curves"]["nll"]] for run in outcome.tests]
    epochs = range(1, len(curves[0]) + 1)
    arrivals = [first_below(curve, target, epochs) for curve in curves]
    return time_to_target(arrivals, len(epochs), level)


def best_of(outcome: Outcome, level: float, *, independent: bool) -> list[Interval]:
    """The lowest NLL on held-out training examples that k trials are expected to find.

    Args:
        outcome: An arm's.
        level: Level of the intervals.
        independent: Whether trials do not know of each other; else the lowest of the first k.

    Returns:
        For k from 1 to the number of trials; a trial that diverged counts as the worst that did
        not.
    """
    values = [_number(run["nll"]) for run in outcome.trials]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return []
    values = [value if math.isfinite(value) else max(finite) for value in values]
    if independent:
        return [expected_best(values, k, level) for k in range(1, len(values) + 1)]
    lowest = [min(values[:k]) for k in range(1, len(values) + 1)]
    return [Interval(value, math.nan, math.nan, level) for value in lowest]


def factor_rows(plan: Plan, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What each factor does: a level against the factor's first one, all else being the same.

    Args:
        plan: What was done.
        outcomes: One task's outcomes.

    Returns:
        A row for every level but the first of its factor, averaged over the arms that exist, and
        did not diverge, at all its levels.
    """
    tests = {one.arm: one.test("nll") for one in outcomes if one.arm.kind == "parts" and one.tests}
    places = {arm: place(arm) for arm, test in tests.items() if all(map(math.isfinite, test))}
    rows = []
    for factor in dict.fromkeys(name for found in places.values() for name in found):
        groups: dict[tuple[tuple[str, str], ...], dict[str, Arm]] = {}
        for arm, found in places.items():
            rest = tuple((k, v) for k, v in found.items() if k != factor)
            if factor in found:
                groups.setdefault(rest, {})[found[factor]] = arm
        levels = list(dict.fromkeys(value for group in groups.values() for value in group))
        whole = [group for group in groups.values() if len(group) == len(levels)]
        if len(levels) < 2 or not whole:
            continue
        means = {
            one: [
                statistics.fmean(seed) for seed in zip(*(tests[g[one]] for g in whole), strict=True)
            ]
            for one in levels
        }
        for one, gap in compare(means, levels[0], plan.asked.level).items():
            compared = {"factor": factor, "level": one, "against": levels[0]}
            rows.append({**compared, "arms": len(whole), "difference": gap})
    return rows


def place(arm: Arm) -> dict[str, str]:
    """Where an arm is in the grid."""
    return {**dict(zip(SLOTS, arm.texts, strict=True)), **{k: repr(v) for k, v in arm.fixed}}


def verdict(gap: Difference) -> str:
    """What can be said of a difference."""
    if math.isnan(gap.p):
        return "-"
    if not gap.different:
        return VERDICTS[1]
    return VERDICTS[0 if gap.interval.estimate < 0 else 2]


def frame(rows: Sequence[Mapping[str, Any]], task: str) -> pd.DataFrame:
    """The rows as numbers, an interval as three columns.

    Args:
        rows: What :func:`arm_rows` or :func:`factor_rows` returned.
        task: The task.

    Returns:
        The table.
    """
    flat = []
    for row in rows:
        numbers: dict[str, Any] = {"task": task}
        for name, value in row.items():
            if isinstance(value, Difference):
                numbers |= _ends(name, value.interval)
                numbers |= {f"{name}_p": value.p, "verdict": verdict(value)}
            elif isinstance(value, Interval):
                numbers |= _ends(name, value)
            elif hasattr(value, "median"):
                numbers |= _ends("epochs_to_target", value.median)
                numbers["reached_target"] = value.reached.estimate
            else:
                numbers[name] = value
        flat.append(numbers)
    return pd.DataFrame(flat)


def _ends(name: str, one: Interval) -> dict[str, float]:
    return {name: one.estimate, f"{name}_low": one.low, f"{name}_high": one.high}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
