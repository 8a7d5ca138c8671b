"""What a page shows of results: which tables, with which rows and circumstances.

Measured, emulated, broken and published figures stand in tables of their own, so that nobody takes
one for another; only what was measured on a device and checked is plotted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgevit.measure.results import Result
from edgevit.report.beside import published_rows
from edgevit.report.columns import Column, pack
from edgevit.report.rows import is_broken, machine_of, measured_row, runtime_of, settings_in_words

__all__ = ["DETAILS", "device_table", "page_tables"]

Row = dict[str, Any]
SUBJECT = (
    Column("model", "model"),
    Column("input", "input", minor=True),
    Column("format", "format", minor=True),
    Column("precision", "precision", minor=True),
    Column("backend", "backend", minor=True),
    Column("options", "options", minor=True),
    Column("device", "device", minor=True),
    Column("threads", "threads", "count", minor=True),
    Column("batch", "batch", "count", minor=True),
)
COST = (
    Column("params_m", "params (M)", "number", 4, minor=True),
    Column("macs_g", "MACs (G)", "number", minor=True),
    Column("size_mib", "size (MiB)", "number", minor=True),
)
MEDIAN = (
    Column("median_ms", "median (ms)", "number", 4),
    Column("interval_low_ms", "95 % interval (ms)", "number", 4, high="interval_high_ms"),
)
TIMES = (
    Column("p90_ms", "p90 (ms)", "number", minor=True),
    Column("images_per_s", "images/s", "number", 4, minor=True),
    Column("memory_mib", "memory (MiB)", "number", minor=True),
)
STARTING = (
    Column("load_ms", "load (ms)", "number", minor=True),
    Column("first_ms", "first (ms)", "number", minor=True),
)
STATUS = Column("status", "status")
CHECK = Column("verification", "verified", minor=True)
REASON = Column("reason", "reason")
PUBLISHED = (
    Column("model", "model"),
    Column("published_metric", "metric"),
    Column("published_value", "published", "number", text="published"),
    Column("device", "device"),
    Column("runtime", "runtime"),
    Column("threads", "threads", "count"),
    Column("batch", "batch", "count"),
    Column("published_source", "printed in"),
    Column("published_note", "note", minor=True),
)
DEVICES = (
    Column("device", "device"),
    Column("profile", "profile", minor=True),
    Column("cpu", "CPU"),
    Column("cpus", "CPUs", "count"),
    Column("os", "system"),
    Column("runtimes", "runtimes"),
    Column("results", "results", "count"),
    Column("measured", "measured"),
    Column("edgevit", "edgevit", minor=True),
    Column("governor", "governor"),
    Column("temperature", "temperature (°C)"),
    Column("load", "load before (1 min)"),
    Column("throttled", "throttled"),
)
#: The circumstances of a number, in the order in which a row shows them.
DETAILS = {
    "reason": "why it is so",
    "runtime": "runtime",
    "settings": "set up with",
    "region": "a timed region holds",
    "runs": "timed runs",
    "rounds": "rounds",
    "interval_level": "the interval covers",
    "p99_ms": "p99 (ms)",
    "notes": "notes on the figures",
    "passes": "passes",
    "verification_words": "check",
    "cpu": "CPU",
    "os": "system",
    "conditions_before": "conditions before",
    "conditions_after": "conditions after",
    "warnings": "warnings",
    "protocol": "protocol",
    "seed": "seed",
    "created": "started (UTC)",
    "edgevit": "edgevit",
    "command": "command",
    "file_sha256": "sha256 of the file",
}
BLOCK = re.compile(r"(?P<block>.+)-n(?P<n>\d+)-d(?P<d>\d+)-h(?P<h>\d+)(?P<rest>.*)")


def page_tables(results: Sequence[Result], *, published: bool) -> dict[str, Any]:
    """The page's tables by name: measured, emulated, broken, published, devices."""
    groups: dict[str, list[Result]] = {"measured": [], "emulated": [], "broken": []}
    for result in results:
        groups[_group(result)].append(result)
    backends = {(r.subject.format, r.subject.backend) for r in results}
    several = len(backends) > len({r.subject.format for r in results})
    rows = {name: [_row(r, backend=several) for r in group] for name, group in groups.items()}
    papers = _published(results) if published else []
    shown = {
        "measured": (*MEDIAN, STATUS, *TIMES, *COST, *STARTING, CHECK),
        "emulated": (STATUS, REASON, *COST, CHECK),
        "broken": (STATUS, REASON, CHECK),
    }
    tables = {
        name: pack(rows[name], [*_telling(rows[name]), *columns], _extra(DETAILS))
        for name, columns in shown.items()
    }
    tables |= {"published": pack(papers, PUBLISHED), "devices": device_table(results)}
    return {name: table for name, table in tables.items() if table["size"]}


def _telling(rows: Sequence[Row]) -> list[Column]:
    """A subject's columns: those that tell rows apart go with its name where there is no room."""
    telling = [c.key for c in SUBJECT[1:] if len({row[c.key] for row in rows}) > 1]
    return [SUBJECT[0], *(replace(c, beneath=c.key in telling) for c in SUBJECT[1:])]


def _group(result: Result) -> str:
    if is_broken(result):
        return "broken"
    return "emulated" if result.context.device.emulated else "measured"


def _extra(details: Iterable[str]) -> tuple[str, ...]:
    return (*details, "kind", "block", "n", "d", "h", "rest", "unsteady")


