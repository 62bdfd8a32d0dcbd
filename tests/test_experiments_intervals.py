"""Intervals hold the truth as often as they say, on simulated runs whose truth is known."""

import math
from itertools import combinations

import numpy as np
import pytest

from experiments.intervals import (
    compare,
    expected_best,
    first_below,
    lr_width,
    mean_interval,
    paired_difference,
    time_to_target,
)

REPEATS = 300
SD = math.sqrt(0.95 * 0.05 / REPEATS)  # of a coverage measured by so many repeats
APPROXIMATE = 0.02  # the studentized bootstrap's own error with 5 to 20 values
DRAWS = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "uniform": lambda rng, size: rng.random(size) - 0.5,
    "laplace": lambda rng, size: rng.laplace(size=size),
    "lognormal": lambda rng, size: rng.lognormal(0, 0.5, size) - math.exp(0.125),
    "exponential": lambda rng, size: rng.exponential(size=size) - 1,
}


def coverage(intervals, truth):
    return np.mean([one.low <= truth <= one.high for one in intervals])


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("name", DRAWS)
def test_mean_intervals_of_few_seeds_cover_nominally(name: str, seeds: int) -> None:
    values = 3.0 + DRAWS[name](np.random.default_rng(seeds), (REPEATS, seeds))
    found = coverage([mean_interval(row) for row in values], 3.0)
    assert abs(found - 0.95) <= 3 * SD + APPROXIMATE


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_mean_intervals_below_five_seeds_are_exact_for_normal_values(seeds: int) -> None:
    values = np.random.default_rng(seeds).standard_normal((REPEATS, seeds))
    assert abs(coverage([mean_interval(row) for row in values], 0.0) - 0.95) <= 3 * SD


@pytest.mark.parametrize("name", DRAWS)
def test_paired_differences_cover_a_known_effect_nominally(name: str) -> None:
    rng = np.random.default_rng(7)
    shared = 5 * rng.standard_normal((REPEATS, 5))  # what runs of a seed have in common
    one, other = (shared + DRAWS[name](rng, shared.shape) for _ in range(2))
    found = [paired_difference(a + 1.5, b) for a, b in zip(one, other, strict=True)]
    assert coverage([difference.interval for difference in found], 1.5) >= 0.95 - 3 * SD
    assert all(
        d.different is not (d.interval.low <= 0 <= d.interval.high) for d in found
    )  # one comparison alone: the test and the interval say the same


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("arms", [2, 5])
def test_equal_arms_are_declared_different_at_most_at_the_nominal_rate(
    arms: int, name: str
) -> None:
    rng = np.random.default_rng(arms)
    wrong = 0
    for _ in range(REPEATS):
        values = {str(k): DRAWS[name](rng, 5) for k in range(arms)}
        wrong += any(one.different for one in compare(values, "0").values())
    assert wrong / REPEATS <= 0.05 + 3 * SD


def test_a_real_difference_is_found_and_one_algorithm_under_two_names_is_not_two() -> None:
    values = np.array([0.31, 0.35, 0.29, 0.33, 0.36])
    better = values - [0.05, 0.06, 0.055, 0.05, 0.06]
    found = compare({"adamw": values, "again": values.copy(), "better": better}, "adamw")
    assert not found["again"].different
    assert found["again"].p == 1.0
    assert found["better"].different
    assert found["better"].interval.estimate == pytest.approx(-0.055)


