"""Bench: subjects become files, the files go to a device, and results come back.

    name, factory, block --export (cached)--> bundle --push--> agent --events--> results

All subjects of one thread count share one job, so that their rounds are interleaved and whatever
happens to the machine happens to all. Memory is measured in runs of its own.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from devices.base import Event, Job, Schedule, Session, devices
from devices.base import Subject as DeviceSubject
from devices.base import SubjectInput as DeviceInput
from edgevit.bundle import GOLDEN, MANIFEST, Bundle
from edgevit.errors import BundleError, OptionError, UsageError
from edgevit.measure import events as reading
from edgevit.measure.record import Device as DeviceRecord
from edgevit.measure.record import Subject as SubjectRecord
from edgevit.measure.results import Result, current_context
from edgevit.progress import Progress
from edgevit.source import BlockSpec
from edgevit.tensorspec import TensorSpec
from edgevit.verify import tolerance_for

if TYPE_CHECKING:
    from torch import nn

__all__ = ["bench"]


def bench(
    subjects: Sequence[str | Path | Bundle | BlockSpec | nn.Module],
    *,
    device: str = "local",
    formats: str | Sequence[str] | None = None,
    threads: int | Sequence[int] = 1,
    batch: int = 1,
    schedule: Schedule | None = None,
    runs: int | None = None,
    memory: bool = True,
    output: str | Path | None = "results",
    seed: int = 0,
    progress: Progress | None = None,
    **export_options: Any,
) -> list[Result]:
    """Check and time models and blocks on a device.

    Args:
        subjects: bundles (or their folders), and whatever :func:`edgevit.export` takes; the latter
            are exported first, into a cache.
        device: where to run.
        formats: which formats; by default all that the device runs and that can be made here.
        threads: one thread count or several.
        batch: images in one inference.
        schedule: how long to measure.
        runs: exactly so many timed runs of each subject, instead of the schedule's times.
        memory: also measure peak memory, in a run of its own.
        output: folder that results are written to as they come; None writes none.
        seed: of the order within rounds, of random weights and of the inputs.
        progress: told how far it is.
        **export_options: passed to :func:`edgevit.export` for what has to be exported.

    Returns:
        One result a subject, format and thread count, also for those that failed.

    Raises:
        UsageError: a subject, device or format does not exist or does not fit.
        DeviceError: the device cannot be reached.
        KeyboardInterrupt: after what was measured so far has been written.
    """
    plan = schedule or Schedule(runs=runs, seed=seed)
    chosen = devices.get(device)
    bar = progress or Progress()
    counts = [threads] if isinstance(threads, int) else list(threads)
    if not counts or min(counts) < 1:
        raise OptionError("threads", expected="whole numbers of at least 1", got=threads)
    wanted = [formats] if isinstance(formats, str) else list(formats or [])
    if not subjects:
        raise UsageError("nothing to bench", hint="name models, bundles or blocks")
    runnable = chosen.profile.formats
    bundles = [_bundle(s, wanted, runnable, batch, seed, bar, export_options) for s in subjects]
    with chosen.open() as session:
        record = DeviceRecord(chosen.name, chosen.profile.name)
        run = _Bench(session, record, plan, seed, batch, bar, Path(output) if output else None)
        entries = [e for bundle in bundles for e in run.entries(bundle, wanted, runnable)]
        return [r for count in counts for r in run.measure(entries, count, memory=memory)]


@dataclass(frozen=True)
class _Entry:
    """One file of a bundle, ready to be measured."""

    id: str
    subject: DeviceSubject
    record: SubjectRecord
    tolerance: float


@dataclass(frozen=True)
class _Bench:
    """One bench under way."""

    session: Session
    device: DeviceRecord
    schedule: Schedule
    seed: int
    batch: int
    progress: Progress
    output: Path | None

    def entries(
        self, bundle: Bundle, wanted: Sequence[str], runnable: Sequence[str]
    ) -> list[_Entry]:
        """The files of a bundle that were asked for, or else that the device runs; pushed to it."""
        formats = wanted or [name for name in bundle.formats if name in runnable]
        if left := [name for name in bundle.formats if name not in formats and not wanted]:
            self.progress.note(f"{self.device.name} does not run {', '.join(left)}: left out")
        if not formats:
            raise UsageError(
                f"{self.device.name} runs none of the formats in {bundle.path}",
                hint=f"it runs {', '.join(runnable)}",
            )
        place = self.session.push(bundle.path)
        return [self._entry(bundle, name, place) for name in formats]

    def measure(self, entries: Sequence[_Entry], threads: int, *, memory: bool) -> Iterator[Result]:
        """Time all entries together, then weigh each; results are written before they are given."""
        timed, interrupted = self._collect(
            Job("time", tuple(e.subject for e in entries), threads, self.schedule),
            f"timing with {threads} thread{'s' if threads > 1 else ''}",
        )
        weighed: list[Event] = []
        if memory and not interrupted:
            for entry in entries:
                events, interrupted = self._collect(
                    Job("memory", (entry.subject,), threads, self.schedule),
                    f"memory of {entry.id}",
                )
                weighed += events
                if interrupted:
                    break
        results = self._results(entries, threads, timed, weighed)
        if interrupted:
            raise KeyboardInterrupt
        yield from results

    def _results(
        self,
        entries: Sequence[_Entry],
        threads: int,
        timed: Sequence[Event],
        weighed: Sequence[Event],
    ) -> list[Result]:
        asked = reading.Job(
            current_context(self.device, command=_command(), seed=self.seed),
            {e.id: _with_threads(e.record, threads) for e in entries},
            self.schedule.to_json(),
            {e.id: e.tolerance for e in entries},
        )
        results = reading.result_from_events(timed, asked, memory_events=weighed)
        if self.output is not None:
            for result in results:
                result.write(self.output)
        return results

    def _collect(self, job: Job, title: str) -> tuple[list[Event], bool]:
        """The events of a job, and whether the user interrupted it."""
        events: list[Event] = []
        meter = _Meter(job)
        try:
            for event in self.session.run(job):
                events.append(event)
                self.progress.advance(title, meter.add(event), 1.0)
        except KeyboardInterrupt:
            events.append({"event": "done", "stopped": True})
            return events, True
        self.progress.advance(title, 1.0, 1.0)
        return events, False

    def _entry(self, bundle: Bundle, format_name: str, place: str) -> _Entry:
        artifact = bundle.artifact(format_name)
        manifest = bundle.manifest
        size = manifest["batch"]["size"]
        if not artifact["facts"].get("dynamic_batch") and size != self.batch:
            raise UsageError(
                f"{bundle.path} has a fixed batch of {size}, not {self.batch}",
                hint=f"edgevit export {bundle.name} --batch {self.batch}",
            )
        identity = f"{bundle.path.name}.{format_name}"
        tolerance = tolerance_for(artifact["precision"])
        file, golden = f"{place}/{artifact['file']}", f"{place}/{GOLDEN}"
        inputs = [TensorSpec.from_json(own).with_batch(self.batch) for own in manifest["inputs"]]
        subject = DeviceSubject(
            id=identity,
            backend=artifact["backend"],
            file=file,
            inputs=tuple(
                DeviceInput(own["name"], spec.shape, artifact["layouts"].get(spec.name), spec.dtype)
                for own, spec in zip(artifact["inputs"], inputs, strict=True)
            ),
            outputs=tuple(entry["name"] for entry in artifact["outputs"]),
            tolerance=tolerance,
            sha256=manifest["files"][artifact["file"]]["sha256"],
            golden=golden,
            batch=self.batch,
        )
        return _Entry(identity, subject, _record(bundle, format_name, self.batch), tolerance)


class _Meter:
    """How far a job has come, from 0 to 1."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.runs: dict[str, int] = {}
        self.ns: dict[str, float] = {}

    def add(self, event: Event) -> float:
        """Take an event in."""
        if event["event"] == "samples":
            identity = event["id"]
            self.runs[identity] = self.runs.get(identity, 0) + len(event["ns"])
            timed = sum(event["ns"]) * event["inner"]
            self.ns[identity] = self.ns.get(identity, 0.0) + timed
        shares = [self._share(subject.id) for subject in self.job.subjects]
        return min(0.99, sum(shares) / max(1, len(shares)))

    def _share(self, identity: str) -> float:
        schedule, runs = self.job.schedule, self.runs.get(identity, 0)
        if schedule.runs is not None:
            return min(1.0, runs / schedule.runs)
        seconds = self.ns.get(identity, 0.0) / 1e9
        enough = min(runs / schedule.min_runs, seconds / max(schedule.min_seconds, 1e-9))
        return min(1.0, max(enough, seconds / max(schedule.max_seconds, 1e-9)))


