"""What stands below a table: what marks mean, what was left out, where figures come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from edgevit.measure.record import MEMORY_DEFINITION
from edgevit.measure.results import Result
from edgevit.measure.statistics import FEW_RUNS
from edgevit.report.rows import machine_of, measured_row, runtime_of

__all__ = ["left_out", "notes_on", "provenance_of", "published_provenance"]

Row = dict[str, Any]
MARKED = ("unstable", "stopped")
LISTED = 10


def notes_on(rows: Sequence[Row], relative_to: str | None, p99: bool) -> list[str]:
    """Why rows are marked or have no times, and what memory and speed mean."""
    notes = [
        f"† not steady: {_called(row)}: {row['reason'] or row['status']}"
        for row in rows
        if row["status"] in MARKED
    ]
    notes += [
        f"{row['status']}: {_called(row)}: {row['reason'] or 'no reason given'}"
        for row in rows
        if row["status"] in ("mismatch", "failed", "unverified")
    ]
    if any(row["emulated"] for row in rows):
        notes.append(
            "emulated: shows that it runs and computes the right thing; times and memory of an "
            "emulator are not the device's, and are not shown"
        )
    few = [row["runs"] for row in rows if row.get("runs", FEW_RUNS) < FEW_RUNS]
    if p99 and few:
        notes.append(
            f"p99 of fewer than {FEW_RUNS} runs (here {min(few)}) hangs on the slowest run alone"
        )
    if any(row.get("memory_mib") is not None for row in rows):
        notes.append(f"memory: {MEMORY_DEFINITION}")
    if relative_to is not None:
        compared = any("speed_ratio" in row for row in rows)
        notes.append(
            f"speed vs {relative_to}: its median over the row's, all else being equal; "
            "above 1 is faster"
            if compared
            else f"no shown row of {relative_to} to compare with"
        )
    return notes


def left_out(results: Sequence[Result], older: int) -> list[str]:
    """Which results are not in the table, and why."""
    notes = [
        f"not shown: {_called(measured_row(r))}: {r.status}: {r.reason or 'no reason given'}"
        for r in results[:LISTED]
    ]
    if more := results[LISTED:]:
        counts = Counter(r.status for r in more)
        words = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        notes.append(f"not shown either: {words}")
    if older:
        notes.append(f"{older} older result{'s' * (older > 1)} of the same rows left out")
    return notes


def _called(row: Row) -> str:
    return f"{row['model']}, {row['format']} {row['precision']}, {row['device']}"


def provenance_of(results: Sequence[Result]) -> list[str]:
    """One sentence for each device, machine, edgevit and command."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        context, machine = result.context, machine_of(result)
        device = (context.device.name, context.device.emulated)
        key = (device, machine["cpu"], machine["os"], context.edgevit, context.command)
        groups.setdefault(key, []).append(result)
    return [_sentence(group) for group in groups.values()]


def published_provenance(rows: Sequence[Row]) -> list[str]:
    """Where published figures come from, in one sentence."""
    sources = dict.fromkeys(
        f"{row['model']}: {row['published_source']}" for row in rows if row.get("published_source")
    )
    if not sources:
        return ["published: the papers have no latency or throughput of these models"]
    words = "published: printed in the papers, measured there on other devices and batches"
    return [f"{words} ({'; '.join(sources)})"]


def _sentence(results: Sequence[Result]) -> str:
    """Where results of one device, machine, edgevit and command come from."""
    context, machine = results[0].context, machine_of(results[0])
    emulated = "emulated" if context.device.emulated else None
    facts = ", ".join(fact for fact in (emulated, machine["cpu"], machine["os"]) if fact)
    runs = [r.statistics.n for r in results if r.statistics]
    parts = (
        f"{'checked' if emulated else 'measured'} on {context.device.name}"
        + (f" ({facts})" if facts else ""),
        ", ".join(sorted({runtime_of(r) for r in results})),
        f"threads {', '.join(map(str, sorted({r.subject.threads for r in results})))}",
        f"runs {_span(min(runs), max(runs))}" if runs and not emulated else None,
        _span(*(pick(r.context.created[:10] for r in results) for pick in (min, max))),
        f"edgevit {context.edgevit}",
        context.command,
    )
    return "; ".join(part for part in parts if part)


def _span(low: object, high: object) -> str:
    return str(low) if low == high else f"{low} to {high}"
