"""The figures that results are compared by; of all of them less is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgevit.measure.results import Result
from edgevit.measure.verdict import DRIFT_LIMIT
from edgevit.report.rows import MIB

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A figure that results are compared by.

    Args:
        name: as ``--metric`` takes it.
        unit: of the figure.
        better: the verdict where head's figure is lower.
        worse: the verdict where it is higher.
        figure: the figure of a result, None if it has none.
        steps: the share below which differences mean nothing, from both results.
        method: how it was taken, None if that is always the same; figures that were taken
            differently are not comparable.
        rounds: it was measured in rounds, so that there is a test, and steadiness matters.
        emulated: an emulator's figure is the device's.
        on_device: it depends on the device and its runtime.
    """

    name: str
    unit: str
    better: str
    worse: str
    figure: Callable[[Result], float | None]
    steps: Callable[[Result, Result], float]
    method: Callable[[Result], str | None] = lambda _: None
    rounds: bool = False
    emulated: bool = False
    on_device: bool = True


def _latency(result: Result) -> float | None:
    return result.statistics.median_ms if result.statistics else None


def _memory(result: Result) -> float | None:
    net = result.memory.net_bytes if result.memory else None
    return None if net is None else net / MIB


def _size(result: Result) -> float | None:
    size = result.subject.file_bytes
    return None if size is None else size / MIB


def _instructions(result: Result) -> float | None:
    return None if result.instructions is None else result.instructions.per_inference / 1e6


def _how_weighed(result: Result) -> str | None:
    return result.memory.method if result.memory else None


def _how_counted(result: Result) -> str | None:
    return result.instructions.method if result.instructions else None


def _tolerance(base: Result, head: Result) -> float:
    return max((r.instructions.tolerance for r in (base, head) if r.instructions), default=0.0)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("latency", "ms", "faster", "slower", _latency, lambda *_: DRIFT_LIMIT, rounds=True),
        Metric("memory", "MiB", "less", "more", _memory, lambda *_: DRIFT_LIMIT, _how_weighed),
        Metric(
            "size", "MiB", "smaller", "larger", _size, lambda *_: 0.0,
            emulated=True, on_device=False,
        ),
        Metric(
            "instructions", "M", "fewer", "more", _instructions, _tolerance, _how_counted,
            emulated=True,
        ),
    )
}  # fmt: skip
