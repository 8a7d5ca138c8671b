"""Tables for a page: rows as columns of values, so that a table of thousands stays small.

Words are kept once, in order of first appearance, with an index a row; numbers are rounded to six
digits, which is more than any measurement has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Column", "pack"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        key: of the value in a row.
        label: its heading, with the unit.
        kind: words; a number shown with so many significant digits; or a count shown whole.
        digits: of a number.
        minor: left out where there is little room, until all columns are asked for.
        beneath: stands under the first column's words where it is left out.
        high: key of an interval's upper end; the column's own value is the lower.
        text: key of the words to show; the column's own value is what it is sorted by.
    """

    key: str
    label: str
    kind: Literal["words", "number", "count"] = "words"
    digits: int = 3
    minor: bool = False
    beneath: bool = False
    high: str | None = None
    text: str | None = None


def pack(rows: Sequence[Row], columns: Sequence[Column], extra: Iterable[str] = ()) -> Row:
    """A table as the page's script reads it.

    Args:
        rows: a mapping each; what a row lacks is None.
        columns: what is shown; those that no row has anything for are left out.
        extra: keys that the script needs besides those of the columns.
    """
    columns = [c for c in columns if any(row.get(c.key) is not None for row in rows)]
    keys = [key for c in columns for key in (c.key, c.high, c.text) if key is not None]
    values = {key: _values([row.get(key) for row in rows]) for key in (*keys, *extra)}
    heads = [asdict(c) for c in columns]
    return {"size": len(rows), "columns": heads, "values": values}


def _values(values: Sequence[Any]) -> Any:
    if any(isinstance(value, str) for value in values):
        places: dict[str, int] = {}
        index = [-1 if v is None else places.setdefault(str(v), len(places)) for v in values]
        return {"words": list(places), "index": index}
    return [_rounded(value) for value in values]


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