def _row(result: Result, *, backend: bool) -> Row:
    """A result's row with its circumstances; the backend where the format does not tell it."""
    statistics = result.statistics
    timed = statistics is not None and not is_broken(result) and not result.context.device.emulated
    level = statistics.interval_level if timed and statistics else None
    return {
        **measured_row(result),
        **_block(result),
        "input": _inputs(result),
        "device": _called(result),
        "backend": result.subject.backend if backend else None,
        "options": settings_in_words(result.subject.options),
        "unsteady": int(result.status in ("unstable", "stopped")),
        "interval_level": None if level is None else f"{100 * level:.1f} %",
        "notes": ("; ".join(statistics.notes) or None) if timed and statistics else None,
        "settings": settings_in_words(result.subject.settings),
        "region": result.subject.region,
        "passes": ", ".join(result.subject.passes) or None,
        "verification_words": _check(result),
        "conditions_before": _weather(result.conditions.before),
        "conditions_after": _weather(result.conditions.after),
        "warnings": "; ".join(result.warnings) or None,
        "protocol": settings_in_words(result.protocol),
        "seed": result.context.seed,
    }


def _called(result: Result) -> str:
    device = result.context.device
    return f"{device.name} (emulated)" if device.emulated else device.name


def _inputs(result: Result) -> str:
    """Sizes of one sample's inputs; several alike once, with their number."""
    shapes = Counter("x".join(map(str, spec.shape[1:])) for spec in result.subject.inputs)
    return ", ".join(shape if n == 1 else f"{n} of {shape}" for shape, n in shapes.items())


def _block(result: Result) -> Row:
    """A block's name and sizes, from the label that blocks have."""
    found = BLOCK.fullmatch(result.subject.name) if result.subject.kind == "block" else None
    if found is None:
        return {}
    sizes = {key: int(found[key]) for key in ("n", "d", "h")}
    return {"block": found["block"], **sizes, "rest": found["rest"]}


def _check(result: Result) -> str:
    check = result.verification
    words = [check.status, *([check.reason] if check.reason else [])]
    if check.max_abs is not None:
        words.append(f"largest difference {check.max_abs:.2g}")
    if check.tolerance is not None:
        words.append(f"tolerated {check.tolerance:.2g} of the output's scale")
    return "; ".join(words)


def _weather(conditions: Mapping[str, Any] | None) -> str | None:
    """What a device told of its state, in words."""
    told = conditions or {}
    clocks = [c.get("current") for c in _inside(told, "frequency_khz") if isinstance(c, Mapping)]
    load = told.get("load_average")
    throttled = (told.get("throttled") or {}).get("now")
    parts = (
        _labelled("governor", _joined(map(str, _inside(told, "governor")))),
        _labelled("clock", _span(c / 1000 for c in clocks if c), " MHz"),
        _labelled("temperature", _span(_inside(told, "temperature_c")), " °C"),
        _labelled("load average", f"{load[0]:.2f}" if load else None),
        _labelled("throttled", ", ".join(map(str, throttled)) if throttled else None),
        _labelled("power mode", told.get("power_mode")),
        _labelled("power source", told.get("power_source")),
    )
    return "; ".join(part for part in parts if part) or None


def _labelled(label: str, value: object, unit: str = "") -> str | None:
    return None if value is None else f"{label} {value}{unit}"


def _published(results: Sequence[Result]) -> list[Row]:
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.subject.name, []).append(result)
    return [row for name, group in by_name.items() for row in published_rows(name, group)]


def device_table(results: Sequence[Result]) -> Mapping[str, Any]:
    """One row a device and machine: what it is, and the conditions that results met there."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        machine, device = machine_of(result), result.context.device
        key = (device.name, device.emulated, machine["cpu"], machine["os"])
        groups.setdefault(key, []).append(result)
    return pack([_device(group) for group in groups.values()], DEVICES)


def _device(results: Sequence[Result]) -> Row:
    first = results[0]
    device, cpu = first.context.device, first.context.device.facts.get("cpu")
    dates = sorted(r.context.created[:10] for r in results)
    return {
        "device": _called(first),
        "profile": device.profile,
        **machine_of(first),
        "cpus": cpu.get("count") if isinstance(cpu, Mapping) else None,
        "runtimes": _joined(runtime_of(r) for r in results),
        "results": len(results),
        "measured": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "edgevit": _joined(r.context.edgevit for r in results),
        "governor": _joined(str(g) for c in _conditions(results) for g in _inside(c, "governor")),
        "temperature": _span(t for c in _conditions(results) for t in _inside(c, "temperature_c")),
        "load": _span(
            c["load_average"][0]
            for r in results
            if (c := r.conditions.before or {}) and c.get("load_average")
        ),
        "throttled": _joined(
            str(word)
            for c in _conditions(results)
            for word in (c.get("throttled") or {}).get("now") or ()
        ),
    }


def _conditions(results: Iterable[Result]) -> Iterable[Mapping[str, Any]]:
    for result in results:
        yield from (c for c in (result.conditions.before, result.conditions.after) if c)


def _inside(conditions: Mapping[str, Any], key: str) -> Iterable[Any]:
    found = conditions.get(key)
    return found.values() if isinstance(found, Mapping) else ()


def _joined(words: Iterable[str]) -> str | None:
    return ", ".join(sorted(set(words))) or None


def _span(numbers: Iterable[float]) -> str | None:
    found = sorted(numbers)
    if not found:
        return None
    low, high = f"{found[0]:.4g}", f"{found[-1]:.4g}"
    return low if low == high else f"{low} to {high}"
