from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgevit.measure import Statistics, verdict


def rounds_of(medians: Any, spread: float = 0.002) -> Statistics:
    random = np.random.default_rng(5)
    return Statistics.from_rounds(
        [[int(m * 1e6 * random.normal(1, spread)) for _ in range(15)] for m in medians]
    )


STEADY = rounds_of([40.0] * 12)
CALM = {
    "governor": {"cpu0": "performance", "cpu1": "performance"},
    "frequency_khz": {"cpu0": {"current": 1_500_000, "max": 1_500_000}},
    "temperature_c": {"cpu-thermal": 50.0},
    "load_average": [0.2, 0.3, 0.4],
    "throttled": {"raw": "0x0", "now": [], "since_boot": []},
    "cpu_speed_limit_percent": 100,
    "power_mode": "MAXN",
    "power_source": "AC Power",
}


def test_a_steady_run_under_calm_conditions_is_ok() -> None:
    assert verdict(STEADY, CALM, CALM) == ("ok", None)
    assert verdict(STEADY) == ("ok", None)
    assert verdict(STEADY, {}, {}) == ("ok", None)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {"throttled": {"now": ["under-voltage"], "since_boot": []}}, "under-voltage"),
        ({"throttled": {"now": ["throttled"], "since_boot": []}}, {}, "throttled: throttled"),
        ({}, {"throttled": {"now": [], "since_boot": ["frequency-capped"]}}, "frequency-capped"),
        ({}, {"governor": {"cpu0": "powersave", "cpu1": "performance"}}, "governor changed"),
        ({}, {"frequency_khz": {"cpu0": {"current": 600_000, "max": 1_500_000}}}, "600 MHz"),
        (
            {},
            {"frequency_khz": {"cpu0": {"current": 1_400_000, "max": 1_400_000}}},
            "highest allowed clock changed from 1500 to 1400 MHz",
        ),
        ({}, {"temperature_c": {"cpu-thermal": 80.5}}, "cpu-thermal reached 80 °C"),
        ({"temperature_c": {"cpu-thermal": 85.0}}, {"temperature_c": {"cpu-thermal": 82.0}}, "82"),
        ({"load_average": [2.1, 1, 1]}, {}, "load average was 2.1"),
        ({}, {"cpu_speed_limit_percent": 70}, "holds the CPU at 70 %"),
        ({}, {"power_mode": "5W"}, "power mode changed from MAXN to 5W"),
        ({}, {"power_source": "Battery Power"}, "power source changed"),
    ],
)
def test_disturbed_conditions_make_it_unstable(
    before: dict[str, Any], after: dict[str, Any], reason: str
) -> None:
    status, why = verdict(STEADY, CALM | before, CALM | after)
    assert status == "unstable"
    assert why is not None
    assert reason in why


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # The runs themselves load the machine.
        ({}, {"load_average": [1.9, 1, 1]}),
        # An idle clock rises when work begins, and jitters.
        ({"frequency_khz": {"cpu0": {"current": 600_000, "max": 1_500_000}}}, {}),
        ({}, {"frequency_khz": {"cpu0": {"current": 1_450_000, "max": 1_500_000}}}),
        # It happened before this run.
        (
            {"throttled": {"now": [], "since_boot": ["under-voltage"]}},
            {"throttled": {"now": [], "since_boot": ["under-voltage"]}},
        ),
        # A sensor that is stuck.
        ({"temperature_c": {"pmic": 100.0}}, {"temperature_c": {"pmic": 100.0}}),
        # A processor that stands more heat than a board.
        ({}, {"temperature_c": {"x86_pkg_temp": 88.0}}),
        # Probes that came or went tell nothing.
        ({"governor": None}, {}),
    ],
)
def test_what_disturbs_nothing_is_ok(before: dict[str, Any], after: dict[str, Any]) -> None:
    start = {k: v for k, v in (CALM | before).items() if v is not None}
    assert verdict(STEADY, start, CALM | after) == ("ok", None)


def test_bits_since_boot_alone_prove_nothing() -> None:
    late = CALM | {"throttled": {"now": [], "since_boot": ["under-voltage"]}}
    assert verdict(STEADY, None, late) == ("ok", None)


def test_the_profile_knows_the_throttle_point() -> None:
    warm = CALM | {"temperature_c": {"cpu-thermal": 65.0}}
    assert verdict(STEADY, CALM, warm)[0] == "ok"
    assert verdict(STEADY, CALM, warm, throttle_point_c=60)[0] == "unstable"