def _record(bundle: Bundle, format_name: str, batch: int) -> SubjectRecord:
    artifact, manifest = bundle.artifact(format_name), bundle.manifest
    model, file = manifest["model"], manifest["files"][artifact["file"]]
    kind: Literal["model", "block"] = "block" if model["kind"] == "block" else "model"
    return SubjectRecord(
        kind=kind,
        name=model["name"],
        format=format_name,
        backend=artifact["backend"],
        precision=artifact["precision"],
        batch=batch,
        threads=1,
        inputs=tuple(TensorSpec.from_json(i).with_batch(batch) for i in manifest["inputs"]),
        file_sha256=file["sha256"],
        file_bytes=file["bytes"],
        passes=tuple(p["name"] for p in manifest["passes"] if p["rewritten"]),
        params=model["params"],
        macs=model["macs"],
        manifest_sha256=bundle.digest,
    )


def _with_threads(record: SubjectRecord, threads: int) -> SubjectRecord:
    from dataclasses import replace

    return replace(record, threads=threads)


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


# -- subjects to bundles ---------------------------------------------------------------------------


def _formats(device_formats: Iterable[str]) -> list[str]:
    """Formats that the device runs and that can be made here."""
    from exporters.base import exporters

    names = [n for n in exporters.names() if n in device_formats and not exporters.get(n).missing()]
    if not names:
        raise UsageError(
            f"none of the device's formats ({', '.join(sorted(device_formats))}) can be made here",
            hint="edgevit doctor",
        )
    return names


