"""Whether a measurement is steady enough to be shown: ``ok``, or ``unstable`` with every reason.

Conditions are what the agent's probes tell before and after the runs; a probe that the machine does
not have is absent and judges nothing:

    governor                  {cpu: name}
    frequency_khz             {cpu: {"current": kHz, "max": kHz or null}}
    gpu_frequency_khz         {gpu: the same}; judged if the subject ran there
    temperature_c             {zone: degrees}
    load_average              [1, 5, 15 minutes]
    cpu_seconds               {"busy": of all CPUs, "own": of the agent, "at": clock}, in seconds
    throttled                 {"now": [word, ...], "since_boot": [word, ...]}
    cpu_speed_limit_percent   100 unless the machine holds itself back
    power_mode, power_source  words
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgevit.measure.statistics import Statistics

__all__ = ["verdict"]

#: Later rounds this much slower or faster than earlier ones are drift, if the rank test agrees.
DRIFT_LIMIT = 0.02
DRIFT_P = 0.05
#: The widest interval of the median, as a share of the median.
WIDTH_LIMIT = 0.03
#: Degrees Celsius at which boards begin to slow down, and processors that stand more.
THROTTLE_POINT_C = 80.0
THROTTLE_POINTS_C = {"x86_pkg_temp": 95.0}
#: A clock that fell by more than this share has changed; one at rest may rise when work begins.
CLOCK_FALL = 0.1

#: CPUs that other work may keep busy, with a CPU to spare for it and without.
SPARE_LIMIT = 0.3
NO_SPARE_LIMIT = 0.1

Conditions = Mapping[str, Any]


def verdict(
    statistics: Statistics,
    before: Conditions | None = None,
    after: Conditions | None = None,
    *,
    threads: int = 1,
    cpus: int | None = None,
    throttle_point_c: float | None = None,
    on_gpu: bool = False,
) -> tuple[str, str | None]:
    """Judge a finished measurement.

    Args:
        statistics: of its runs.
        before: conditions before the runs; see the module's text. None if they are not known.
        after: the same after the runs.
        threads: that the subject ran with.
        cpus: that the machine has; decides which load leaves no room.
        throttle_point_c: the temperature at which the device slows down, in degrees Celsius; 80
            where it is not known, 95 for x86.
        on_gpu: whether the subject ran on a GPU, so that its clock matters.

    Returns:
        ``("ok", None)``, or ``("unstable", reasons)``.
    """
    start, end = before or {}, after or {}
    reasons = [
        *_spread(statistics),
        *_drift(statistics),
        *_throttling(start, end),
        *_changes(start, end),
        *_clock(start, end),
        *(_clock(start, end, "gpu_frequency_khz", "GPU's ") if on_gpu else ()),
        *_heat(start, end, throttle_point_c),
        *_load(start, end, threads, cpus),
    ]
    return ("unstable", "; ".join(reasons)) if reasons else ("ok", None)


def _spread(statistics: Statistics) -> Iterator[str]:
    width = statistics.interval_width
    if width is None:
        yield "a single round gives no interval of the median"
    elif width > WIDTH_LIMIT:
        yield (
            f"the interval of the median is {100 * width:.1f} % of it wide, "
            f"more than {100 * WIDTH_LIMIT:.0f} %"
        )


def _drift(statistics: Statistics) -> Iterator[str]:
    drift = statistics.drift
    if drift and abs(drift.ratio - 1) > DRIFT_LIMIT and drift.p_value < DRIFT_P:
        word = "slower" if drift.ratio > 1 else "faster"
        share = 100 * abs(drift.ratio - 1)
        yield f"drift: later rounds were {share:.1f} % {word} (rank test p = {drift.p_value:.2g})"


def _throttling(before: Conditions, after: Conditions) -> Iterator[str]:
    start, end = before.get("throttled", {}), after.get("throttled", {})
    words = [*start.get("now", []), *end.get("now", [])]
    if start:
        # What happened since boot counts only if it was not there before the runs.
        words += [word for word in end.get("since_boot", []) if word not in start["since_boot"]]
    if words:
        yield f"throttled: {', '.join(dict.fromkeys(words))}"
    limit = min(c.get("cpu_speed_limit_percent", 100) for c in (before, after))
    if limit < 100:
        yield f"throttled: the system holds the CPU at {limit} %"


def _changes(before: Conditions, after: Conditions) -> Iterator[str]:
    for key, words in _CHANGES.items():
        start, end = before.get(key), after.get(key)
        if start is not None and end is not None and start != end:
            yield f"the {words} changed from {_words(start)} to {_words(end)}"


_CHANGES = {"governor": "governor", "power_mode": "power mode", "power_source": "power source"}


def _words(value: Any) -> str:
    return "/".join(sorted(set(value.values()))) if isinstance(value, Mapping) else str(value)


def _clock(
    before: Conditions, after: Conditions, probe: str = "frequency_khz", whose: str = ""
) -> Iterator[str]:
    for key, what in (("max", f"{whose}highest allowed clock"), ("current", f"{whose}clock")):
        start, end = _fastest(before.get(probe), key), _fastest(after.get(probe), key)
        if start and end and (end != start if key == "max" else end < (1 - CLOCK_FALL) * start):
            yield f"the {what} changed from {start / 1000:.0f} to {end / 1000:.0f} MHz"


def _fastest(told: Mapping[str, Mapping[str, int | None]] | None, key: str) -> int | None:
    clocks = [clock.get(key) for clock in (told or {}).values()]
    return max((c for c in clocks if c), default=None)


def _heat(before: Conditions, after: Conditions, point: float | None) -> Iterator[str]:
    start = before.get("temperature_c", {})
    for zone, end in after.get("temperature_c", {}).items():
        limit = point or THROTTLE_POINTS_C.get(zone, THROTTLE_POINT_C)
        # A sensor that shows the very same value twice, above the limit, measures nothing.
        if end >= limit and start.get(zone) != end:
            yield f"{zone} reached {end:.0f} °C, the throttle point is {limit:.0f} °C"


def _load(before: Conditions, after: Conditions, threads: int, cpus: int | None) -> Iterator[str]:
    others = _busy_elsewhere(before.get("cpu_seconds"), after.get("cpu_seconds"))
    load = before.get("load_average")
    if others is not None:
        limit = SPARE_LIMIT if (cpus or 1) > threads else NO_SPARE_LIMIT
        if others > limit:
            yield f"other work kept {others:.1f} CPUs busy during the runs, more than {limit}"
        return
    # Where CPU time is not told, what ran in the last minute has to do.
    if not load:
        return
    limit = max(1.0, float((cpus or 1) - threads))
    if load[0] > limit:
        yield f"the load average was {load[0]:.1f} before the runs, more than {limit:.0f}"


def _busy_elsewhere(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None
) -> float | None:
    """CPUs that were busy with anything but the agent, on average between the two."""
    if not before or not after or after["at"] <= before["at"]:
        return None
    spent = {key: after[key] - before[key] for key in ("busy", "own", "at")}
    return max(0.0, spent["busy"] - spent["own"]) / spent["at"]
