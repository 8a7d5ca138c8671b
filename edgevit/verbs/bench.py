"""Bench: subjects become files, the files go to devices, and results come back.

    name, factory, block --export (cached)--> bundle --push--> agent --events--> results

Everything is exported once, before anything is measured. Then every device works by itself, in a
thread of its own, one job at a time; see :mod:`edgevit.verbs.runs`. Every result is on disk the
moment it is there, and a bench that was cut short goes on where it was; see
:mod:`edgevit.verbs.journal`.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.base import Device, Schedule
from devices.resolve import find_device
from edgevit.errors import DeviceError, OptionError, UsageError
from edgevit.measure.results import Result, result_filename
from edgevit.progress import Progress
from edgevit.verbs.crew import run_all
from edgevit.verbs.journal import Journal, digest
from edgevit.verbs.needs import Needs, unmade_subject
from edgevit.verbs.runs import DeviceRun, Settings, group_entries
from edgevit.verbs.subjects import (
    BenchSubject,
    Entry,
    entries_of,
    is_bundle,
)
from edgevit.verbs.suites import Suite, find_suite

if TYPE_CHECKING:
    from edgevit.bundle import Bundle

__all__ = ["bench"]


def bench(
    subjects: Sequence[BenchSubject] = (),
    *,
    device: str | Device | Sequence[str | Device] = "local",
    formats: str | Sequence[str] | None = None,
    threads: int | Sequence[int] | None = None,
    batch: int = 1,
    schedule: Schedule | None = None,
    runs: int | None = None,
    memory: bool = True,
    runtime: str | None = None,
    suite: str | Suite | None = None,
    output: str | Path | None = "results",
    fresh: bool = False,
    seed: int = 0,
    backends: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    **export_options: Any,
) -> list[Result]:
    """Check and time models and blocks on one or more devices.

    Args:
        subjects: bundles (or their folders), and whatever :func:`edgevit.export` takes; the latter
            are exported first, into a cache, so that the devices can load them.
        device: where to run: names, or devices. Several work at the same time.
        formats: which formats; by default all that a device runs and that can be made here, or of
            a suite the device's default one.
        threads: one thread count or several; the device's own default if None.
        batch: images in one inference.
        schedule: how long to measure.
        runs: exactly so many timed runs of each subject, instead of the schedule's times.
        memory: also measure peak memory, in a run of its own.
        runtime: what runs the files of its formats, such as ``"tensorrt"`` in place of
            ``"onnxruntime"``, on devices that have it.
        suite: a suite, or its name, in place of subjects.
        output: folder that results are written to as they come; None writes none.
        fresh: start over, if an earlier bench of the same was cut short; else it is continued.
        seed: of the order within rounds, of random weights and of the inputs.
        backends: options of the agent's backends by name, such as
            ``{"coreml": {"compute_unit": "cpu"}}``.
        progress: told how far it is.
        **export_options: passed to :func:`edgevit.export` for what has to be exported.

    Returns:
        One result a device, subject, format and thread count, also for those that failed.

    Raises:
        UsageError: a subject, device or format does not exist or does not fit.
        DeviceError: the only device cannot be reached, or none can before the first export.
        OutputError: the results cannot be written.
        KeyboardInterrupt: after what was measured so far has been written.
    """
    chosen = find_suite(suite) if isinstance(suite, str) else suite
    asked = _subjects(subjects, chosen)
    if runs is None and chosen is not None and schedule is None:
        runs = chosen.runs
    plan = schedule or Schedule(runs=runs, seed=seed)
    bar = progress or Progress()
    found = _devices(device)
    _check_runtime(runtime, found)
    wanted = [formats] if isinstance(formats, str) else list(formats or [])
    settings = Settings(plan, seed, memory, _command(), chosen.name if chosen else None)
    counts = {one.name: _counts(threads, one, bar) for one in found}
    needs = Needs(asked, wanted, batch, seed, bar, export_options, chosen is not None)
    if not all(map(is_bundle, asked)):
        _reach(found)
    files = needs.files(found)
    measurements = [
        measurement
        for one in found
        for measurement in _measurements(
            one, files.made[one.name], counts[one.name], batch, backends or {}, runtime, bar
        )
    ]
    folder = Path(output) if output is not None else None
    unmade = [
        failure.result(settings, threads, batch)
        for failure in files.failed
        for threads in counts[failure.device.name]
    ]
    if folder is not None:
        for result in unmade:
            result.write(folder)
    if files.failed and not measurements:
        raise files.failed[0].error
    keys = [m.key(settings) for m in measurements]
    journal = Journal.open(folder, keys, fresh=fresh)
    with journal.held():
        named = list(zip(keys, (m.entry for m in measurements), strict=True))
        ledger = _Ledger(folder, journal, {id(entry): key for key, entry in named})
        for key, entry in named:
            ledger.recall(key, entry, plan)
        if ledger.results and len(ledger.results) < len(keys):
            bar.note(
                f"goes on with the bench of {journal.started[:16].replace('T', ' ')}: "
                f"{len(ledger.results)} of {len(keys)} results are there; --fresh starts over"
            )
        try:
            _measure(found, measurements, settings, ledger, bar)
        except KeyboardInterrupt:
            there = f"{len(journal.settled)} of {len(keys)} results are there"
            bar.note(f"{there}; the same command goes on with the rest")
            raise
        journal.finish()
    return unmade + [ledger.results[key] for key in keys if key in ledger.results]


@dataclass(frozen=True)
class _Measurement:
    """A file on a device."""

    device: Device
    entry: Entry

    def key(self, settings: Settings) -> str:
        """Everything that decides the measurement, in a word."""
        where = [self.device.name, self.device.profile.name, getattr(self.device, "emulated", None)]
        how = [settings.schedule.to_json(), settings.seed, settings.memory, settings.suite]
        return digest([where, self.entry.identity, how])


@dataclass
class _Ledger:
    """Results as they come, from any thread: on disk first, then in the journal."""

    folder: Path | None
    journal: Journal
    keys: Mapping[int, str]
    results: dict[str, Result] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def recall(self, key: str, entry: Entry, plan: Schedule) -> None:
        """Take over what an unfinished bench has settled."""
        found = self.journal.result(key, plan.to_json())
        if found is not None and found.subject.file_sha256 == entry.record.file_sha256:
            self.results[key] = found

    def has(self, entry: Entry) -> bool:
        """Whether there is a result already."""
        return self.keys[id(entry)] in self.results

    def report(self, entry: Entry, result: Result, settled: bool) -> None:
        """Take a result in."""
        key = self.keys[id(entry)]
        with self._lock:
            self.results[key] = result
            if self.folder is None:
                return
            # What was never begun takes no earlier measurement's place.
            place = self.folder / result_filename(result)
            if settled or result.samples_ns or not place.exists():
                place = result.write(self.folder)
            self._forget_failure(self.folder, result)
            if settled:
                self.journal.settle(key, place)

    def _forget_failure(self, folder: Path, result: Result) -> None:
        """An earlier bench may have told why there was no such file; now there is."""
        r = result.subject
        failed = unmade_subject(r.kind, r.name, r.format, threads=r.threads, batch=r.batch)
        (folder / result_filename(replace(result, subject=failed))).unlink(missing_ok=True)


# -- what is measured ------------------------------------------------------------------------------


def _subjects(subjects: Sequence[BenchSubject], suite: Suite | None) -> list[BenchSubject]:
    asked = list(subjects)
    if suite is not None:
        if asked:
            raise UsageError(f"suite {suite.name} brings its own subjects; name either")
        return list(suite.subjects)
    if not asked:
        raise UsageError("nothing to bench", hint="name models, bundles or blocks")
    return asked


def _devices(device: str | Device | Sequence[str | Device]) -> list[Device]:
    """The devices, each once.

    Raises:
        UsageError: there is none of that name, or two have the same.
    """
    asked: list[str | Device]
    if isinstance(device, Sequence) and not isinstance(device, str):
        asked = list(device)
    else:
        asked = [device]
    if not asked:
        raise OptionError("device", expected="at least one device", got=device)
    found = [find_device(d) if isinstance(d, str) else d for d in asked]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise OptionError("device", expected="different devices", got=", ".join(names))
    return found


def _reach(found: Sequence[Device]) -> None:
    """Look whether a device is there, before minutes are spent on files for it.

    Raises:
        DeviceError: none is.
    """

    def attempt(device: Device) -> DeviceError | None:
        try:
            device.open().close()
        except DeviceError as error:
            return error
        return None

    with ThreadPoolExecutor(len(found)) as pool:
        errors = [error for error in pool.map(attempt, found) if error is not None]
    if len(errors) < len(found):
        return
    if len(errors) == 1:
        raise errors[0]
    raise DeviceError(
        "none of the devices can be reached: " + "; ".join(map(str, errors)),
        hint="`edgevit devices` shows what to do about each",
    )


def _check_runtime(runtime: str | None, found: Sequence[Device]) -> None:
    """Raises OptionError if none of the devices has that runtime."""
    have = {name for device in found for name in device.profile.runtimes}
    if runtime is not None and runtime not in have:
        where = ", ".join(device.name for device in found)
        expected = f"{' or '.join(sorted(have))} for {where}"
        raise OptionError("runtime", expected=expected, got=runtime)


def _counts(threads: int | Sequence[int] | None, device: Device, progress: Progress) -> list[int]:
    """Thread counts; a note says which are more than the device has cores."""
    profile = device.profile
    if threads is None:
        return [profile.default_threads]
    counts = [threads] if isinstance(threads, int) else list(dict.fromkeys(threads))
    if not counts or min(counts) < 1:
        raise OptionError("threads", expected="whole numbers of at least 1", got=threads)
    cores = profile.cores or (os.cpu_count() if device.name == "local" else None)
    for count in counts:
        if cores is not None and count > cores:
            progress.note(f"{device.name} has {cores} CPUs; {count} threads share them")
    return counts


def _measurements(
    device: Device,
    files: Sequence[tuple[Bundle, Sequence[str]]],
    counts: Sequence[int],
    batch: int,
    backends: Mapping[str, Mapping[str, Any]],
    runtime: str | None,
    progress: Progress,
) -> list[_Measurement]:
    """Every file with every thread count, each once and with an id of its own."""
    profile = device.profile
    found: dict[str, Entry] = {}
    for bundle, formats in files:
        for entry in entries_of(
            bundle,
            profile,
            formats,
            device=device.name,
            batch=batch,
            options=backends,
            runtime=runtime,
            progress=progress,
        ):
            found.setdefault(digest(entry.identity), entry)
    taken: dict[str, int] = {}
    entries = []
    for entry in found.values():
        taken[entry.id] = number = taken.get(entry.id, 0) + 1
        entries.append(entry if number == 1 else replace(entry, id=f"{entry.id}#{number}"))
    return [_Measurement(device, e.with_threads(count)) for count in counts for e in entries]


# -- measuring -------------------------------------------------------------------------------------


def _measure(
    found: Sequence[Device],
    measurements: Sequence[_Measurement],
    settings: Settings,
    ledger: _Ledger,
    progress: Progress,
) -> None:
    """Let every device do what is left for it, all at the same time."""
    works = []
    for device in found:
        left = [m.entry for m in measurements if m.device is device and not ledger.has(m.entry)]
        if left:
            groups = group_entries(left)
            works.append(DeviceRun(device, groups, settings, ledger.report, progress))
    run_all(works)
    for work in works:
        if work.error is not None and not isinstance(work.error, DeviceError):
            raise work.error
    if len(found) == 1 and works and works[0].error is not None and not works[0].reached:
        raise works[0].error


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
