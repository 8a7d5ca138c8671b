"""``edgevit table``: results as a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.common import out_console
from edgevit.errors import OptionError

if TYPE_CHECKING:
    from edgevit.measure.results import Result


def table(
    results: Annotated[
        list[Path] | None, typer.Argument(help="Result files or folders; ./results without.")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", "-f", help="text, md, csv, latex or json.")
    ] = "text",
    include: Annotated[
        str, typer.Option(help="ok: steady and checked rows only; all: the others too, marked.")
    ] = "ok",
    relative_to: Annotated[
        str | None, typer.Option(help="A format or model: adds speed as a ratio to its row.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="The papers' figures beside the measured ones.")
    ] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="A row a model, columns by device and format.")
    ] = False,
    p99: Annotated[bool, typer.Option("--p99", help="A column for the 99th percentile.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Show results as a table, with where every number comes from."""
    from edgevit.measure.results import read_results

    read = [r for place in results or [Path("results")] for r in read_results(place)]
    options: dict[str, Any] = {
        "include": include,
        "relative_to": relative_to,
        "published": published,
        "wide": wide,
        "p99": p99,
    }
    chosen = "json" if as_json else format
    if output is None and chosen == "text":
        print_table(read, **options)
        return
    from edgevit.report.render import render
    from edgevit.report.table import build_table

    text = render(build_table(read, **options), chosen) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(
            "--output", expected="a file that can be written", got=str(output)
        ) from error


def print_table(results: Iterable[Result], **options: Any) -> None:
    """A table on stdout: for a terminal as wide as it is, plain text in a pipe."""
    from edgevit.report.render import render, rich_table
    from edgevit.report.table import build_table

    frame = build_table(results, **options)
    console = out_console()
    if console.is_terminal:
        console.print(rich_table(frame, width=console.width))
    else:
        typer.echo(render(frame, "text"))
