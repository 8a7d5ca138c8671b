"""A table with a row a model and columns by device and format.

    given    one row a model, device and format        (edgevit.report.table)
    result   one row a model, and of each device and format its latency, interval, throughput,
             memory, size and speed

A figure's column is called ``group/figure``, where the group names device and format, and precision
and runtime where rows differ in nothing else. Published figures have groups of their own, and never
stand among measured ones. A cell without a time says why: ``mismatch``, ``failed``, ``emulated``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BETWEEN", "widen"]

Row = dict[str, Any]
#: Between a group and its figure in a column's name.
BETWEEN = "/"
#: What tells rows apart, and what is the same for all formats of a model.
KEYS = ("kind", "model", "input", "threads", "batch")
SHARED = ("params_m", "macs_g")
#: Figures that are shown of each group, and all that CSV and JSON have of it.
SHOWN = ("median_ms", "interval_low_ms", "p99_ms", "images_per_s", "memory_mib", "size_mib",
         "speed_ratio")  # fmt: skip
KEPT = ("median_ms", "interval_low_ms", "interval_high_ms", "interval_level", "p90_ms", "p99_ms",
        "images_per_s", "speed_ratio", "memory_mib", "size_mib", "load_ms", "first_ms",
        "verification", "status", "reason", "runtime", "emulated", "file_sha256")  # fmt: skip
PUBLISHED = ("published", "published_value", "published_unit", "published_metric",
             "published_source", "published_note", "published_speed_ratio")  # fmt: skip


def widen(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table with a row a model (input, threads, batch) and columns by device and format.

    Args:
        frame: of :func:`edgevit.report.table.build_table`.

    Returns:
        A frame that :func:`edgevit.report.render.render` takes; ``attrs["groups"]`` has the group
        and figure of each column.
    """
    import pandas as pd

    told = [_present(row) for row in frame.to_dict("records")]
    measured = [row for row in told if row["origin"] == "measured"]
    rows: dict[tuple[Any, ...], Row] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for row in measured:
        wide = rows.setdefault(_key(row), {k: row.get(k) for k in (*KEYS, *SHARED)})
        for key in SHARED:
            wide[key] = row.get(key) if wide[key] is None else wide[key]
        _place(wide, groups, _group(row, measured), row, KEPT)
    for row in told:
        if row["origin"] == "published":
            for wide in (w for w in rows.values() if w["model"] == row["model"]):
                _place(wide, groups, _published_group(row), row, PUBLISHED)
    names = {_name(group, f): (group, f) for group, figures in groups.items() for f in figures}
    made = pd.DataFrame(list(rows.values()), columns=[*KEYS, *SHARED, *names], dtype=object)
    made.attrs.update(frame.attrs)
    made.attrs["groups"] = names
    made.attrs["columns"] = _columns(list(rows.values()), names, frame.attrs["columns"])
    return made


def _present(row: Mapping[Any, Any]) -> Row:
    """A row with None for what is missing."""
    import pandas as pd

    return {str(k): None if pd.isna(v) else v for k, v in row.items()}


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in KEYS)


def _name(group: str, figure: str) -> str:
    return f"{group}{BETWEEN}{figure}"


def _group(row: Row, measured: Sequence[Row]) -> str:
    """Device and format; precision and runtime where others have other ones."""
    same = [r for r in measured if (r["device"], r["format"]) == (row["device"], row["format"])]
    telling = [k for k in ("precision", "runtime") if len({r[k] for r in same}) > 1]
    device = f"{row['device']} (emulated)" if row["emulated"] else row["device"]
    return ", ".join([device, " ".join([row["format"], *(str(row[k]) for k in telling)])])


def _published_group(row: Row) -> str:
    batch = [f"batch {row['batch']}"] if row["batch"] is not None else []
    where = [row["device"] or "device not stated", row["runtime"], *batch]
    return f"published, {', '.join(part for part in where if part)}"


def _place(
    wide: Row, groups: dict[str, tuple[str, ...]], group: str, row: Row, figures: tuple[str, ...]
) -> None:
    """A row's figures under its group; a second one of the same group gets a number."""
    number, called = 1, group
    while any(_name(called, figure) in wide for figure in figures):
        number, called = number + 1, f"{group} ({number + 1})"
    groups.setdefault(called, figures)
    wide.update({_name(called, figure): row.get(figure) for figure in figures})


def _columns(
    rows: Sequence[Row], names: Mapping[str, tuple[str, str]], long: Sequence[str]
) -> list[str]:
    """The columns to show: of groups, the figures that any row has."""

    def known(column: str) -> bool:
        return any(row.get(column) is not None for row in rows)

    shared = [c for c in (*KEYS, *SHARED) if c in long and known(c)]
    wanted = [f for f in SHOWN if f in long]
    shown = []
    for group in dict.fromkeys(group for group, _ in names.values()):
        # The median's column stays: it says why there is none.
        shown += [n for f in wanted if known(n := _name(group, f)) or (f, n) == ("median_ms", n)]
        both = (_name(group, figure) for figure in ("published", "published_speed_ratio"))
        shown += [name for name in both if known(name)]
    return [*shared, *(name for name in shown if name in names)]
