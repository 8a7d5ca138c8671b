"""A table as Markdown, CSV, LaTeX, JSON or text; each ends with where its figures come from.

CSV and JSON carry every column with full precision; the others show the columns that the table asks
for, with as many digits as mean something.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from edgevit.errors import UnknownNameError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group, RenderableType
    from rich.table import Table

__all__ = ["FORMATS", "render", "rich_table"]

NOTHING = "–"
NO_ROWS = "no result to show"
LEVEL = 0.95
#: Column to its heading; ``{reference}`` stands for what speeds are relative to.
HEADINGS = {
    "origin": "figures",
    "kind": "kind",
    "model": "model",
    "input": "input",
    "format": "format",
    "precision": "precision",
    "device": "device",
    "threads": "threads",
    "batch": "batch",
    "params_m": "params (M)",
    "macs_g": "MACs (G)",
    "size_mib": "size (MiB)",
    "median_ms": "median (ms)",
    "interval_low_ms": "95 % interval (ms)",
    "p90_ms": "p90 (ms)",
    "p99_ms": "p99 (ms)",
    "images_per_s": "images/s",
    "speed_ratio": "speed vs {reference}",
    "memory_mib": "memory (MiB)",
    "load_ms": "load (ms)",
    "first_ms": "first (ms)",
    "verification": "verified",
    "status": "status",
    "published": "published",
    "published_speed_ratio": "published speed vs {reference}",
    "published_source": "published in",
}
#: Columns that leave a narrow terminal, the first to go first; the others always stay.
EXPENDABLE = (
    "p99_ms", "load_ms", "first_ms", "macs_g", "params_m", "size_mib", "precision", "p90_ms",
    "memory_mib", "published_speed_ratio", "images_per_s", "kind", "threads", "batch",
    "published_source", "verification", "interval_low_ms", "input", "speed_ratio",
)  # fmt: skip
#: Columns that stay where rows differ in them, or the rows could not be told apart.
TELLING = ("kind", "input", "precision", "threads", "batch")
WORDS = (
    "origin", "kind", "model", "input", "format", "precision", "device", "verification", "status",
    "published", "published_source",
)  # fmt: skip
#: Columns that fold where there is little room, to this many characters at least.
NARROW = 12
FOLDABLE = ("model", "input", "device", "published", "published_source")
DIGITS = {"params_m": 4, "median_ms": 4, "images_per_s": 4}
STYLES = {"mismatch": "bold red", "failed": "red", "unstable": "yellow", "stopped": "yellow"}


def render(frame: pd.DataFrame, format: str = "text", *, width: int | None = None) -> str:
    """A table of :func:`edgevit.report.table.build_table` as text, without a final newline.

    Args:
        frame: the table.
        format: ``"md"``, ``"csv"``, ``"latex"``, ``"json"`` or ``"text"``.
        width: for text, the number of characters that a line may have; columns that do not fit are
            left out, and named.

    Raises:
        UnknownNameError: there is no such format.
    """
    if format not in FORMATS:
        raise UnknownNameError("table format", format, FORMATS)
    text = _text(frame, width) if format == "text" else FORMATS[format](frame)
    return text.rstrip("\n")


def rich_table(frame: pd.DataFrame, *, width: int | None = None) -> Group:
    """The table for a terminal: as many columns as fit ``width``, then notes and provenance."""
    from rich.console import Group
    from rich.text import Text

    columns, left_out = _fitting(frame, width)
    table = _rich(frame, columns)
    if width is not None and (least := _width(_rich(frame, columns, fold=NARROW))) > width:
        table.width = least  # wider than the terminal, but whole
    parts: list[RenderableType] = [table] if len(frame) else [Text(NO_ROWS)]
    below = _below(frame)
    if left_out:
        named = ", ".join(_heading(frame, c) for c in left_out)
        below.insert(0, f"no room for: {named}; other formats have every column")
    return Group(*parts, *(Text(line, style="dim") for line in below))


def _below(frame: pd.DataFrame) -> list[str]:
    return [*frame.attrs["notes"], *frame.attrs["provenance"]]


def _groups(frame: pd.DataFrame) -> Mapping[str, tuple[str, str]]:
    """Of a table with columns by device and format, each such column's group and figure."""
    groups: Mapping[str, tuple[str, str]] = frame.attrs.get("groups", {})
    return groups


def _figure(frame: pd.DataFrame, column: str) -> str:
    """What a column holds, whichever group it is of."""
    return _groups(frame).get(column, ("", column))[1]


def _heading(frame: pd.DataFrame, column: str) -> str:
    group, figure = _groups(frame).get(column, ("", column))
    heading = HEADINGS[figure].format(reference=frame.attrs.get("relative_to"))
    if figure == "published":
        return group
    return f"{group}: {heading}" if group else heading


def _cells(frame: pd.DataFrame, columns: Sequence[str]) -> list[list[str]]:
    groups = _groups(frame)
    rows = frame.to_dict("records")
    return [
        [_grouped_cell(row, *groups[c]) if c in groups else _cell(row, c) for c in columns]
        for row in rows
    ]


def _grouped_cell(row: Mapping[Any, Any], group: str, figure: str) -> str:
    """A figure of a group, or why there is none."""
    own = {str(k).removeprefix(f"{group}/"): v for k, v in row.items() if f"{group}/" in str(k)}
    if figure == "median_ms" and _missing(own[figure]) and not _missing(own["status"]):
        return str(own["status"])
    return _cell(own, figure)


