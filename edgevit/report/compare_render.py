"""A comparison as text, Markdown or JSON; each says what was judged, and by which rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from edgevit.errors import UnknownNameError
from edgevit.report.compare import ALPHA, Comparison, Row
from edgevit.report.pairs import called
from edgevit.report.render import NOTHING, escape_markdown, significant
from edgevit.report.rows import settings_in_words

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["COMPARISON_FORMATS", "render_comparison", "rich_comparison"]

WORDS = (
    "kind", "model", "input", "format", "precision", "backend", "options", "device", "verdict",
)  # fmt: skip
#: So many reasons are listed.
LISTED = 10
STYLES = {
    "stopped working": "bold red", "slower": "red", "more": "red", "larger": "red",
    "unstable": "yellow", "not comparable": "yellow", "faster": "green", "fewer": "green",
    "less": "green", "smaller": "green", "now works": "green",
}  # fmt: skip


def render_comparison(comparison: Comparison, format: str = "text") -> str:
    """A comparison as text, without a final newline.

    Args:
        comparison: of :func:`edgevit.report.compare.compare_results`.
        format: ``"text"``, ``"md"`` or ``"json"``.

    Raises:
        UnknownNameError: there is no such format.
    """
    if format not in COMPARISON_FORMATS:
        raise UnknownNameError("comparison format", format, COMPARISON_FORMATS)
    return COMPARISON_FORMATS[format](comparison)


def rich_comparison(comparison: Comparison) -> Group:
    """The comparison for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    headings, lines = _cells(comparison)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        justify: Literal["left", "right"] = "left" if heading in WORDS else "right"
        fold = heading in ("model", "input")
        table.add_column(Text(heading), justify=justify, overflow="fold", no_wrap=not fold)
    for row, cells in zip(comparison.rows, lines, strict=True):
        table.add_row(*map(Text, cells), style=STYLES.get(row.verdict, ""))
    below = (Text(line, style="dim") for line in _below(comparison))
    return Group(table, Text(summary(comparison), style="bold"), *below)


def summary(comparison: Comparison) -> str:
    """The counts of verdicts, and what they come to."""
    counts: dict[str, int] = {}
    for row in comparison.rows:
        counts[row.verdict] = counts.get(row.verdict, 0) + 1
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"{comparison.metric.name}: {words}. {_outcome(comparison)}"


def _outcome(comparison: Comparison) -> str:
    if found := comparison.regressions:
        over = sum(row.over for row in found)
        parts = [f"{over} over the limit"] * bool(over)
        parts += [f"{len(found) - over} stopped working"] * (len(found) > over)
        return f"Regression: {' and '.join(parts)}."
    if comparison.exit_code == 3:
        return "Could not be told: rows that had to be judged were not measured well enough."
    if comparison.fail_over is None:
        return "No limit was set." if comparison.rows else ""
    return "Within the limit."


def _rule(comparison: Comparison) -> str:
    limit = comparison.fail_over
    fails = "" if limit is None else f"; the limit is {_percent(limit)}"
    if not comparison.metric.rounds:
        return f"ratio: head over base, above 1 is {comparison.metric.worse}{fails}"
    return (
        f"ratio: head's median over base's, above 1 is slower, with its {_percent(1 - ALPHA)} "
        f"interval; a difference needs a ratio past the threshold and p < {ALPHA} "
        f"of the rank test over rounds{fails}"
    )


def _below(comparison: Comparison) -> list[str]:
    """The rule, then why rows could not be judged, then what else there is to know."""
    told = [row for row in comparison.rows if row.reason]
    lines = [_rule(comparison)]
    for row in told[:LISTED]:
        words = called(row.result)
        name = f"{words['model']}, {words['format']} {words['precision']}, {words['device']}"
        lines.append(f"{row.verdict}: {name}: {row.reason}")
    if len(told) > LISTED:
        lines.append(f"{len(told) - LISTED} more such rows; --json has every reason")
    return [*lines, *comparison.notes]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings and rows as texts, without columns that tell no rows apart."""
    rounds, unit = comparison.metric.rounds, comparison.metric.unit
    lines = [_line(row, unit, rounds) for row in comparison.rows]
    needless = {
        heading
        for heading, plain in PLAIN.items()
        if {line[heading] for line in lines} <= {lines[0][heading]} & {plain, lines[0]["kind"]}
    }
    for heading, other in TELLING.items():
        if all(len(values) == 1 for values in _values(lines, heading, other).values()):
            needless.add(heading)
    headings = [heading for heading in lines[0] if heading not in needless]
    return headings, [[line[heading] for heading in headings] for line in lines]


#: What goes without saying; a kind that all rows have, too.
PLAIN = {"precision": "fp32", "options": NOTHING, "threads": "1", "batch": "1", "kind": ""}


#: Columns that are left out unless they differ between rows that are alike in another.
TELLING = {"input": "model", "backend": "format"}


def _values(lines: list[dict[str, str]], heading: str, other: str) -> dict[str, set[str]]:
    """What stands in a column, by what stands in another."""
    values: dict[str, set[str]] = {}
    for line in lines:
        values.setdefault(line[other], set()).add(line[heading])
    return values


def _line(row: Row, unit: str, rounds: bool) -> dict[str, str]:
    words: dict[str, Any] = called(row.result)
    words["options"] = settings_in_words(words["options"]) or NOTHING
    cells = {name: str(value) or NOTHING for name, value in words.items()}
    cells |= {
        f"base ({unit})": _number(row.base_figure),
        f"head ({unit})": _number(row.head_figure),
        "ratio": NOTHING if row.ratio is None else f"{row.ratio:.3f}",
    }
    if rounds:
        interval = row.interval
        cells["interval"] = f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else NOTHING
        cells["p"] = NOTHING if row.p_value is None else significant(row.p_value, 2)
    verdict = f"{row.verdict} (over the limit)" if row.over else row.verdict
    return cells | {"verdict": verdict}


def _number(figure: float | None) -> str:
    return NOTHING if figure is None else significant(figure, 4)


def _text(comparison: Comparison) -> str:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=100_000, color_system=None)
    with console.capture() as capture:
        console.print(rich_comparison(comparison), crop=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _markdown(comparison: Comparison) -> str:
    headings, lines = _cells(comparison)
    table = [headings, ["---" if h in WORDS else "---:" for h in headings]]
    table += [[escape_markdown(cell) for cell in line] for line in lines]
    parts = [f"**{escape_markdown(summary(comparison))}**"]
    parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in table))
    parts += [escape_markdown(line) for line in _below(comparison)]
    return "\n\n".join(parts)


def _json(comparison: Comparison) -> str:
    document = {
        "metric": comparison.metric.name,
        "unit": comparison.metric.unit,
        "fail_over": comparison.fail_over,
        "alpha": ALPHA if comparison.metric.rounds else None,
        "exit_code": comparison.exit_code,
        "counts": comparison.counts,
        "rows": [row.to_json() for row in comparison.rows],
        "notes": list(comparison.notes),
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)


COMPARISON_FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": _text, "md": _markdown, "json": _json,
}  # fmt: skip
