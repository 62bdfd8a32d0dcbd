"""What was found as rows: one for every method and predictive distribution, and differences."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.stats import mean_and_error
from experiments.uncertainty.metrics import METRICS
from experiments.uncertainty.study import Outcome, Plan
from experiments.uncertainty.training import passes_per_example

PREDICTIVES = ("point", "scaled", "posterior", "laplace")
RIVAL, BOUND = "ivon", "ensemble"
_COMPARED = ("nll", "ece", "error", "auroc", "rotated_nll")


def rows(outcomes: Sequence[Outcome], plan: Plan) -> pd.DataFrame:
    """Tabulate every run on the test images.

    Args:
        outcomes: What was found.
        plan: What was done.

    Returns:
        One row per method, seed and predictive distribution; metrics of a diverged run are NaN.
    """
    found = []
    for outcome in outcomes:
        for seed, result in enumerate(outcome.results, 1):
            metrics = result["metrics"] or {main_predictive(outcome): {}}
            found += [
                {
                    "method": outcome.method.name,
                    "title": outcome.method.title,
                    "predictive": name,
                    "seed": seed,
                    **{metric: metrics[name].get(metric, math.nan) for metric in METRICS},
                    "diverged": result["diverged"],
                    "passes": passes_per_example(outcome.method, plan.epochs, plan.equal),
                    "train_loss": result["curves"].get("train_loss", math.nan),
                    "validation_nll": outcome.validation_nll,
                    "settings": json.dumps(outcome.values),
                    "fitted": json.dumps(outcome.fitted),
                }
                for name in PREDICTIVES
                if name in metrics
            ]
    return pd.DataFrame(found)


def main_predictive(outcome: Outcome) -> str:
    """The predictive distribution that a method's settings were selected for."""
    return "point" if outcome.method.asks == "point" else "posterior"


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds.

    Args:
        table: What :func:`rows` returned.

    Returns:
        One row per method and predictive distribution, in order: for each metric its mean and
        ``_se``, and how many seeds diverged.
    """
    summary = []
    same = ["method", "title", "predictive", "passes", "validation_nll", "settings", "fitted"]
    for key, group in table.groupby(same, sort=False):
        row: dict[str, Any] = dict(zip(same, key, strict=True))
        for name in METRICS:
            row[name], row[f"{name}_se"] = mean_and_error(group[name].tolist())
        summary.append(row | {"seeds": len(group), "diverged": int(group["diverged"].sum())})
    return pd.DataFrame(summary)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Subtract, seed by seed, what a method's posterior predictive is to be compared with.

    Args:
        table: What :func:`rows` returned.

    Returns:
        One row per method and reference: its own point estimate, that with its logits scaled,
        IVON's posterior predictive, and the deep ensemble; each metric's mean difference and its
        ``_se``.
    """
    by_name = dict(list(table.groupby(["method", "predictive"], sort=False)))
    found = []
    for (method, predictive), runs in by_name.items():
        if predictive not in ("posterior", "laplace"):
            continue
        references = {
            "own point estimate": (method, "point"),
            "own point estimate, scaled": (method, "scaled"),
        }
        if method != RIVAL:
            references["IVON, posterior"] = (RIVAL, "posterior")
        if method != BOUND:
            references["deep ensemble"] = (BOUND, "posterior")
        for words, key in references.items():
            if key in by_name:
                found.append(_difference(runs, by_name[key], words))
    return pd.DataFrame(found)


def _difference(runs: pd.DataFrame, others: pd.DataFrame, words: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": runs["method"].iloc[0],
        "title": runs["title"].iloc[0],
        "predictive": runs["predictive"].iloc[0],
        "minus": words,
    }
    pairs = runs.set_index("seed")[list(METRICS)] - others.set_index("seed")[list(METRICS)]
    for name in _COMPARED:
        row[name], row[f"{name}_se"] = mean_and_error(pairs[name].tolist())
    return row


def best_filters(outcomes: Sequence[Outcome]) -> list[str]:
    """The filters with the lowest NLL on validation images, which no test image has decided.

    Args:
        outcomes: What was found.

    Returns:
        Names: the best of AdaBayes and of AdaBayes-FP, the better one first; fewer where no such
        filter ran.
    """
    best: dict[bool, Outcome] = {}
    for outcome in outcomes:
        if outcome.method.filters:
            stationary = outcome.method.name.startswith("adabayes-fp")
            rival = best.get(stationary)
            if rival is None or outcome.validation_nll < rival.validation_nll:
                best[stationary] = outcome
    return [o.method.name for o in sorted(best.values(), key=lambda o: o.validation_nll)]
