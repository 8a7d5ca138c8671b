"""``edgevit report``: results as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.common import error_console, print_json


def report(
    results: Annotated[
        list[Path] | None, typer.Argument(help="Result files or folders; ./results without.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "report.html"
    ),
    title: Annotated[str, typer.Option(help="Of the page.")] = "Latency of vision transformers",
    published: Annotated[
        bool,
        typer.Option("--published/--no-published", help="With a table of the papers' figures."),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="What was written, on stdout as JSON.")
    ] = False,
) -> None:
    """Write results as one page: a table to sort and filter, plots, devices and conditions.

    The page holds everything it needs and loads nothing, so that it opens without a network.
    """
    from edgevit.errors import OutputError
    from edgevit.measure.profile import has_results, read_profiles
    from edgevit.measure.results import read_results, write_atomically
    from edgevit.report.page import build_page

    places = results or [Path("results")]
    profiles = [p for place in places for p in read_profiles(place)]
    # A folder may hold profiles alone.
    read = [r for p in places if not profiles or has_results(p) for r in read_results(p)]
    page = build_page(read, profiles=profiles, title=title, published=published)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, page)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from error
    size = output.stat().st_size
    if as_json:
        print_json(
            {"file": str(output), "bytes": size, "results": len(read), "profiles": len(profiles)}
        )
        return
    typer.echo(str(output))
    error_console().print(
        f"{len(read)} results, {size / 2**20:.1f} MiB", style="dim", markup=False, highlight=False
    )
