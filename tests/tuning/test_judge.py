"""Which candidate is faster, from rounds with known levels."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.tuning.judge import fastest, judge


def rounds(level: float, count: int, seed: int, spread: float = 0.003, jobs: int = 8) -> dict:
    """Rounds around a level on a machine that drifts by half over the race, in several jobs."""
    noise = np.random.default_rng(seed).normal(1, spread, count)
    drift = np.linspace(1, 1.5, count)
    return {(0, i % jobs, i): level * drift[i] * noise[i] for i in range(count)}


def test_a_difference_shows_through_drift() -> None:
    verdict = judge(rounds(1.04, 16, 0), rounds(1.0, 16, 1))
    assert verdict.word == "slower"
    assert verdict.ratio == pytest.approx(1.04, abs=0.01)
    assert judge(rounds(1.0, 16, 1), rounds(1.04, 16, 0)).word == "faster"


def test_the_same_and_what_is_open() -> None:
    assert judge(rounds(1.0, 16, 2), rounds(1.0, 16, 3)).word == "the same"
    assert judge(rounds(1.0, 16, 4, 0.2), rounds(1.0, 16, 5, 0.2)).word == "open"


def test_what_differs_little_can_be_taken_though_its_loss_is_not_shown() -> None:
    """Two percent, in four jobs: not past their luck, but the faster one is safe to take."""
    slower, base = rounds(1.02, 16, 0, jobs=4), rounds(1.0, 16, 1, jobs=4)
    assert judge(slower, base).word == "not faster"
    assert judge(base, slower).word == "open"
    assert judge(rounds(1.02, 64, 0, jobs=32), rounds(1.0, 64, 1, jobs=32)).word == "slower"


def test_one_job_does_not_tell_a_file_from_the_luck_of_its_opening() -> None:
    slower, base = rounds(1.04, 16, 0, jobs=1), rounds(1.0, 16, 1, jobs=1)
    assert judge(slower, base).word == "not faster"
    assert judge(rounds(1.08, 16, 0, jobs=1), base).word == "slower"
    # Nor does it show that two are the same.
    assert judge(rounds(1.0, 16, 2, jobs=1), rounds(1.0, 16, 3, jobs=1)).word == "open"


def test_too_few_rounds_show_nothing() -> None:
    few = judge(rounds(2.0, 7, 0), rounds(1.0, 7, 1))
    assert (few.word, few.interval) == ("open", None)
    assert judge(rounds(2.0, 8, 0), rounds(1.0, 8, 1)).word == "slower"


def test_rounds_that_differ_are_no_pairs() -> None:
    other = {(1, 0, i): 1.0 for i in range(16)}
    assert judge(rounds(1.0, 16, 0), other).rounds == 0


def test_the_interval_misses_the_truth_seldom() -> None:
    outside = 0
    for seed in range(400):
        verdict = judge(rounds(1.0, 12, 2 * seed, 0.01), rounds(1.0, 12, 2 * seed + 1, 0.01))
        assert verdict.interval is not None
        outside += not verdict.interval[0] <= 1 <= verdict.interval[1]
    assert outside <= 12  # 1 % are 4


def test_the_fastest_comes_first() -> None:
    levels = {"a": 3.0, "b": 1.0, "c": 2.0}
    measured = {name: rounds(level, 10, i) for i, (name, level) in enumerate(levels.items())}
    assert fastest(list(levels), measured) == ["b", "c", "a"]
