"""What a task's table says: one row per optimizer, as texts and as numbers."""

import json
import math
from collections.abc import Sequence

import pandas as pd

from experiments.kronecker.arms import REFERENCE
from experiments.kronecker.study import Outcome
from experiments.kronecker.targets import ratio, reach
from experiments.stats import mean_and_error

AGAIN = "AdamW's steps / these"


def tabulate(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate one task.

    Args:
        outcomes: What was found on it.

    Returns:
        One row per optimizer, of texts.
    """
    (usual,) = (outcome for outcome in outcomes if outcome.contender.name == REFERENCE)
    return pd.DataFrame([_row(outcome, usual) for outcome in outcomes])


def _row(outcome: Outcome, usual: Outcome) -> dict[str, str]:
    row = {"optimizer": outcome.contender.title}
    steps, seconds = reached(outcome)
    count, missed = len(outcome.results), len(outcome.results) - len(steps)
    if missed:
        some = f" ({len(steps)} of {count})" if steps else ""
        row["steps to target"], row["seconds to target"] = f"> {outcome.steps}{some}", "-"
    else:
        row["steps to target"] = _written(mean_and_error(steps), ".0f")
        row["seconds to target"] = _written(mean_and_error(seconds), ".2f")
    row[AGAIN] = "-" if (pace := speed_up(outcome, usual)) is None else _written(pace, ".2f")
    for name, words in (("loss", "last loss"), ("held_loss", "last held-out loss")):
        row[words] = _mean(outcome, name, ".4g", 1.0)
    row["ms per step"] = _mean(outcome, "seconds_per_step", ".1f", 1e3)
    good = [trial for trial in outcome.trials if reach(trial, outcome.target) is not None]
    row["settings that reach it"] = f"{len(good)} of {len(outcome.trials)}"
    return row | {"settings": written(outcome)}


def reached(outcome: Outcome) -> tuple[list[int], list[float]]:
    """The steps and seconds to the target, of the fresh seeds that have seen it.

    Args:
        outcome: What was found.

    Returns:
        Both lists.
    """
    found = [reach(result, outcome.target) for result in outcome.results]
    known = [place for place in found if place is not None]
    return [steps for steps, *_ in known], [seconds for _, seconds, _ in known]


def speed_up(outcome: Outcome, usual: Outcome) -> tuple[float, float] | None:
    """Divide the reference's steps to the target by an optimizer's.

    Args:
        outcome: What was found of the optimizer.
        usual: What was found of the reference.

    Returns:
        The ratio of the means and its standard error; None where a run of either has not seen the
        target, and for the reference itself.
    """
    theirs, mine = reached(usual)[0], reached(outcome)[0]
    if outcome is usual or len(theirs) < len(usual.results) or len(mine) < len(outcome.results):
        return None
    return ratio(mean_and_error(theirs), mean_and_error(mine)) if min(mine) > 0 else None


def _mean(outcome: Outcome, name: str, digits: str, factor: float) -> str:
    values = [result["metrics"][name] for result in outcome.results]
    known = [value * factor for value in values if value is not None]
    if len(known) < len(values):
        return f"diverged {len(values) - len(known)}/{len(values)}"
    return _written(mean_and_error(known), digits)


def _written(pair: tuple[float, float], digits: str) -> str:
    mean, error = pair
    if not math.isfinite(error):
        return f"{mean:{digits}}"
    if digits.endswith("g"):  # as many decimals as the mean shows
        text = f"{mean:#{digits}}"
        decimals = len(text.partition(".")[2]) if "e" not in text else 1
        return f"{mean:.{decimals}f} ± {error:.{decimals}f}"
    return f"{mean:{digits}} ± {error:{digits}}"


def written(outcome: Outcome) -> str:
    """Write the settings that were selected.

    Args:
        outcome: What was found.

    Returns:
        The numbers that were tuned.
    """
    return ", ".join(f"{name}={value:g}" for name, value in outcome.values.items())


def rows(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate the runs on fresh seeds with all digits.

    Args:
        outcomes: What was found.

    Returns:
        One row per task, optimizer and seed; what a run has not reached is missing.
    """
    found = []
    for outcome in outcomes:
        for seed, result in enumerate(outcome.results, 1):
            steps, seconds, _ = reach(result, outcome.target) or (None, None, None)
            found.append(
                {
                    "task": outcome.task.name,
                    "optimizer": outcome.contender.title,
                    "seed": seed,
                    "target": outcome.target,
                    "steps_to_target": steps,
                    "seconds_to_target": seconds,
                    **result["metrics"],
                    "diverged": result["diverged"],
                    "settings": json.dumps(outcome.values),
                }
            )
    return pd.DataFrame(found)


def curve_rows(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate the curves of the runs on fresh seeds.

    Args:
        outcomes: What was found.

    Returns:
        One row per run and look.
    """
    parts = [
        pd.DataFrame(
            {
                "task": outcome.task.name,
                "optimizer": outcome.contender.title,
                "seed": seed,
                **result["curves"],
            }
        )
        for outcome in outcomes
        for seed, result in enumerate(outcome.results, 1)
    ]
    return pd.concat(parts, ignore_index=True)
