"""The target loss, and what it takes to reach it."""

import math
from collections.abc import Sequence
from typing import Any

FRACTION = 0.75
"""The target is what tuned AdamW has reached after this part of its steps, on every fresh seed."""


def target_of(results: Sequence[dict[str, Any]]) -> float:
    """Read the target off the reference's runs.

    Args:
        results: What they returned, one for each seed.

    Returns:
        The lowest loss that was seen in the first FRACTION of the steps; the highest of these.
    """
    return max(_lowest(result["curves"]) for result in results)


def _lowest(curves: dict[str, list[float]]) -> float:
    last = FRACTION * curves["step"][-1]
    seen = zip(curves["step"], curves["loss"], strict=True)
    return min(loss for step, loss in seen if step <= last)


def reach(result: dict[str, Any], target: float) -> tuple[int, float, float] | None:
    """Find where a run first has the target loss or less, at one of its looks.

    Args:
        result: What the run returned.
        target: The loss.

    Returns:
        The steps and the seconds that it took, and the loss there; None if it was never seen there,
        or diverged.
    """
    if result["diverged"]:
        return None
    curves = result["curves"]
    for step, seconds, loss in zip(curves["step"], curves["seconds"], curves["loss"], strict=True):
        if loss <= target:
            return step, seconds, loss
    return None


def score(result: dict[str, Any], target: float | None) -> tuple[float, float]:
    """Rank a run.

    Args:
        result: What the run returned.
        target: The loss to reach; None while it is not known.

    Returns:
        Numbers of which less is better, the first that differs deciding: the steps to the target,
        and the loss there, or the last loss of a run that has not reached it.
    """
    if target is not None and (reached := reach(result, target)) is not None:
        return reached[0], reached[2]
    last = result["metrics"]["loss"]
    return math.inf, math.inf if last is None else last


def ratio(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Divide one mean by another.

    Args:
        first: A mean and its standard error.
        second: Another, of independent values.

    Returns:
        The ratio and its standard error to first order.
    """
    value = first[0] / second[0]
    return value, value * math.hypot(first[1] / first[0], second[1] / second[0])
