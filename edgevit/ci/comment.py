"""What changed since the last results, machine by machine, as one comment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevit.errors import EdgevitError, UsageError
from edgevit.measure.results import read_results
from edgevit.report.compare import compare_results
from edgevit.report.compare_render import render_comparison

__all__ = ["Comment", "compare_folders"]


@dataclass(frozen=True)
class Comment:
    """A comment, and what it comes to.

    Args:
        text: Markdown.
        exit_code: 1 if instructions grew past the limit or a count stopped working, 3 if counts
            could not be compared though both sides have them, else 0. Times on hosted runners are
            told, and decide nothing.
    """

    text: str
    exit_code: int


def compare_folders(last: Path, now: Path, *, fail_over: float | None) -> Comment:
    """Compare each folder of results with the one of its name.

    Args:
        last: has a folder a machine, or nothing.
        now: likewise; its folders decide what is compared.
        fail_over: the share by which instructions may grow.

    Raises:
        UsageError: there is nothing in ``now``.
        BundleError: a result of ``now`` is damaged.
    """
    folders = sorted(p for p in now.iterdir() if p.is_dir()) if now.is_dir() else []
    if not folders:
        raise UsageError(f"{now} has no folder of results", hint="one a machine, named like it")
    parts, codes = ["## Latency"], [0]
    for folder in folders:
        text, code = _compared(last / folder.name, folder, fail_over)
        parts += [f"### {folder.name}", text]
        codes.append(code)
    return Comment("\n\n".join(parts) + "\n", 1 if 1 in codes else max(codes))


def _compared(last: Path, now: Path, fail_over: float | None) -> tuple[str, int]:
    head = read_results(now)
    if not last.is_dir() or not any(last.rglob("*.json")):
        return "No earlier results to compare with.", 0
    counts = any(result.instructions for result in head)
    try:
        comparison = compare_results(
            read_results(last),
            head,
            metric="instructions" if counts else "latency",
            fail_over=fail_over if counts else None,
        )
    except EdgevitError as error:
        # Runners change: another CPU or system is no regression, and not to be hidden either.
        return f"Not compared: {error.message}.", 0
    return render_comparison(comparison, "md"), comparison.exit_code if counts else 0
