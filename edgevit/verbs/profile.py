"""Profile: where the time of one file on one device goes.

    name --export (cached)--> bundle --push--> agent --"profile" job--> operators and their times
                                               agent --"time" job--> with and without each block

The runtime's own profiler tells the times; the names that the export kept tell where an operator
comes from (:mod:`edgevit.profiling.places`). Where a runtime has no profiler that Python can use,
blocks are measured by leaving them out (:mod:`edgevit.profiling.ablation`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devices.base import Device, Event, Job, Schedule, Session
from devices.resolve import find_device
from edgevit.errors import (
    CheckError,
    DeviceError,
    OptionError,
    UnavailableError,
    UnknownNameError,
    UsageError,
)
from edgevit.measure.profile import BlockTime, OpTime, Profile, Roof
from edgevit.measure.record import Conditions, Verification
from edgevit.measure.record import Device as DeviceRecord
from edgevit.measure.results import current_context
from edgevit.profiling.operators import kind_of, work_of
from edgevit.profiling.places import Place, place_operators
from edgevit.progress import Progress
from edgevit.verbs.ablate import ABLATABLE, ablate_blocks
from edgevit.verbs.needs import Needs
from edgevit.verbs.peak import peak_of
from edgevit.verbs.subjects import BenchSubject, Entry, entries_of, is_bundle

__all__ = ["SCHEDULE", "profile"]

#: Enough for medians of operators.
SCHEDULE = Schedule(min_runs=30, min_seconds=1.0, max_seconds=30.0, warmup_seconds=0.5)
BLOCK_ABLATION = "block ablation"


def profile(
    subject: BenchSubject,
    *,
    device: str | Device = "local",
    format: str = "onnx",
    threads: int | None = None,
    batch: int = 1,
    ablate: str | None = None,
    schedule: Schedule | None = None,
    peak: bool = True,
    output: str | Path | None = "results",
    seed: int = 0,
    backends: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    **export_options: Any,
) -> Profile:
    """Time the operators of one file on a device, and say where in the model they come from.

    Args:
        subject: a bundle (or its folder), or whatever :func:`edgevit.export` takes.
        device: where to run.
        format: of the file.
        threads: the device's own default if None.
        batch: images in one inference.
        ablate: ``"block"`` also times the file without each of its blocks.
        schedule: how long to measure.
        peak: also tell the machine's peaks, measured once and kept.
        output: folder that the profile is written to; None writes none.
        seed: of random weights and inputs.
        backends: options of the agent's backends by name.
        progress: told how far it is.
        **export_options: passed to :func:`edgevit.export` if it has to be exported.

    Raises:
        UsageError: subject, device, format or option cannot be right.
        CheckError: the file computes something else than its golden outputs.
        UnavailableError: the device lacks the runtime, or nothing tells the times.
        DeviceError: it cannot be reached, or its agent failed.
    """
    if ablate not in (None, "block"):
        raise OptionError("--ablate", expected="block", got=ablate)
    if threads is not None and threads < 1:
        raise OptionError("--threads", expected="at least 1", got=threads)
    bar = progress or Progress()
    found = find_device(device) if isinstance(device, str) else device
    _check_format(format, found)
    entry = _entry(subject, found, format, batch, seed, backends or {}, bar, export_options)
    entry = entry.with_threads(threads or found.profile.default_threads)
    plan = schedule or replace(SCHEDULE, seed=seed)
    with found.open() as session:
        told = _Told.of(session, entry, plan, bar)
        if told.unprofiled is not None and format not in ABLATABLE:
            raise UnavailableError(
                f"{told.unprofiled}; leaving blocks out takes {' or '.join(ABLATABLE)}",
                hint="profile another format: onnx, torch",
            )
        blocks: list[BlockTime] = []
        if ablate or told.unprofiled is not None:
            with bar.stage("time it without each block"):
                blocks = ablate_blocks(session, entry, plan, bar)
        roof = _roof(found, session, told, entry.record.threads, bar) if peak else None
    made = _profile(found, entry, told, blocks, roof, seed)
    if output is not None:
        made.write(output)
    return made


@dataclass
class _Told:
    """What the agent told of a profile job."""

    facts: Mapping[str, Any]
    loaded: Mapping[str, Any]
    checked: Mapping[str, Any]
    profile: Event | None
    unprofiled: str | None
    conditions: Conditions
    warnings: list[str]

    @classmethod
    def of(cls, session: Session, entry: Entry, plan: Schedule, bar: Progress) -> _Told:
        """Run the job.

        Raises:
            CheckError: it computes something else.
            UnavailableError: the runtime is not there.
            DeviceError: the agent failed.
        """
        place = session.push(entry.bundle.path)
        job = Job("profile", (entry.on_device(place),), entry.record.threads, plan)
        last: dict[str, Any] = {}
        conditions: dict[str, dict[str, Any]] = {}
        warnings: list[str] = []
        with bar.stage(f"profile {entry.id}"), closing(session.run(job)) as events:  # type: ignore[type-var]
            for event in events:
                name = event["event"]
                if name == "warning":
                    warnings.append(str(event["message"]))
                elif name == "conditions":
                    own = {k: v for k, v in event.items() if k not in ("event", "when")}
                    conditions[event["when"]] = own
                elif name == "error" and event["kind"] != "unsupported":
                    raise _error(event, entry)
                else:
                    last[name] = event
        unprofiled = last.get("error", {}).get("message")
        if "profile" not in last and unprofiled is None:
            raise DeviceError("the agent ended before it told a profile")
        return cls(
            last.get("facts", {}),
            last.get("loaded", {}),
            last.get("checked", {}),
            last.get("profile"),
            unprofiled,
            Conditions(conditions.get("before"), conditions.get("after")),
            warnings,
        )


def _check_format(name: str, device: Device) -> None:
    """Raises UsageError if there is no such format, or the device does not run it."""
    from exporters.base import exporters

    if name not in exporters.names():
        raise UnknownNameError("format", name, exporters.names(), listing="edgevit doctor")
    if name not in device.profile.formats:
        raise UsageError(
            f"{device.name} does not run {name}",
            hint=f"it runs {', '.join(device.profile.formats)}",
        )


def _entry(
    subject: BenchSubject,
    device: Device,
    format_name: str,
    batch: int,
    seed: int,
    backends: Mapping[str, Mapping[str, Any]],
    bar: Progress,
    options: Mapping[str, Any],
) -> Entry:
    # A TFLite file keeps no names; those of the ONNX file beside it do (see ablation_tflite).
    exported = ["onnx", "tflite"] if format_name == "tflite" else [format_name]
    wanted = [format_name] if is_bundle(subject) else exported
    files = Needs([subject], wanted, batch, seed, bar, options, of_suite=False).files([device])
    if files.failed:
        raise files.failed[0].error
    bundle = next(b for b, names in files.made[device.name] if format_name in names)
    (entry,) = entries_of(
        bundle,
        device.profile,
        [format_name],
        device=device.name,
        batch=batch,
        options=backends,
        runtime=None,
        progress=bar,
    )
    return entry


def _error(event: Event, entry: Entry) -> Exception:
    """The exception for an error event."""
    kind, message = event["kind"], str(event["message"])
    if kind in ("mismatch", "hash"):
        return CheckError(f"{entry.id}: {message}", hint="nothing of it is timed; export it again")
    if kind == "runtime-missing":
        return UnavailableError(
            f"the device cannot run {entry.record.format}: {message}",
            hint="`edgevit devices setup` brings them to boards; `edgevit doctor` tells of here",
        )
    return DeviceError(f"{entry.id}: {message}")


def _roof(
    device: Device, session: Session, told: _Told, threads: int, bar: Progress
) -> Roof | None:
    if getattr(device, "emulated", False) or told.facts.get("emulated"):
        return None
    try:
        return peak_of(device, session, told.facts, threads)
    except DeviceError as error:
        bar.note(str(error))
        return None


def _profile(
    device: Device,
    entry: Entry,
    told: _Told,
    blocks: list[BlockTime],
    roof: Roof | None,
    seed: int,
) -> Profile:
    emulated = bool(getattr(device, "emulated", False) or told.facts.get("emulated"))
    record = DeviceRecord(device.name, device.profile.name, emulated, told.facts)
    runtime = told.loaded.get("runtime") or {}
    event = told.profile or {}
    ops = _operators(event.get("ops") or [], entry)
    notes = [*told.warnings, *([told.unprofiled] if told.unprofiled else [])]
    return Profile(
        context=current_context(record, command=_command(), seed=seed),
        subject=replace(
            entry.record,
            runtime_version=runtime.get("version"),
            settings=told.loaded.get("settings") or {},
            region=told.loaded.get("region"),
        ),
        verification=_verification(told.checked, entry),
        method=str(event.get("method", BLOCK_ABLATION)),
        estimated=bool(event.get("estimated", False)),
        ops=tuple(ops),
        plain_ns=tuple(event.get("plain_ns", ())),
        profiled_ns=tuple(event.get("profiled_ns", ())),
        resolution_ns=int(event.get("resolution_ns", 1)),
        blocks=tuple(blocks),
        roof=roof,
        conditions=told.conditions,
        notes=tuple(dict.fromkeys(notes)),
    )


def _verification(checked: Mapping[str, Any], entry: Entry) -> Verification:
    if not checked:
        return Verification("unverified", "the device did not check its outputs")
    outputs = tuple(checked["outputs"])
    largest = max((o["max_abs"] for o in outputs if o.get("max_abs") is not None), default=None)
    return Verification("verified", None, largest, entry.tolerance, outputs)


def _operators(told: list[dict[str, Any]], entry: Entry) -> list[OpTime]:
    """Operators with their places and their work."""
    if entry.record.format == "onnx":
        from devices.agent.onnx_nodes import read_nodes

        artifact = entry.bundle.artifact("onnx")
        nodes = read_nodes(str(entry.bundle.path / artifact["file"]))
        places = place_operators(told, nodes)
    else:
        known = [(op, "unknown" if op["layer"] is None else "name") for op in told]
        places = [Place(op["layer"], how, (op["name"],)) for op, how in known]
    views = entry.record.backend == "torch"
    return [_operator(op, place, views) for op, place in zip(told, places, strict=True) if op["ns"]]


def _operator(op: Mapping[str, Any], place: Place, views: bool) -> OpTime:
    flops, moved = work_of(op["op"], op["takes"], op["gives"], views=views)
    return OpTime(
        name=op["name"],
        op=op["op"],
        kind=kind_of(op["op"]),
        layer=place.layer,
        placed=place.placed,
        sources=place.sources,
        takes=tuple(map(tuple, op["takes"])),
        gives=tuple(map(tuple, op["gives"])),
        flops=flops,
        moved_bytes=moved,
        samples_ns=tuple(op["ns"]),
    )


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
