"""Reproduce: a paper's table measured here by its own protocol, and set beside what it printed.

The measuring is :func:`edgevit.bench`'s, so it goes on where it was cut short. ``quick`` is a short
protocol, and every deviation from the paper's is told with the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from devices.base import Device, Schedule
from devices.resolve import find_device
from edgevit.errors import OptionError, UnknownNameError, UsageError
from edgevit.measure.results import Result
from edgevit.progress import Progress
from edgevit.report.protocols import Protocol, find_protocol
from edgevit.report.reproduction import Reproduction, build_reproduction
from edgevit.verbs.bench import bench
from edgevit.verbs.subjects import BenchSubject
from edgevit.verbs.suites import find_suite
from edgevit.verbs.targets import default_format

__all__ = ["reproduce"]

#: Timed runs of a quick one: enough rounds for the rank test.
QUICK = Schedule(min_runs=20, min_seconds=1.0, max_seconds=4.0, warmup_runs=2, warmup_seconds=0.3)


def reproduce(
    protocol: str | Protocol,
    *,
    device: str | Device = "local",
    formats: Sequence[str] = (),
    quick: bool = False,
    batch: int | None = None,
    threads: int | None = None,
    runs: int | None = None,
    output: str | Path | None = "results",
    fresh: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Reproduction]:
    """Measure a paper's table on a device by its protocol.

    Args:
        protocol: its name, such as ``"sima-table3"``, or itself.
        device: where to run.
        formats: which; the device's default one if none is named.
        quick: one image in one inference and about a second a row; said in what comes back.
        batch: images in one inference, in place of the protocol's.
        threads: CPU threads, likewise.
        runs: exactly so many timed runs, likewise.
        output: folder of the results; each protocol has one of its own in it. None writes none.
        fresh: start over, if an earlier one was cut short.
        seed: of weights, inputs and order.
        progress: told how far it is.

    Returns:
        One reproduction a format.

    Raises:
        UnknownNameError: there is no such protocol.
        UsageError: the device does not run the format.
        OptionError: batch, threads or runs are below 1.
        DeviceError: the device cannot be reached.
    """
    asked = find_protocol(protocol) if isinstance(protocol, str) else protocol
    one = find_device(device) if isinstance(device, str) else device
    wanted = list(formats) or [default_format(one.profile)]
    for option, number in (("batch", batch), ("threads", threads), ("runs", runs)):
        if number is not None and number < 1:
            raise OptionError(option, expected="at least 1", got=number)
    _check_formats(wanted, one)
    size = batch if batch is not None else 1 if quick else asked.batch
    # The size column is of one image.
    sizes = [size, 1] if asked.memory and size != 1 else [size]
    count = threads if threads is not None else asked.threads
    schedule = _schedule(asked, quick, runs, seed)
    folder = Path(output) / asked.name if output is not None else None
    results: list[Result] = []
    # A bench for each group of rows that are compared: more than a few share no job otherwise, and
    # what happens to the machine between jobs would be taken for a difference.
    for images, group in product(sizes, asked.groups):
        results += bench(
            _subjects(group),
            device=one,
            formats=wanted,
            threads=count,
            batch=images,
            schedule=schedule,
            memory=asked.memory,
            output=folder,
            fresh=fresh,
            seed=seed,
            progress=progress,
        )
    told = _deviations(asked, quick, size, count, schedule)
    return [
        build_reproduction(asked, [r for r in results if r.subject.format == name], told)
        for name in wanted
    ]


def _check_formats(wanted: Sequence[str], device: Device) -> None:
    """Before minutes are spent on files: a table is of one device, which runs each format."""
    from exporters.base import exporters

    for name in wanted:
        if name not in exporters.names():
            raise UnknownNameError("format", name, exporters.names(), listing="edgevit doctor")
        if name not in device.profile.formats:
            raise UsageError(
                f"{device.name} does not run {name}",
                hint=f"it runs {', '.join(device.profile.formats)}",
            )


def _subjects(names: Sequence[str]) -> list[BenchSubject]:
    """Models by name, blocks by the label they have in SimA's suite."""
    blocks = {s.label: s for s in find_suite("sima-table3").subjects if not isinstance(s, str)}
    return [blocks.get(name, name) for name in names]


def _schedule(protocol: Protocol, quick: bool, runs: int | None, seed: int) -> Schedule:
    if runs is not None:
        return replace(QUICK if quick else Schedule(), runs=runs, seed=seed)
    return replace(QUICK, seed=seed) if quick else Schedule(runs=protocol.runs, seed=seed)


def _deviations(
    protocol: Protocol, quick: bool, batch: int, threads: int, schedule: Schedule
) -> list[str]:
    pairs: list[tuple[str, Any, Any]] = [
        ("batch", protocol.batch, batch),
        ("threads", protocol.threads, threads),
        ("runs", protocol.runs, schedule.runs),
    ]
    words = [
        f"{name} {'by time' if got is None else got} in place of {asked or 'by time'}"
        for name, asked, got in pairs
        if asked != got
    ]
    short = f"a quick run of {schedule.min_seconds:g} s a row; its figures are coarse"
    return [short] * quick + words
