from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from edgevit.errors import UsageError
from edgevit.measure.ranks import rank_test, ratio_interval, smallest_p


@pytest.mark.parametrize("sizes", [(1, 1), (3, 4), (7, 9), (20, 13), (30, 30)])
def test_the_exact_test_is_scipys(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(sizes))
    a, b = random.normal(0, 1, sizes[0]), random.normal(0.7, 1, sizes[1])
    expected = scipy.stats.mannwhitneyu(a, b, method="exact").pvalue
    assert rank_test(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_counted_exactly(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 4, 10)
    ranks = scipy.stats.rankdata(values)
    sums = np.array([ranks[list(chosen)].sum() for chosen in combinations(range(10), 4)])
    distance = np.abs(sums - 4 * 11 / 2)
    expected = (distance >= abs(ranks[:4].sum() - 22)).mean()
    assert rank_test(values[:4], values[4:]) == pytest.approx(expected, rel=1e-12)


def test_many_values_use_the_normal_approximation() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 30, 80), random.integers(3, 33, 50)
    expected = scipy.stats.mannwhitneyu(a, b, method="asymptotic").pvalue
    assert rank_test(a, b) == pytest.approx(expected, rel=1e-12)
    assert rank_test([1.0] * 40, [1.0] * 40) == 1


def test_the_two_ways_meet() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(0, 1, 30), random.normal(0.4, 1, 30)
    approximate = scipy.stats.mannwhitneyu(a, b, method="asymptotic").pvalue
    assert rank_test(a, b) == pytest.approx(approximate, rel=0.05)


def test_it_is_symmetric_and_extreme_splits_are_rare() -> None:
    low, high = [1.0, 2, 3, 4], [5.0, 6, 7, 8]
    assert rank_test(low, high) == rank_test(high, low) == pytest.approx(2 / 70)


@pytest.mark.parametrize("sides", [([], [1.0]), ([1.0], []), ([float("nan")], [1.0])])
def test_nothing_to_compare(sides: tuple[list[float], list[float]]) -> None:
    with pytest.raises(UsageError, match="rank test"):
        rank_test(*sides)


@pytest.mark.parametrize(("first", "second"), [(3, 4), (6, 6), (10, 7), (40, 12)])
def test_the_smallest_p_is_that_of_sides_wholly_apart(first: int, second: int) -> None:
    apart = rank_test(np.arange(first), first + np.arange(second))
    assert smallest_p(first, second) == pytest.approx(apart, rel=1e-12)
    mixed = np.random.default_rng(0).permutation(first + second)
    assert rank_test(mixed[:first], mixed[first:]) >= apart


@pytest.mark.parametrize("sizes", [(5, 5), (8, 6), (10, 10), (35, 9)])
def test_the_interval_of_a_ratio_is_the_test_turned_round(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(sizes))
    first, second = (40 * random.lognormal(0, 0.05, n) for n in sizes)
    interval = ratio_interval(first, second, 0.05)
    assert interval is not None
    low, high = interval
    for ratio in (low * 0.9999, high * 1.0001):
        assert rank_test(first * ratio, second) <= 0.05
    for ratio in (low * 1.0001, high * 0.9999):
        assert rank_test(first * ratio, second) > 0.05


def test_the_interval_covers_the_ratio_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        first, second = random.lognormal(0, 0.1, 8), 1.1 * random.lognormal(0, 0.1, 9)
        low, high = ratio_interval(first, second, 0.05) or (0, 0)
        covered += low <= 1.1 <= high
    assert 940 <= covered <= 985


def test_the_interval_turns_over_with_its_sides() -> None:
    first, second = np.random.default_rng(5).lognormal(0, 0.1, (2, 9))
    low, high = ratio_interval(first, second, 0.05) or (0, 0)
    assert ratio_interval(second, first, 0.05) == pytest.approx((1 / high, 1 / low))


def test_a_few_rounds_have_no_interval() -> None:
    assert smallest_p(3, 3) == pytest.approx(0.1)
    assert ratio_interval([1.0, 2, 3], [4.0, 5, 6], 0.05) is None
    assert ratio_interval([1.0, 2, 3, 4], [5.0, 6, 7, 8], 0.05) is not None
