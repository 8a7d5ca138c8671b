"""One row of a table from one result: only what means something."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgevit.measure.results import Result

__all__ = [
    "COLUMNS",
    "INTEGERS",
    "NUMBERS",
    "is_broken",
    "machine_of",
    "measured_row",
    "runtime_of",
    "settings_in_words",
]

Row = dict[str, Any]
INTEGERS = ("threads", "batch", "runs", "rounds")
NUMBERS = (
    "params_m", "macs_g", "size_mib", "median_ms", "interval_low_ms", "interval_high_ms",
    "interval_level", "p90_ms", "p99_ms", "images_per_s", "speed_ratio", "memory_mib", "load_ms",
    "first_ms", "published_value", "published_speed_ratio",
)  # fmt: skip
#: Every column of a table, in order; units stand in the names.
COLUMNS = (
    "origin", "kind", "model", "input", "format", "precision", "device", "emulated", "threads",
    "batch", "params_m", "macs_g", "size_mib", "median_ms", "interval_low_ms", "interval_high_ms",
    "interval_level", "p90_ms", "p99_ms", "images_per_s", "speed_ratio", "memory_mib", "load_ms",
    "first_ms", "verification", "status", "reason", "runs", "rounds", "published",
    "published_value", "published_unit", "published_metric", "published_source", "published_note",
    "published_speed_ratio", "cpu", "os", "runtime", "created", "edgevit", "command",
    "file_sha256",
)  # fmt: skip
MIB = 2**20


def measured_row(result: Result) -> Row:
    """A result's row; a figure that means nothing, or is not known, is absent or None."""
    subject, device = result.subject, result.context.device
    return {
        "origin": "measured",
        "kind": subject.kind,
        "model": subject.name,
        "input": " ".join("x".join(map(str, spec.shape[1:])) for spec in subject.inputs),
        "format": subject.format,
        "precision": subject.precision,
        "device": device.name,
        "emulated": device.emulated,
        "threads": subject.threads,
        "batch": subject.batch,
        "params_m": _scaled(subject.params, 1e6),
        "macs_g": _scaled(subject.macs, 1e9),
        "size_mib": _scaled(subject.file_bytes, MIB),
        **(_times(result) if _times_mean_something(result) else {}),
        "verification": result.verification.status,
        "status": _status(result),
        "reason": result.reason or result.verification.reason,
        "runtime": runtime_of(result),
        "created": result.context.created,
        "edgevit": result.context.edgevit,
        "command": result.context.command,
        "file_sha256": subject.file_sha256,
        **machine_of(result),
    }


def is_broken(result: Result) -> bool:
    """It failed, or computes something else than it should: whatever it took means nothing."""
    return result.status in ("mismatch", "failed") or result.verification.status == "mismatch"


def _times_mean_something(result: Result) -> bool:
    return not is_broken(result) and not result.context.device.emulated


def _times(result: Result) -> Row:
    statistics, memory = result.statistics, result.memory
    row: Row = {
        "memory_mib": _scaled(memory.net_bytes if memory else None, MIB),
        "load_ms": result.load_ms,
        "first_ms": result.first_ms,
    }
    if statistics is None:
        return row
    low, high = statistics.interval_ms or (None, None)
    return row | {
        "median_ms": statistics.median_ms,
        "interval_low_ms": low,
        "interval_high_ms": high,
        "interval_level": statistics.interval_level,
        "p90_ms": statistics.p90_ms,
        "p99_ms": statistics.p99_ms,
        "images_per_s": 1000 * result.subject.batch / statistics.median_ms,
        "runs": statistics.n,
        "rounds": statistics.round_count,
    }


def _status(result: Result) -> str:
    """The result's word, but nothing unverified or emulated is ever called ok."""
    if result.status != "ok":
        return result.status
    if result.verification.status == "unverified":
        return "unverified"
    return "emulated" if result.context.device.emulated else "ok"


def runtime_of(result: Result) -> str:
    """Backend and version."""
    version = result.subject.runtime_version
    return f"{result.subject.backend} {version}" if version else result.subject.backend


def machine_of(result: Result) -> Row:
    """The device's CPU and operating system, as far as its agent told them."""
    facts = result.context.device.facts
    cpu, system = (facts.get(key) for key in ("cpu", "os"))
    return {
        "cpu": cpu.get("model") if isinstance(cpu, Mapping) else None,
        "os": system.get("name") or system.get("system") if isinstance(system, Mapping) else None,
    }


def settings_in_words(data: Mapping[str, Any]) -> str | None:
    """Settings or options as a reader wants them; what is not set is left out."""
    parts = (
        f"{key.replace('_', ' ')} {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in data.items()
        if value is not None
    )
    return "; ".join(parts) or None


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