def _cell(row: Mapping[Any, Any], column: str) -> str:
    value = row[column]
    if _missing(value):
        return NOTHING
    if column == "device" and row["emulated"] is True:
        return f"{value} (emulated)"
    if column == "interval_low_ms":
        level = row["interval_level"]
        interval = f"{significant(value, 4)}–{significant(row['interval_high_ms'], 4)}"
        return interval if level >= LEVEL else f"{interval} ({100 * level:.0f} %)"
    if column == "median_ms" and row["status"] in ("unstable", "stopped"):
        return f"{significant(value, 4)} †"
    if isinstance(value, float):
        return significant(value, DIGITS.get(column, 3))
    return str(value)


def _missing(value: Any) -> bool:
    import pandas as pd

    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def significant(value: float, digits: int) -> str:
    """A number with so many significant digits, never with an exponent.

    >>> significant(0.012345, 3), significant(1234.5, 3)
    ('0.0123', '1234')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    rounded = float(f"{value:.{digits - 1}e}")
    places = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{places}f}" if places > 0 else f"{value:.0f}"


def _markdown(frame: pd.DataFrame) -> str:
    columns = frame.attrs["columns"]
    lines = []
    if len(frame):
        lines = [
            _pipes(escape_markdown(_heading(frame, c)) for c in columns),
            _pipes("---" if _figure(frame, c) in WORDS else "---:" for c in columns),
        ]
        lines += [_pipes(map(escape_markdown, cells)) for cells in _cells(frame, columns)]
    else:
        lines = [NO_ROWS]
    for line in _below(frame):
        lines += ["", escape_markdown(line)]
    return "\n".join(lines)


def _pipes(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, also within a table's cell."""
    flat = " ".join(text.split())
    escaped = re.sub(r"([\\`*\[\]<>|&$~])", r"\\\1", flat)
    # Underscores within a word mean nothing, and names read better without backslashes.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


def _latex(frame: pd.DataFrame) -> str:
    columns = frame.attrs["columns"]
    lines = ["% needs \\usepackage{booktabs}", "\\begin{table}", "\\centering"]
    if len(frame):
        aligned = "".join("l" if _figure(frame, c) in WORDS else "r" for c in columns)
        lines += [f"\\begin{{tabular}}{{{aligned}}}", "\\toprule"]
        lines += [_ampersands(_heading(frame, c) for c in columns), "\\midrule"]
        lines += [_ampersands(cells) for cells in _cells(frame, columns)]
        lines += ["\\bottomrule", "\\end{tabular}"]
    else:
        lines += [NO_ROWS]
    for line in _below(frame):
        lines += [f"\\par\\footnotesize {escape_latex(line)}"]
    return "\n".join([*lines, "\\end{table}"])


def _ampersands(cells: Any) -> str:
    return " & ".join(map(escape_latex, cells)) + " \\\\"


def escape_latex(text: str) -> str:
    """Text that LaTeX shows as it is."""
    # Two hyphens would become a dash.
    flat = re.sub("-(?=-)", "-\0", " ".join(text.split()))
    return "".join(LATEX.get(c, c) for c in flat).replace("\0", "{}")


LATEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "&": "\\&", "%": "\\%", "$": "\\$",
    "#": "\\#", "_": "\\_", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", '"': "\\textquotedbl{}",
    "–": "--", "†": "\\textdagger{}", "°": "\\textdegree{}", "×": "$\\times$",
    "`": "\\textasciigrave{}", "'": "\\textquotesingle{}",
}  # fmt: skip


def _json(frame: pd.DataFrame) -> str:
    rows = [
        {c: None if _missing(v) else v for c, v in row.items()} for row in frame.to_dict("records")
    ]
    attrs = {key: frame.attrs[key] for key in ("relative_to", "notes", "provenance")}
    return json.dumps({"rows": rows, **attrs}, indent=1, ensure_ascii=False, allow_nan=False)


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n")


def _text(frame: pd.DataFrame, width: int | None = None) -> str:
    from rich.console import Console

    # Without a limit nothing is folded: a pipe has no width.
    console = Console(file=io.StringIO(), width=width or 100_000, color_system=None)
    with console.capture() as capture:
        console.print(rich_table(frame, width=width), crop=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _rich(frame: pd.DataFrame, columns: Sequence[str], *, fold: int | None = None) -> Table:
    """The table alone; ``fold`` limits the width of columns that may be folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        word = _figure(frame, column) in WORDS
        justify: Literal["left", "right"] = "left" if word else "right"
        heading = Text(_heading(frame, column))
        # A folded name can still be read, a folded number is another number.
        table.add_column(
            heading,
            justify=justify,
            overflow="fold",
            no_wrap=column not in FOLDABLE,
            max_width=fold if column in FOLDABLE else None,
        )
    for row, cells in zip(frame.to_dict("records"), _cells(frame, columns), strict=True):
        style = STYLES.get(str(row.get("status")), "")
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def _fitting(frame: pd.DataFrame, width: int | None) -> tuple[list[str], list[str]]:
    """The columns to show, and those that there is no room for."""
    columns: list[str] = list(frame.attrs["columns"])
    left_out: list[str] = []
    if width is None:
        return columns, left_out
    measured = frame if _groups(frame) else frame[frame["origin"] == "measured"]
    telling = [c for c in TELLING if c in measured and measured[c].nunique() > 1]
    for figure in (c for c in EXPENDABLE if c not in telling):
        # Of every device and format at once, so that they stay comparable.
        leaving = [c for c in columns if _figure(frame, c) == figure]
        if leaving and _width(_rich(frame, columns)) <= width:
            break
        columns = [c for c in columns if c not in leaving]
        left_out = leaving + left_out
    return columns, left_out


def _width(table: Table) -> int:
    from rich.console import Console

    return Console(width=100_000).measure(table).maximum


FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {
    "md": _markdown, "csv": _csv, "latex": _latex, "json": _json, "text": _text,
}  # fmt: skip
