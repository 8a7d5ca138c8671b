from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from edgevit.errors import UsageError
from edgevit.measure.statistics import FEW_RUNS, Samples, Statistics


def skewed(rounds: int, runs: int, *, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    values = 5e6 * random.lognormal(0, 0.05, (rounds, runs)) + random.exponential(2e5, (rounds, 1))
    return [[int(v) for v in row] for row in values]


@pytest.fixture
def statistics() -> Statistics:
    return Statistics.from_rounds(skewed(10, 23))


def milliseconds(statistics: Statistics) -> NDArray[np.float64]:
    return statistics.ns / 1e6


def test_figures_are_those_of_numpy_and_scipy(statistics: Statistics) -> None:
    values = milliseconds(statistics)
    assert statistics.n == 230
    assert statistics.median_ms == np.median(values)
    assert statistics.p90_ms == pytest.approx(np.percentile(values, 90), rel=1e-15)
    assert statistics.p99_ms == pytest.approx(np.percentile(values, 99), rel=1e-15)
    assert (statistics.min_ms, statistics.max_ms) == (values.min(), values.max())
    assert statistics.mean_ms == pytest.approx(values.mean(), rel=1e-15)
    assert statistics.stdev_ms == pytest.approx(scipy.stats.tstd(values), rel=1e-12)
    assert statistics.mad_ms == pytest.approx(scipy.stats.median_abs_deviation(values), rel=1e-12)


def test_percentiles_follow_type_7_of_hyndman_and_fan() -> None:
    statistics = Statistics.from_rounds([[n * 1_000_000 for n in (1, 2, 3, 4)]])
    # h = (n - 1) p + 1 = 3.7, between the third and the fourth value.
    assert statistics.p90_ms == pytest.approx(3.7)


def test_outliers_are_counted_and_kept() -> None:
    values = [1_000_000 + n for n in range(99)] + [9_000_000]
    statistics = Statistics.from_rounds([values])
    assert statistics.outliers == 1
    assert statistics.max_ms == 9.0
    assert statistics.mean_ms > 1.07


def test_a_run_on_the_fence_is_no_outlier() -> None:
    # Quartiles 20 and 30, fences 5 and 45.
    assert Statistics.from_rounds([[20, 20, 30, 30, 45]]).outliers == 0
    assert Statistics.from_rounds([[20, 20, 30, 30, 46]]).outliers == 1
    assert Statistics.from_rounds([[5, 20, 20, 30, 30]]).outliers == 0
    assert Statistics.from_rounds([[4, 20, 20, 30, 30]]).outliers == 1


@pytest.mark.parametrize(
    ("rounds", "order", "level"),
    [(2, 1, 0.5), (5, 1, 0.9375), (6, 1, 0.96875), (9, 2, 0.9609375), (20, 6, 0.9586105346679688)],
)
def test_the_interval_is_made_of_order_statistics(rounds: int, order: int, level: float) -> None:
    values = [[(n * 7 % rounds + 1) * 1_000_000] for n in range(rounds)]
    statistics = Statistics.from_rounds(values)
    medians = sorted(row[0] / 1e6 for row in values)
    assert statistics.interval_ms == (medians[order - 1], medians[-order])
    assert statistics.interval_level == level


@pytest.mark.parametrize("rounds", [2, 6, 10, 20, 31, 100])
def test_the_stated_level_is_that_of_the_binomial(rounds: int) -> None:
    statistics = Statistics.from_rounds([[n + 1] for n in range(rounds)])
    assert statistics.interval_ms is not None
    k = round(statistics.interval_ms[0] * 1e6)
    binomial = scipy.stats.binom(rounds, 0.5)
    assert statistics.interval_level == pytest.approx(
        binomial.cdf(rounds - k) - binomial.cdf(k - 1)
    )
    if rounds >= 6:
        assert statistics.interval_level >= 0.95
        assert 1 - 2 * binomial.cdf(k) < 0.95  # one further in would not do


def coverage(rounds: int, runs: int, between: float, *, trials: int = 1500) -> float:
    """How often the interval holds the true median of lognormal runs with shared round effects."""
    random = np.random.default_rng(7)
    effects = random.normal(0, between, (trials, rounds, 1))
    noise = random.normal(0, 0.03, (trials, rounds, runs))
    samples = np.rint(5e6 * np.exp(effects + noise)).astype(np.int64)
    held = 0
    for trial in samples:
        low, high = Statistics(trial.ravel(), np.repeat(np.arange(rounds), runs)).interval_ms or (
            0,
            0,
        )
        held += low <= 5.0 <= high
    return held / trials


@pytest.mark.parametrize("rounds", [6, 10, 20])
@pytest.mark.parametrize("between", [0.0, 0.05], ids=["independent", "correlated"])
def test_the_interval_covers_the_median(rounds: int, between: float) -> None:
    # Three standard errors of the simulation below the nominal 95 %.
    assert coverage(rounds, 9, between) >= 0.95 - 3 * 0.0056


def test_an_interval_blind_to_rounds_would_not_cover() -> None:
    """The simulation above can tell: an interval over all samples misses most of the time."""
    random = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        effects = random.normal(0, 0.05, (10, 1))
        runs = np.sort((5 * np.exp(effects + random.normal(0, 0.03, (10, 30)))).ravel())
        low, high = (int(scipy.stats.binom.ppf(q, 300, 0.5)) for q in (0.025, 0.975))
        held += runs[low] <= 5 <= runs[high]
    assert held / 300 < 0.6


def test_the_interval_holds_the_headline_of_uneven_rounds() -> None:
    # Nine short slow rounds and a long fast one, which holds the median of all samples.
    rounds = [[9_000_000 + n] for n in range(11)] + [[1_000_000] * 200]
    statistics = Statistics.from_rounds(rounds)
    assert statistics.interval_ms is not None
    low, high = statistics.interval_ms
    assert low <= statistics.median_ms <= high
    assert statistics.median_ms == 1.0


def test_thousands_of_rounds_have_an_interval() -> None:
    statistics = Statistics.from_rounds(skewed(1500, 2))
    assert statistics.interval_level is not None
    assert 0.95 <= statistics.interval_level < 0.955


def test_drift_is_seen_and_noise_is_not() -> None:
    random = np.random.default_rng(3)
    steady = random.normal(5e6, 5e4, (12, 20))
    drifting = steady * np.linspace(1, 1.1, 12)[:, None]
    quiet, loud = (
        Statistics.from_rounds([[int(v) for v in row] for row in values]).drift
        for values in (steady, drifting)
    )
    assert quiet is not None
    assert loud is not None
    assert quiet.p_value > 0.05
    assert loud.p_value < 0.01
    assert loud.ratio == pytest.approx(1.055, abs=0.01)


def test_the_middle_round_stays_aside() -> None:
    drift = Statistics.from_rounds([[100], [999], [300]]).drift
    assert drift is not None
    assert drift.ratio == pytest.approx(3)


def test_rounds_may_come_in_any_order_and_in_parts() -> None:
    blocks = [Samples(1, 1, (3, 4)), Samples(0, 1, (1,)), Samples(1, 1, (5,))]
    statistics = Statistics.from_samples(blocks)
    assert statistics.round_count == 2
    assert statistics.round_medians_ms.tolist() == [1e-6, 4e-6]


def test_a_constant_sample() -> None:
    statistics = Statistics.from_rounds([[1_100_000] * 7] * 8)
    figures = statistics.to_json()
    for name in ("median_ms", "mean_ms", "min_ms", "max_ms", "p90_ms", "p99_ms"):
        assert figures[name] == 1.1, name
    assert figures["interval_ms"] == [1.1, 1.1]
    assert (statistics.stdev_ms, statistics.mad_ms, statistics.outliers) == (0, 0, 0)
    assert statistics.drift is not None
    assert (statistics.drift.ratio, statistics.drift.p_value) == (1, 1)


def test_a_single_run() -> None:
    statistics = Statistics.from_rounds([[2_000_000]])
    assert statistics.median_ms == statistics.p99_ms == 2.0
    assert statistics.stdev_ms is None
    assert statistics.interval_ms is None
    assert statistics.interval_level is None
    assert statistics.drift is None
    assert any("1 run " in note for note in statistics.notes)
    assert any("single round" in note for note in statistics.notes)


def test_few_runs_and_few_rounds_are_said() -> None:
    few = Statistics.from_rounds(skewed(5, 4)).notes
    assert any("p99 of 20 runs" in note for note in few)
    assert any("94 % only" in note for note in few)
    assert Statistics.from_rounds(skewed(10, FEW_RUNS // 10)).notes == ()


@pytest.mark.parametrize(
    "ns",
    [
        [],
        [float("nan"), 1.0],
        [float("inf")],
        [1.5],
        [0],
        [-1],
        [2**63],
        [True, False],
        ["1"],
        [None],
        [[1]],
    ],
    ids=repr,
)
def test_what_no_clock_gives_is_refused(ns: list[object]) -> None:
    with pytest.raises(UsageError, match="samples"):
        Statistics(ns, [0] * len(ns))  # type: ignore[arg-type]


def test_rounds_have_to_fit() -> None:
    with pytest.raises(UsageError, match="2 samples, but 1 round"):
        Statistics(np.array([1, 2]), np.array([0]))
    with pytest.raises(UsageError, match="rounds must be at least 0"):
        Statistics(np.array([1]), np.array([-1]))


def test_samples_cannot_be_changed_afterwards() -> None:
    ns = np.array([1, 2, 3])
    statistics = Statistics(ns, np.zeros(3))
    ns[0] = 100
    assert statistics.max_ms == 3e-6
    with pytest.raises(ValueError, match="read-only"):
        statistics.ns[0] = 5


def test_the_figures_are_plain_json(statistics: Statistics) -> None:
    figures = statistics.to_json()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["percentile_rule"].startswith("linear")