def _bundle(
    subject: str | Path | Bundle | BlockSpec | nn.Module,
    wanted: Sequence[str],
    runnable: Sequence[str],
    batch: int,
    seed: int,
    progress: Progress,
    options: Mapping[str, Any],
) -> Bundle:
    if isinstance(subject, Bundle):
        return subject
    if isinstance(subject, str | Path) and (Path(subject) / MANIFEST).is_file():
        if given := {k: v for k, v in options.items() if v not in (None, True)}:
            raise UsageError(
                f"{subject} is exported already; {', '.join(given)} cannot be changed any more"
            )
        return Bundle.open(subject)
    if isinstance(subject, Path) or (isinstance(subject, str) and "/" in subject):
        raise UsageError(
            f"{subject} is no bundle: it has no {MANIFEST}",
            hint="give the folder that `edgevit export` wrote, or a model's name",
        )
    return _exported(subject, wanted or _formats(runnable), batch, seed, progress, options)


def _exported(
    subject: str | BlockSpec | nn.Module,
    formats: Sequence[str],
    batch: int,
    seed: int,
    progress: Progress,
    options: Mapping[str, Any],
) -> Bundle:
    """The cached bundle of exactly this subject, exported first where it lacks a format."""
    from platformdirs import user_cache_path

    from edgevit.verbs.export import Plan, export_source, make_plan, make_source

    source, rest = make_source(subject, batch=batch, seed=seed, **options)
    plan: Plan = make_plan(formats, **rest)
    folder = user_cache_path("edgevit") / "bundles" / _cache_key(source.identity, batch, seed, rest)
    try:
        cached = next((Bundle.open(m.parent) for m in folder.glob(f"*/{MANIFEST}")), None)
    except BundleError:
        cached = None
    if cached is not None and set(formats) <= set(cached.formats):
        return cached
    return export_source(source, plan, folder, seed=seed, progress=progress)


def _cache_key(
    identity: Mapping[str, Any], batch: int, seed: int, options: Mapping[str, Any]
) -> str:
    from edgevit.versions import code_digest, tool_versions

    parts = [identity, batch, seed, options, tool_versions(), code_digest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
