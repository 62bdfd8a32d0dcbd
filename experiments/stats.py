"""Means, standard errors and paired differences over seeds."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.train import METRICS, Run

COLUMNS = (*METRICS, "seconds_per_step")
REFERENCE = "AdamW"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Average over seeds.

    Args:
        values: One value per seed.

    Returns:
        The mean and its standard error (the sample standard deviation over the root of the number
        of seeds); the error of a single value is NaN.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def rows(runs: Sequence[Run], results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Tabulate the finished runs, one row each.

    Args:
        runs: The runs.
        results: Their results.

    Returns:
        The run's description and metrics; metrics of a diverged run are NaN.
    """
    import json

    return pd.DataFrame(
        [
            {
                "task": run.task.name,
                "optimizer": run.choice.label,
                "seed": run.seed,
                **{name: _number(result["metrics"][name]) for name in COLUMNS},
                "diverged": result["diverged"],
                "epochs": run.epochs,
                "batch_size": run.task.batch_size,
                "schedule": run.schedule,
                "device": run.device,
                "evaluate_on": run.evaluate_on,
                "settings": json.dumps(run.settings, sort_keys=True),
                **{f"{name}_version": text for name, text in run.versions.items()},
            }
            for run, result in zip(runs, results, strict=True)
        ]
    )


def curve_rows(runs: Sequence[Run], results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Tabulate the learning curves, one row per run and epoch.

    Args:
        runs: The runs.
        results: Their results.

    Returns:
        The curves.
    """
    return pd.DataFrame(
        [
            {
                "task": run.task.name,
                "optimizer": run.choice.label,
                "seed": run.seed,
                "epoch": epoch + 1,
                **{name: _number(values[epoch]) for name, values in result["curves"].items()},
            }
            for run, result in zip(runs, results, strict=True)
            for epoch in range(len(result["curves"]["train_loss"]))
        ],
        columns=["task", "optimizer", "seed", "epoch", "train_loss", *METRICS],
    )


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average each optimizer's runs on each task.

    Args:
        table: What :func:`rows` returned.

    Returns:
        One row per task and optimizer, in order of appearance: for each metric its mean and
        ``_se``, the number of seeds and how many of them diverged. A metric that a run lacks,
        because it diverged, has no mean.
    """
    summary = []
    for (task, optimizer), group in table.groupby(["task", "optimizer"], sort=False):
        row: dict[str, Any] = {"task": task, "optimizer": optimizer}
        for name in COLUMNS:
            row[name], row[f"{name}_se"] = mean_and_error(group[name].tolist())
        summary.append(row | {"seeds": len(group), "diverged": int(group["diverged"].sum())})
    return pd.DataFrame(summary)


def paired_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Subtract AdamW's runs from the others', seed by seed.

    Args:
        table: What :func:`rows` returned.

    Returns:
        One row per task and other optimizer: the mean difference of each metric and its ``_se``;
        empty where AdamW did not run.
    """
    differences = []
    for task, runs in table.groupby("task", sort=False):
        wide = runs.pivot(index="seed", columns="optimizer", values=list(METRICS))
        for optimizer in runs["optimizer"].unique():
            if optimizer == REFERENCE or REFERENCE not in runs["optimizer"].values:
                continue
            row: dict[str, Any] = {"task": task, "optimizer": optimizer}
            for name in METRICS:
                gap = (wide[name][optimizer] - wide[name][REFERENCE]).tolist()
                row[name], row[f"{name}_se"] = mean_and_error(gap)
            differences.append(row)
    return pd.DataFrame(differences)


def best(summary: pd.DataFrame, name: str) -> set[int]:
    """Find the optimizers with the lowest mean.

    Args:
        summary: One task's part of what :func:`summarise` returned.
        name: The metric.

    Returns:
        Their positions; several where they tie, none where no mean exists.
    """
    values = summary[name].tolist()
    finite = [value for value in values if math.isfinite(value)]
    return {k for k, value in enumerate(values) if finite and value == min(finite)}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