def test_load_leaves_room_or_not() -> None:
    busy = CALM | {"load_average": [2.5, 1, 1]}
    assert verdict(STEADY, busy, CALM, threads=1, cpus=4)[0] == "ok"
    assert verdict(STEADY, busy, CALM, threads=2, cpus=4)[0] == "unstable"
    assert verdict(STEADY, busy, CALM, threads=1, cpus=1)[0] == "unstable"


def cpu(busy: float, own: float, at: float) -> dict[str, Any]:
    return CALM | {
        "cpu_seconds": {"busy": busy, "own": own, "at": at},
        "load_average": [5.0, 5.0, 5.0],
    }


def test_what_else_ran_counts_more_than_the_load_average() -> None:
    start = cpu(100.0, 2.0, 1000.0)
    assert verdict(STEADY, start, cpu(112.0, 12.0, 1010.0), cpus=2)[0] == "ok"
    status, reason = verdict(STEADY, start, cpu(116.0, 12.0, 1010.0), cpus=2)
    assert status == "unstable"
    assert reason == "other work kept 0.6 CPUs busy during the runs, more than 0.3"


def test_without_a_spare_cpu_little_else_may_run() -> None:
    start, end = cpu(100.0, 2.0, 1000.0), cpu(112.0, 12.0, 1010.0)
    assert verdict(STEADY, start, end, threads=2, cpus=2)[0] == "unstable"


def test_a_clock_that_did_not_move_tells_nothing() -> None:
    start = cpu(100.0, 2.0, 1000.0)
    assert "load average" in str(verdict(STEADY, start, start, cpus=2)[1])


def test_a_wide_interval_is_unstable() -> None:
    random = np.random.default_rng(0)
    status, reason = verdict(rounds_of(random.normal(40, 3, 10)))
    assert status == "unstable"
    assert reason is not None
    assert "% of it wide" in reason
    assert "drift" not in reason


def test_drift_is_unstable_even_within_a_narrow_interval() -> None:
    drifting = rounds_of([40.0] * 20 + [41.1] * 20)
    assert drifting.interval_width is not None
    assert drifting.interval_width < 0.03
    status, reason = verdict(drifting)
    assert status == "unstable"
    assert reason is not None
    assert reason.startswith("drift: later rounds were 2.8")
    assert "slower" in reason
    faster = verdict(rounds_of([41.1] * 20 + [40.0] * 20))[1]
    assert faster is not None
    assert "faster" in faster


def test_a_certain_but_small_drift_is_ok() -> None:
    assert verdict(rounds_of([40.0] * 20 + [40.4] * 20)) == ("ok", None)


def test_a_drift_that_few_rounds_cannot_prove_is_ok() -> None:
    assert verdict(rounds_of([40.0, 40.0, 41.0, 41.0], spread=0)) == ("ok", None)


def test_a_single_round_is_unstable() -> None:
    status, reason = verdict(rounds_of([40.0]))
    assert (status, reason) == ("unstable", "a single round gives no interval of the median")


def test_every_reason_is_given() -> None:
    hot = CALM | {"temperature_c": {"a": 90.0}, "governor": {"cpu0": "powersave"}}
    reason = verdict(rounds_of([40.0]), CALM | {"load_average": [9, 9, 9]}, hot)[1]
    assert reason is not None
    assert len(reason.split("; ")) == 4


@pytest.mark.parametrize(
    ("now", "most", "reason"),
    [
        (614_400, 921_600, "the GPU's clock changed from 922 to 614 MHz"),
        (921_600, 614_400, "the GPU's highest allowed clock changed from 922 to 614 MHz"),
    ],
)
def test_the_clock_of_a_gpu_matters_to_what_ran_there(now: int, most: int, reason: str) -> None:
    def told(current: int, limit: int) -> dict[str, Any]:
        return {**CALM, "gpu_frequency_khz": {"57000000.gpu": {"current": current, "max": limit}}}

    before, after = told(921_600, 921_600), told(now, most)
    assert verdict(STEADY, before, after, on_gpu=True) == ("unstable", reason)
    assert verdict(STEADY, before, after) == ("ok", None)
    assert verdict(STEADY, before, before, on_gpu=True) == ("ok", None)
    assert verdict(STEADY, CALM, CALM, on_gpu=True) == ("ok", None)
