"""Count: instructions of one inference, a cost that other work on the machine does not change.

A counter (:mod:`edgevit.verbs.counters`: valgrind's callgrind, or qemu for an arm64 processor)
counts what the agent executes. The agent runs twice, with n and with 2n timed inferences and else
alike; the difference over n is what one inference executes, without the start of interpreter and
runtime. That is a cost for regression gates, not a latency: it knows no caches, and valgrind offers
the runtime no AVX-512, so kernels may be others than natively.

Counts of one machine differ a little, by addresses and hashes; of two machines by much more, since
runtimes choose kernels by CPU. So a result names its method with architecture and CPU.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from devices.base import Event, Job, Schedule
from devices.local import LocalDevice
from edgevit.bundle import Bundle
from edgevit.measure import events as reading
from edgevit.measure.record import Device as DeviceRecord
from edgevit.measure.record import Instructions
from edgevit.measure.results import Result, current_context
from edgevit.progress import Progress
from edgevit.verbs.counters import Counter, find_counter
from edgevit.verbs.subjects import BenchSubject, Entry, entries_of, make_bundle

__all__ = ["count", "tolerance"]

#: Least share by which two counts of one file may differ.
LEAST = 0.001
#: Inferences of the shorter run: as many as make little of what the start differs by.
RUNS = 100
#: Seconds that a program may be silent while it is counted.
SILENCE_S = 1800.0


def count(
    subjects: Sequence[BenchSubject],
    *,
    formats: Sequence[str] = ("onnx",),
    output: str | Path | None = "instructions",
    image_size: int | None = None,
    num_classes: int | None = None,
    runs: int = RUNS,
    counter: str | None = None,
    sysroot: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Result]:
    """Count the instructions of one inference of each subject, on this machine and one thread.

    Args:
        subjects: bundles, models or blocks, as for :func:`edgevit.bench`.
        formats: of their files.
        output: folder that results are written to; not that of a bench, whose rows they would
            take. None writes none.
        image_size: pixels, of models that have to be exported.
        num_classes: size of their head.
        runs: inferences of the shorter of the two runs.
        counter: ``"callgrind"`` or ``"qemu"``; the former without, the latter with a ``sysroot``.
        sysroot: folder of an arm64 system for qemu, with Python, numpy and the runtime.
        seed: of weights and inputs.
        progress: told how far it is.

    Returns:
        One result a subject and format: checked, with ``instructions``, without samples.

    Raises:
        UnavailableError: the counter is not installed here.
        OptionError: the sysroot is none, or not the counter's.
        DeviceError: the agent did not come through.
    """
    place = Path(sysroot) if sysroot is not None else None
    chosen = find_counter(counter, place)
    method, bar = chosen.method, progress or Progress()
    options = {"image_size": image_size, "num_classes": num_classes}
    results = []
    for subject in subjects:
        bundle = make_bundle(subject, formats, batch=1, seed=seed, progress=bar, options=options)
        for entry in _entries(bundle, chosen, formats, bar):
            with bar.stage(f"count {entry.id}"):
                result = _counted(entry, runs, seed, chosen, method)
            results.append(result)
            if output is not None:
                result.write(output)
    return results


def tolerance(per_inference: int, runs: int, varies: int) -> float:
    """The share by which two counts of one file may differ.

    What runs alike differ by hangs on start and end, not on the file: it is much of a small block
    and little of a model.

    Args:
        per_inference: what was counted.
        runs: inferences of the shorter run.
        varies: instructions by which two runs that are alike differ.
    """
    return max(LEAST, varies / (runs * max(1, per_inference)))


def _entries(
    bundle: Bundle, counter: Counter, formats: Sequence[str], progress: Progress
) -> list[Entry]:
    return entries_of(
        bundle,
        counter.profile,
        formats,
        device=counter.device,
        batch=1,
        options={},
        runtime=None,
        progress=progress,
    )


def _counted(entry: Entry, runs: int, seed: int, counter: Counter, method: str) -> Result:
    """The result of two runs of the agent."""
    record = DeviceRecord(counter.device, counter.profile.name, counter.emulated)
    context = current_context(record, command=shlex.join(["edgevit", *sys.argv[1:]]), seed=seed)
    counts: list[int | None] = []
    events: list[Event] = []
    for times in (runs, 2 * runs):
        total, events = _run(entry, times, seed, counter)
        counts.append(total)
        if _broken(events):
            break
    schedule = _schedule(runs, seed)
    job = reading.Job(
        context, {entry.id: entry.record}, schedule.to_json(), {entry.id: entry.tolerance}
    )
    (result,) = reading.result_from_events(events, job)
    # Times of a program that is counted are nobody's.
    bare = replace(result, samples_ns=(), load_ms=None, first_ms=None, warmup=None)
    if result.status in ("mismatch", "failed"):
        return bare
    if len(counts) < 2 or None in counts:
        return replace(bare, status="failed", reason=f"{method}: no count was told")
    first, second = (int(total or 0) for total in counts)
    each = max(0, round((second - first) / runs))
    told = Instructions(each, tolerance(each, runs, counter.varies), method)
    return replace(bare, status="ok", reason=None, instructions=told)


def _schedule(runs: int, seed: int) -> Schedule:
    """Exactly so many single inferences: nothing in it goes by the clock."""
    return Schedule(
        runs=runs,
        min_seconds=0,
        warmup_runs=0,
        warmup_seconds=0,
        inner_seconds=0,
        block_seconds=1e6,
        seed=seed,
    )


def _run(entry: Entry, runs: int, seed: int, counter: Counter) -> tuple[int | None, list[Event]]:
    """How many instructions an agent of so many inferences executes, and what it told."""
    with tempfile.TemporaryDirectory(prefix="edgevit-count-") as folder:
        place = Path(folder)
        # Hashes decide the order of sets, and so what is executed.
        device = LocalDevice(python=counter.interpreter(place), environment={"PYTHONHASHSEED": "0"})
        with device.open() as session:
            pushed = session.push(entry.bundle.path, entry.files)
            job = Job("time", (entry.on_device(pushed),), 1, _schedule(runs, seed))
            events = list(session.run(job, silence_s=SILENCE_S))
        totals = [_total(log) for log in place.glob("log.*")]
    found = [total for total in totals if total is not None]
    return max(found, default=None), events


def _total(log: Path) -> int | None:
    found = re.search(r"Collected\s*:\s*(\d+)", log.read_text(errors="replace"))
    return int(found[1]) if found else None


def _broken(events: Sequence[Event]) -> bool:
    return any(event["event"] == "error" for event in events)