def test_holms_correction_multiplies_by_what_is_left() -> None:
    rng = np.random.default_rng(0)
    arms = {
        name: rng.standard_normal(6) + shift
        for name, shift in zip("abcd", (0, 4, 2, 0), strict=True)
    }
    alone = {name: paired_difference(arms[name], arms["a"]).p for name in "bcd"}
    found = compare(arms, "a")
    running = 0.0
    for left, name in zip((3, 2, 1), sorted(alone, key=alone.get), strict=True):
        running = max(running, min(1.0, left * alone[name]))
        assert found[name].p == pytest.approx(running, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_expected_best_is_the_mean_over_all_subsets(k: int) -> None:
    x = np.random.default_rng(k).exponential(size=7)
    brute = np.mean([min(subset) for subset in combinations(x, k)])
    assert expected_best(x, k).estimate == pytest.approx(brute, rel=1e-12)


@pytest.mark.parametrize("k", [2, 5, 10])
def test_expected_best_covers_nominally(k: int) -> None:
    values = np.random.default_rng(k).exponential(size=(REPEATS, 20))
    found = [expected_best(row, k) for row in values]
    assert abs(coverage(found, 1 / k) - 0.95) <= 3 * SD + APPROXIMATE
    means = np.array([one.estimate for one in found])
    assert abs(means.mean() - 1 / k) <= 4 * means.std() / math.sqrt(REPEATS)


def test_no_interval_is_claimed_where_none_keeps_its_level() -> None:
    assert math.isnan(mean_interval([1.0]).low)
    assert math.isnan(expected_best(np.arange(10.0), 6).high)
    assert not math.isnan(expected_best(np.arange(10.0), 5).high)
    with pytest.raises(ValueError, match="from 1 to the number of values, 10"):
        expected_best(np.arange(10.0), 11)


def test_a_diverged_run_declares_nothing() -> None:
    assert math.isnan(mean_interval([1.0, math.nan, 2.0]).estimate)
    found = compare({"a": [1, 2, 3], "b": [1, math.nan, 3], "c": [5, 6.1, 7]}, "a")
    assert not found["b"].different
    assert found["c"].different


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = mean_interval([0.1] * 7)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1), rel=1e-15)


def test_lr_width_is_that_of_a_parabola() -> None:
    rates = np.geomspace(1e-5, 1e-1, 201)
    scores = [2 * (1 + (np.log10(rates) - centre) ** 2) for centre in (-3.1, -2.9, -3.0)]
    assert lr_width(rates, scores, 0.25).estimate == pytest.approx(1.0, abs=1e-3)
    assert lr_width(rates, scores, 0.04).estimate == pytest.approx(0.4, abs=1e-3)


def test_lr_width_ends_where_runs_diverge_and_where_the_grid_does() -> None:
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    assert lr_width(rates, [[1.0, 1.0, 1.0, math.nan]]).estimate == pytest.approx(2.0)
    assert lr_width(rates, [[1.0, 1.0, 1.0, 1.0]]).estimate == pytest.approx(3.0)
    assert lr_width(rates, [[9.0, math.nan, 1.0, 1.5]]).estimate == pytest.approx(0.5)
    assert lr_width(rates, [[math.nan] * 4]).estimate == 0.0


def test_time_to_target_counts_runs_that_never_arrive() -> None:
    curves = [[5, 3, 1], [5, 4, 3], [2, 9, 9]]
    times = [first_below(curve, 3, [10, 20, 30]) for curve in curves]
    assert times == [20, 30, 10]
    assert first_below([5, 4], 3, [10, 20]) == math.inf
    found = time_to_target([20, 30, 10, math.inf, math.nan, math.inf, 25], budget=40)
    assert found.median.estimate == 30
    assert found.reached.estimate == pytest.approx(4 / 7)
    assert found.capped.estimate == pytest.approx((20 + 30 + 10 + 25 + 3 * 40) / 7)
    assert found.capped.high <= 40
    assert time_to_target([1.0, math.inf, math.inf], 5).median.estimate == math.inf


@pytest.mark.parametrize("runs", [3, 6, 10, 15])
def test_the_medians_interval_has_the_level_it_states(runs: int) -> None:
    draws = np.random.default_rng(runs).exponential(size=(REPEATS, runs))
    found = [time_to_target(row, math.inf).median for row in draws]
    level = found[0].level
    assert abs(coverage(found, math.log(2)) - level) <= 3 * math.sqrt(level * (1 - level) / REPEATS)
    assert (level >= 0.95) is (runs >= 6)
