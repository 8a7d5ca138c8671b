"""Tables between markers in a Markdown page, written from results and checked against them.

    <!-- edgevit:linux-x64 -->
    ... whatever stands here is written anew ...
    <!-- /edgevit:linux-x64 -->

A check compares what cannot differ between two runs of one protocol: the columns, which rows there
are with what does not depend on the machine's mood, and the provenance, word by word but for the
machine, versions, dates and counts of runs. Times are never compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import unified_diff

from edgevit.errors import OptionError, UsageError
from edgevit.measure.results import Result
from edgevit.report.render import render
from edgevit.report.table import build_table

__all__ = ["differences", "section", "with_tables"]

NAME = r"[a-z0-9][a-z0-9._-]*"
#: Columns that are the same for the same files and protocol on every machine.
KEPT = (
    "figures", "kind", "model", "input", "format", "precision", "device", "threads", "batch",
    "params (M)", "MACs (G)", "size (MiB)",
)  # fmt: skip


def section(results: Sequence[Result], *, relative_to: str | None = None) -> str:
    """The table that stands between two markers: every row, the unsteady ones marked."""
    frame = build_table(results, include="all", relative_to=relative_to)
    return render(frame, "md")


def with_tables(page: str, sections: Mapping[str, str]) -> str:
    """The page with each section between its markers; those without any come at the end.

    Raises:
        OptionError: a section's name is no word of small letters, digits, dots and hyphens.
        UsageError: a marker is there twice, or has no end.
    """
    for name, text in sections.items():
        if not re.fullmatch(NAME, name):
            raise OptionError("section", expected="small letters, digits and hyphens", got=name)
        opening, closing = f"<!-- edgevit:{name} -->", f"<!-- /edgevit:{name} -->"
        body = f"{opening}\n\n{text}\n\n{closing}"
        if _span(page, name) is None:
            page = f"{page.rstrip()}\n\n## {name}\n\n{body}\n".lstrip()
        else:
            before, after = page.split(opening)[0], page.split(closing)[1]
            page = before + body + after
    return page


def current(page: str, name: str) -> str | None:
    """What stands between the markers of that name; None if they are not there."""
    return _span(page, name)


def _span(page: str, name: str) -> str | None:
    opening, closing = f"<!-- edgevit:{name} -->", f"<!-- /edgevit:{name} -->"
    counts = page.count(opening), page.count(closing)
    if counts == (0, 0):
        return None
    if counts != (1, 1) or page.index(opening) > page.index(closing):
        raise UsageError(
            f"the markers of {name} are not one pair: {counts[0]} begin, {counts[1]} end",
            hint=f"{opening} and {closing} enclose the table",
        )
    return page.split(opening)[1].split(closing)[0].strip()


def differences(page: str, sections: Mapping[str, str]) -> str:
    """How the page's tables differ from what would be written; empty if only times do."""
    found = []
    for name, text in sections.items():
        there = current(page, name)
        before = ["(no table)"] if there is None else shape(there)
        lines = unified_diff(
            before, shape(text), f"{name}, on the page", f"{name}, due", lineterm=""
        )
        found += list(lines)
    return "\n".join(found)


def shape(text: str) -> list[str]:
    """The lines of a table and what is below it, without all that differs from run to run."""
    lines: list[str] = []
    headings: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if not line.startswith("|"):
            headings = []
            lines += [] if _is_of_one_run(line) else [_masked(line)]
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not headings:
            headings = cells
            lines.append(line)
        elif set(line) <= set("|-: "):
            lines.append(line)
        else:
            pairs = zip(headings, cells, strict=False)
            lines.append(" | ".join(cell for head, cell in pairs if head in KEPT))
    return lines


#: Remarks that hang on how steady the machine was.
OF_ONE_RUN = ("† not steady", "not shown", "unverified:")


def _is_of_one_run(line: str) -> bool:
    return line.startswith(OF_ONE_RUN)


def _masked(line: str) -> str:
    """A provenance line without machine, versions, dates and counts."""
    if not line.startswith(("measured on ", "checked on ")):
        return line
    parts = line.split("; ")
    where = re.sub(r" \(.*", " (machine)", parts[0])
    rest = [re.sub(r"(?<![\w-])v?\d[\w.+-]*( to \d[\w.+-]*)?", "#", part) for part in parts[1:]]
    command = parts[-1] if parts[-1].startswith("edgevit ") and len(parts) > 2 else None
    return "; ".join([where, *rest[:-1], command or rest[-1]])
