"""From the events of a device's agent to results, also where a run broke off half way.

    facts        machine, os, python, runtimes, cpu, clock, emulated (why it is no real machine)
    conditions   when ("before", "after"), one entry a probe
    loaded       id, load_ns, first_ns, runtime, settings, region
    checked      id, ok, outputs, reason
    warmed       id, runs, ns
    samples      id, round, inner, ns, finished
    memory       id, method, baseline_bytes, peak_bytes
    warning      id or null, message
    error        id or null, kind, message
    done         stopped

Events may be missing and fields may be more; a malformed event counts as an error of its subject.
A subject whose samples were complete (``finished``) before the run broke off is a whole result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgevit.measure.record import (
    Conditions,
    Context,
    Device,
    Memory,
    Subject,
    Verification,
    Warmup,
)
from edgevit.measure.results import Result, Status
from edgevit.measure.statistics import Samples
from edgevit.measure.verdict import verdict

__all__ = ["Job", "result_from_events"]

Event = Mapping[str, Any]
_NS_PER_MS = 1e6
_NOT_CHECKED = "the device did not check its outputs"
_UNVERIFIED = Verification("unverified", _NOT_CHECKED)


@dataclass(frozen=True)
class Job:
    """What is known of a run before its first event.

    Args:
        context: the circumstances; the device's facts come from the events if it has none.
        subjects: by the ids that the events use.
        protocol: the schedule, as the result holds it.
        tolerances: by id, the share of an output's scale that the check tolerates.
        throttle_point_c: where the device slows down, in degrees Celsius, if that is known.
    """

    context: Context
    subjects: Mapping[str, Subject]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    throttle_point_c: float | None = None


@dataclass
class _Track:
    """What the events told of one subject so far."""

    loaded: Event = field(default_factory=dict)
    verification: Verification = _UNVERIFIED
    warmup: Warmup | None = None
    memory: Memory | None = None
    samples: list[Samples] = field(default_factory=list)
    finished: bool = False
    warnings: list[str] = field(default_factory=list)
    error: Event | None = None


@dataclass
class _Run:
    """What the events told of the whole run so far."""

    tracks: dict[str, _Track]
    facts: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    error: Event | None = None
    done: bool = False
    stopped: bool = False

    def add(self, event: Event) -> None:
        """Take one event in; a malformed one is an error of its subject."""
        kind, track = event.get("event"), self.tracks.get(str(event.get("id")))
        try:
            if track is not None:
                _ADD.get(str(kind), _ignore)(track, event)
            else:
                self._add_common(str(kind), event)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            problem = f"malformed {kind} event: {type(error).__name__}: {error}"
            self._fail(track, {"kind": "protocol", "message": problem})

    def _add_common(self, kind: str, event: Event) -> None:
        if kind == "facts":
            self.facts = _payload(event)
        elif kind == "conditions" and event["when"] == "before":
            self.before = _payload(event)
        elif kind == "conditions":
            self.after = _payload(event)
        elif kind == "warning":
            for track in self.tracks.values():
                _add_warning(track, event)
        elif kind == "error":
            self._fail(None, event)
        elif kind == "done":
            self.done, self.stopped = True, bool(event.get("stopped"))

    def _fail(self, track: _Track | None, error: Event) -> None:
        holder = self if track is None else track
        holder.error = holder.error or error


def result_from_events(
    events: Iterable[Event], job: Job, *, memory_events: Iterable[Event] = ()
) -> list[Result]:
    """One result a subject, from whatever the agent told before it ended.

    Args:
        events: of the timing run, in order; it may break off anywhere.
        job: what was asked.
        memory_events: of the memory runs; what they say of memory counts, and of loading and the
            first inference, since each subject had a process of its own there, while in the timing
            run the first one loaded also pays for its runtime's start. What went wrong there is a
            warning.

    Returns:
        Results in the order of ``job.subjects``. Where the run ended early, or the agent died, they
        hold what was measured until then, with status ``stopped`` or ``failed`` and the reason.
    """
    run = _Run({name: _Track() for name in job.subjects})
    for event in events:
        run.add(event)
    for event in memory_events:
        if event.get("event") in ("memory", "warning", "loaded"):
            run.add(event)
        elif event.get("event") == "error":
            message = f"memory was not measured: {event.get('message')}"
            run.add({"event": "warning", "id": event.get("id"), "message": message})
    return [_result(name, run, job) for name in job.subjects]


def _ignore(_: _Track, __: Event) -> None:
    pass


def _add_loaded(track: _Track, event: Event) -> None:
    track.loaded = {**event, "load_ms": _ms(event, "load_ns"), "first_ms": _ms(event, "first_ns")}


def _add_checked(track: _Track, event: Event) -> None:
    outputs = tuple(dict(output) for output in event.get("outputs") or ())
    errors = [float(o["max_abs"]) for o in outputs if o.get("max_abs") is not None]
    ok, reason = event.get("ok"), event.get("reason")
    if ok is None:
        track.verification = Verification("unverified", reason or _NOT_CHECKED)
    else:
        status: Literal["verified", "mismatch"] = "verified" if ok else "mismatch"
        track.verification = Verification(
            status, reason, max(errors, default=None), outputs=outputs
        )


def _add_warmed(track: _Track, event: Event) -> None:
    track.warmup = Warmup(int(event["runs"]), int(event["ns"]) / _NS_PER_MS)


def _add_samples(track: _Track, event: Event) -> None:
    block = Samples(
        int(event["round"]), int(event.get("inner", 1)), tuple(round(ns) for ns in event["ns"])
    )
    if not all(0 < ns < 2**63 for ns in block.ns) or block.round < 0 or block.inner < 1:
        raise ValueError("times, rounds and inner counts must be positive")
    if block.ns:
        track.samples.append(block)
    track.finished = event.get("finished") is True


def _add_memory(track: _Track, event: Event) -> None:
    baseline = event.get("baseline_bytes")
    track.memory = Memory(
        None if baseline is None else int(baseline),
        int(event["peak_bytes"]),
        method=event.get("method"),
    )


def _add_warning(track: _Track, event: Event) -> None:
    track.warnings.append(str(event["message"]))


def _add_error(track: _Track, event: Event) -> None:
    track.error = track.error or event


_ADD = {
    "loaded": _add_loaded,
    "checked": _add_checked,
    "warmed": _add_warmed,
    "samples": _add_samples,
    "memory": _add_memory,
    "warning": _add_warning,
    "error": _add_error,
}


def _ms(event: Event, key: str) -> float | None:
    value = event.get(key)
    return None if value is None else int(value) / _NS_PER_MS


def _payload(event: Event) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("event", "when")}


def _result(name: str, run: _Run, job: Job) -> Result:
    track = run.tracks[name]
    result = Result(
        context=replace(job.context, device=_device(job.context.device, run.facts)),
        subject=_subject(job.subjects[name], track.loaded, run.facts),
        protocol=job.protocol,
        verification=replace(track.verification, tolerance=job.tolerances.get(name)),
        status="ok",
        samples_ns=tuple(track.samples),
        load_ms=track.loaded.get("load_ms"),
        first_ms=track.loaded.get("first_ms"),
        warmup=track.warmup,
        memory=track.memory,
        conditions=Conditions(run.before, run.after),
        warnings=tuple(dict.fromkeys(track.warnings)),
    )
    status, reason = _status(result, track, run, job)
    warnings = tuple(dict.fromkeys([*result.warnings, *_remarks(result, status, run)]))
    return replace(result, status=status, reason=reason, warnings=warnings)


def _device(device: Device, told: Mapping[str, Any]) -> Device:
    """The device with its facts; emulated if anybody says so, the host's entry or the device."""
    facts = device.facts or told
    emulated = device.emulated or any(bool(f.get("emulated")) for f in (facts, told))
    return replace(device, facts=facts, emulated=emulated)


