"""A reproduction as text, Markdown or JSON: the table, the order, the claims, what to know."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence

from edgevit.errors import UnknownNameError
from edgevit.report.render import NOTHING, escape_markdown, significant
from edgevit.report.reproduction import Judged, Ordering, Reproduction, Row

__all__ = ["REPRODUCTION_FORMATS", "render_reproduction"]

Tables = list[tuple[str, list[str], list[list[str]]]]


def render_reproduction(reproduction: Reproduction, format: str = "text") -> str:
    """A reproduction as text, without a final newline.

    Args:
        reproduction: of :func:`edgevit.report.reproduction.build_reproduction`.
        format: ``"text"``, ``"md"`` or ``"json"``.

    Raises:
        UnknownNameError: there is no such format.
    """
    if format not in REPRODUCTION_FORMATS:
        raise UnknownNameError("format", format, REPRODUCTION_FORMATS)
    return REPRODUCTION_FORMATS[format](reproduction).rstrip("\n")


def _tables(r: Reproduction) -> Tables:
    return [
        ("", *_figures(r)),
        ("Order", ["column", "group", "rows", "rank correlation", "pairs in order"],
         [_order(o) for o in r.orderings]),
        ("Claims", ["claim", "published", "here", "95 % interval", "p", "verdict"],
         [_claim(c) for c in r.claims]),
    ]  # fmt: skip


def _figures(r: Reproduction) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the main table."""
    headings = ["model", "measured (ms)", "95 % interval (ms)", "images/s"]
    headings += ["memory (MiB)"] * r.protocol.memory
    for column in r.columns:
        headings += [f"published: {column.heading}", "ratio"]
    return [*headings, "status"], [list(_cells(r, row)) for row in r.rows]


def _cells(r: Reproduction, row: Row) -> Iterator[str]:
    yield row.name
    yield _number(row.median_ms, 4)
    low, high = row.interval_ms or (None, None)
    yield f"{_number(low, 4)}–{_number(high, 4)}" if row.interval_ms else NOTHING
    yield _number(row.images_per_s, 4)
    if r.protocol.memory:
        yield _number(row.memory_mib)
    for column in r.columns:
        yield row.published.get(column.heading, NOTHING)
        yield _number(row.ratios.get(column.heading))
    yield row.status


def _order(o: Ordering) -> list[str]:
    correlation = NOTHING if o.correlation is None else f"{o.correlation:.2f}"
    pairs = f"{o.agreeing} of {o.pairs}"
    return [o.heading, str(o.group), str(o.rows), correlation, pairs]


def _claim(c: Judged) -> list[str]:
    word = "faster" if c.metric == "time" else "less memory"
    published = [f"{_number(ratio)}x" for ratio in c.published.values()]
    low, high = c.interval or (None, None)
    return [
        f"{c.better} {word} than {c.than}",
        ", ".join(dict.fromkeys(published)) or NOTHING,
        f"{_number(c.measured)}x" if c.measured else NOTHING,
        f"{_number(low)}–{_number(high)}" if c.interval else NOTHING,
        NOTHING if c.p_value is None else f"{c.p_value:.2g}",
        c.verdict if c.steady else f"{c.verdict} †",
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else significant(value, digits)


def _head(r: Reproduction) -> list[str]:
    p = r.protocol
    runs = f"{p.runs} runs" if p.runs else "runs by time"
    threads = f"{p.threads} thread{'s' * (p.threads > 1)}"
    lines = [f"protocol: batch {p.batch}, {threads}, {runs}; {p.stated}"]
    return lines + [f"not the protocol: {words}" for words in r.deviations]


def _below(r: Reproduction) -> list[str]:
    lines = [
        f"{row.status}: {row.name}: {row.reason or 'no reason given'}"
        for row in r.rows
        if row.status != "ok"
    ]
    if any(c.of_time for c in r.columns):
        lines.append("ratio: speed here over the published, per image; above 1 is faster here")
    if r.protocol.memory:
        lines.append(
            "ratio of memory: peak memory of inference here over the published figure; published "
            "GPU memory holds training, and size is an estimate for one image (all outputs of "
            "layers twice, and parameters), so that only the order can be the same"
        )
    if not all(c.steady for c in r.claims):
        lines.append("† a row was not steady; measure again on a quiet machine")
    counts = {word: sum(c.verdict == word for c in r.claims) for word in _words(r)}
    lines.append("claims: " + ", ".join(f"{n} {word}" for word, n in counts.items()))
    return [*lines, *r.provenance]


def _words(r: Reproduction) -> list[str]:
    return list(dict.fromkeys(c.verdict for c in r.claims))


def _title(r: Reproduction) -> str:
    return f"{r.protocol.title}, {r.format} on {r.device}"


def _markdown(r: Reproduction) -> str:
    lines = [f"### {escape_markdown(_title(r))}", ""]
    lines += [line for words in _head(r) for line in (escape_markdown(words), "")]
    for name, headings, rows in _tables(r):
        if rows:
            lines += [f"**{name}**", ""] * bool(name)
            lines += [*_pipes(headings, rows), ""]
    return "\n".join([*lines, *(f"{escape_markdown(words)}\n" for words in _below(r))])


def _pipes(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(map(escape_markdown, headings)) + " |"
    yield "|" + " --- |" * len(headings)
    for cells in rows:
        yield "| " + " | ".join(map(escape_markdown, cells)) + " |"


def _text(r: Reproduction) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), width=100_000, color_system=None)
    with console.capture() as capture:
        for line in (_title(r), *_head(r)):
            console.print(Text(line))
        for name, headings, rows in _tables(r):
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
            for heading in headings:
                table.add_column(Text(heading), no_wrap=True)
            for cells in rows:
                table.add_row(*map(Text, cells))
            if rows:
                console.print(Text(f"\n{name}" if name else ""))
                console.print(table, crop=False)
        for line in ("", *_below(r)):
            console.print(Text(line))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _json(r: Reproduction) -> str:
    return json.dumps(r.to_json(), indent=1, ensure_ascii=False, allow_nan=False)


REPRODUCTION_FORMATS: dict[str, Callable[[Reproduction], str]] = {
    "text": _text, "md": _markdown, "json": _json,
}  # fmt: skip
