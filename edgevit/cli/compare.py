"""``edgevit compare``: two sets of results, and whether anything got slower."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.common import out_console
from edgevit.errors import OptionError


def compare(
    base: Annotated[Path, typer.Argument(help="Results before: a file or folder.")],
    head: Annotated[Path, typer.Argument(help="Results now: a file or folder.")],
    metric: Annotated[
        str, typer.Option("--metric", "-m", help="latency, memory, size or instructions.")
    ] = "latency",
    fail_over: Annotated[
        str | None, typer.Option(help="Fail where a figure is worse by more than this: 5% or 0.05.")
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(help="Smaller ratios are no difference: 2% without, for latency and memory."),
    ] = None,
    across_devices: Annotated[
        bool, typer.Option("--across-devices", help="Compare different devices.")
    ] = False,
    across_versions: Annotated[
        bool, typer.Option("--across-versions", help="Compare different runtimes and systems.")
    ] = False,
    format: Annotated[str, typer.Option("--format", "-f", help="text, md or json.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Compare two sets of results: faster, slower, stopped working, or no difference shown.

    A difference needs a ratio past the threshold and a rank test over rounds. Exit code 1:
    something is worse than --fail-over allows, or stopped working. 3: it could not be told, since
    the two have nothing in common or, with --fail-over, since rows were not steady.
    """
    from edgevit.measure.results import read_results
    from edgevit.report.compare import compare_results
    from edgevit.report.compare_render import render_comparison, rich_comparison

    limits = [
        None if text is None else parse_share(option, text)
        for option, text in (("--fail-over", fail_over), ("--threshold", threshold))
    ]
    comparison = compare_results(
        read_results(base),
        read_results(head),
        metric=metric,
        fail_over=limits[0],
        threshold=limits[1],
        across_devices=across_devices,
        across_versions=across_versions,
    )
    chosen = "json" if as_json else format
    if chosen == "text" and out_console().is_terminal:
        out_console().print(rich_comparison(comparison))
    else:
        typer.echo(render_comparison(comparison, chosen))
    sys.exit(comparison.exit_code)


def parse_share(option: str, text: str) -> float:
    """``"5%"``, ``"5 %"`` and ``"0.05"`` to 0.05.

    Raises:
        OptionError: anything else, a bare 5 too: it might be 5 % or five times.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%?)", text.strip())
    if found is None or (not found[2] and float(found[1]) >= 1):
        raise OptionError(option, expected="a share such as 5% or 0.05", got=text)
    return float(found[1]) / (100 if found[2] else 1)