def _remarks(result: Result, status: Status, run: _Run) -> Iterator[str]:
    """What a reader should know that makes nothing wrong."""
    count, threads = _cpus(result), result.subject.threads
    if count is not None and threads > count:
        yield f"{threads} threads on {count} CPUs"
    if status in ("ok", "unstable") and run.after is None and run.before is not None:
        yield "the run ended before the conditions were read a second time"


def _cpus(result: Result) -> int | None:
    """How many CPUs the device says it has."""
    cpu = result.context.device.facts.get("cpu")
    count = cpu.get("count") if isinstance(cpu, Mapping) else None
    return count if isinstance(count, int) else None


def _subject(subject: Subject, loaded: Event, facts: Mapping[str, Any]) -> Subject:
    runtimes = facts.get("runtimes")
    installed = runtimes.get(subject.backend) if isinstance(runtimes, Mapping) else None
    return replace(
        subject,
        runtime_version=_version(loaded.get("runtime")) or subject.runtime_version or installed,
        settings=loaded.get("settings") or subject.settings,
        region=loaded.get("region") or subject.region,
    )


def _version(runtime: Any) -> str | None:
    version = runtime.get("version") if isinstance(runtime, Mapping) else runtime
    return None if version is None else str(version)


def _status(result: Result, track: _Track, run: _Run, job: Job) -> tuple[Status, str | None]:
    error = track.error or run.error
    if result.verification.status == "mismatch":
        return "mismatch", result.verification.reason
    broken = None if track.finished and result.statistics is not None else error
    if broken:
        status: Status = "mismatch" if broken.get("kind") == "mismatch" else "failed"
        return status, str(broken.get("message") or broken.get("kind"))
    if run.stopped and not track.finished:
        return "stopped", f"stopped early, after {_amount(result)}"
    if not run.done and not track.finished:
        return "failed", f"the agent ended before it was done, after {_amount(result)}"
    if result.statistics is None:
        return "failed", "no run was timed"
    word, reason = verdict(
        result.statistics,
        run.before,
        run.after,
        threads=result.subject.threads,
        cpus=_cpus(result),
        throttle_point_c=job.throttle_point_c,
        on_gpu=_is_on_gpu(result.subject),
    )
    return ("ok" if word == "ok" else "unstable"), reason


def _is_on_gpu(subject: Subject) -> bool:
    """Whether a GPU with a clock of its own worked: TensorRT, or ONNX Runtime with CUDA."""
    providers = " ".join(map(str, subject.settings.get("providers") or ()))
    return subject.backend == "tensorrt" or "CUDA" in providers or "Tensorrt" in providers


def _amount(result: Result) -> str:
    if result.statistics is None:
        return "no timed run"
    return f"{result.statistics.n} runs in {result.statistics.round_count} rounds"
