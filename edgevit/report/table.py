"""Results as a table: which rows are shown, what stands in them, and where it all comes from.

A row's times are shown only if they mean something: the file computes the right thing, the runs
were steady (or unstable rows were asked for, and then they are marked), and the device is no
emulator. Measured and published figures stand in different rows and different columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgevit.errors import OptionError, UnknownNameError
from edgevit.measure.results import Result, result_filename
from edgevit.report.beside import published_rows
from edgevit.report.remarks import left_out, notes_on, provenance_of, published_provenance
from edgevit.report.render import FORMATS, render, rich_table
from edgevit.report.rows import COLUMNS, INTEGERS, NUMBERS, measured_row
from edgevit.report.wide import widen

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "FORMATS", "build_table", "newest", "render", "rich_table"]

Row = dict[str, Any]
ALL_ELSE = ("kind", "model", "input", "format", "device", "threads", "batch")


def build_table(
    results: Iterable[Result],
    *,
    include: str = "ok",
    relative_to: str | None = None,
    published: bool = False,
    wide: bool = False,
    p99: bool = False,
) -> pd.DataFrame:
    """A table of results, one row a subject, format, device, thread count and batch.

    Args:
        results: in any order; of several of the same row the newest counts.
        include: ``"ok"``, or ``"all"`` to show rows that are not; times of unstable and stopped
            ones are marked, those of mismatches and failures never shown.
        relative_to: a format, or the name of a model or block; adds how many times as fast each
            row is as that one, all else being equal.
        published: add the papers' latencies and throughputs, in rows and columns of their own.
        wide: a row a model, and columns by device and format (:mod:`edgevit.report.wide`).
        p99: show the 99th percentile.

    Returns:
        A frame with the columns :data:`COLUMNS`; missing figures are NaN or None. Its ``attrs``
        hold what :func:`render` needs: provenance, notes, and which columns to show.

    Raises:
        OptionError: ``include`` is neither of the two.
        UnknownNameError: no result has the format or name that ``relative_to`` says.
    """
    if include not in ("ok", "all"):
        raise OptionError("include", expected="'ok' or 'all'", got=include)
    latest, older = newest(results)
    shown = [r for r in latest if include == "all" or r.status == "ok"]
    rows = [measured_row(r) for r in _ordered(shown)]
    if relative_to is not None:
        _add_ratios(rows, _reference_key(relative_to, latest))
    notes = notes_on(rows, relative_to, p99)
    notes += left_out([r for r in latest if r not in shown], older)
    provenance = provenance_of(shown)
    if published:
        rows = _with_published(rows, shown, relative_to)
        provenance += published_provenance(rows)
    frame = _frame(
        rows,
        provenance=provenance,
        notes=notes,
        columns=_columns(rows, relative_to, published, p99),
        relative_to=relative_to,
    )
    return widen(frame) if wide else frame


def newest(results: Iterable[Result]) -> tuple[list[Result], int]:
    """The newest result of each row, in the order of first appearance; how many were older."""
    latest: dict[str, Result] = {}
    count = 0
    for result in results:
        key, count = result_filename(result), count + 1
        if key not in latest or result.context.created >= latest[key].context.created:
            latest[key] = result
    return list(latest.values()), count - len(latest)


def _ordered(results: Sequence[Result]) -> list[Result]:
    """By model and device as they come first, then batch and threads."""
    models = list(dict.fromkeys(r.subject.name for r in results))
    devices = list(dict.fromkeys(r.context.device.name for r in results))
    return sorted(
        results,
        key=lambda r: (
            models.index(r.subject.name),
            devices.index(r.context.device.name),
            r.subject.batch,
            r.subject.threads,
        ),
    )


def _reference_key(reference: str, results: Sequence[Result]) -> tuple[str, str]:
    """What ``relative_to`` means: a format or a model."""
    formats = {r.subject.format for r in results}
    models = {r.subject.name for r in results}
    if reference in formats:
        return "format", reference
    if reference in models:
        return "model", reference
    if not results:
        return "model", reference
    raise UnknownNameError("format or model in these results", reference, formats | models)


def _add_ratios(rows: list[Row], reference: tuple[str, str]) -> None:
    """Median of the reference row over that of each row that differs from it in nothing else."""
    column, name = reference
    same = [c for c in ALL_ELSE if c != column]
    references: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row[column] == name and "median_ms" in row:
            references.setdefault(tuple(row[c] for c in same), []).append(row)
    for row in rows:
        candidates = references.get(tuple(row[c] for c in same), [])
        if candidates and "median_ms" in row:
            # Of a reference in several precisions, the row's own, or the first.
            alike = (c for c in candidates if c["precision"] == row["precision"])
            row["speed_ratio"] = next(alike, candidates[0])["median_ms"] / row["median_ms"]


def _with_published(rows: list[Row], shown: list[Result], relative_to: str | None) -> list[Row]:
    """Each model's published rows after its measured ones."""
    together: list[Row] = []
    for name in dict.fromkeys(row["model"] for row in rows):
        together += [row for row in rows if row["model"] == name]
        together += published_rows(name, [r for r in shown if r.subject.name == name], relative_to)
    return together


def _columns(rows: Sequence[Row], relative_to: str | None, published: bool, p99: bool) -> list[str]:
    """The columns to show, the interval under the name of its lower end."""
    inputs = {row["input"] for row in rows if "input" in row}
    kinds = {row["kind"] for row in rows if "kind" in row}
    shown = ["origin"] * published + ["kind"] * (len(kinds) > 1) + ["model"]
    shown += ["input"] * (len(inputs) > 1)
    shown += ["format", "precision", "device", "threads", "batch"]
    shown += ["params_m", "macs_g", "size_mib", "median_ms", "interval_low_ms", "p90_ms"]
    shown += ["p99_ms"] * p99 + ["images_per_s"] + ["speed_ratio"] * (relative_to is not None)
    shown += ["memory_mib", "load_ms", "first_ms", "verification", "status"]
    shown += ["published"] * published
    shown += ["published_speed_ratio"] * any("published_speed_ratio" in row for row in rows)
    return shown + ["published_source"] * published


def _frame(rows: list[Row], **attrs: Any) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    frame = frame.astype(dict.fromkeys(INTEGERS, "Int64") | dict.fromkeys(NUMBERS, "float64"))
    frame.attrs.update(attrs)
    return frame
