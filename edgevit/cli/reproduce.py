"""``edgevit reproduce``: a paper's table measured here, beside what it printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevit.cli.common import CliProgress, error_console, out_console, print_json, split_list
from edgevit.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from edgevit.report.reproduction import Reproduction


def reproduce(
    protocol: Annotated[
        str | None, typer.Argument(help="Paper and table, such as sima-table3; see --list.")
    ] = None,
    device: Annotated[str, typer.Option("--device", "-d", help="Where to run.")] = "local",
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="Which formats; the device's default one without."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One image, about a second a row; says that it is so.")
    ] = False,
    batch: Annotated[int | None, typer.Option(help="In place of the protocol's.")] = None,
    threads: Annotated[int | None, typer.Option(help="In place of the protocol's.")] = None,
    runs: Annotated[int | None, typer.Option(help="In place of the protocol's.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, if it was cut short.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "results"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of weights, inputs and the order.")] = 0,
    shown: Annotated[str, typer.Option("--as", help="text, md or json.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Short for --as json.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the protocols.")] = False,
) -> None:
    """Measure a paper's table by its protocol, and show published and measured side by side.

    Tells the ratios, whether the paper's order holds here (rank correlation), and what becomes of
    its claims. The same command again goes on where it was cut short. Exit code 3: some rows could
    not be measured; 1: some compute something else than they should.
    """
    from edgevit.report.reproduction_render import REPRODUCTION_FORMATS, render_reproduction

    chosen = "json" if as_json else shown
    if listing:
        _list(chosen == "json")
        return
    if protocol is None:
        raise UsageError("which table?", hint="`edgevit reproduce --list` lists them")
    if chosen not in REPRODUCTION_FORMATS:
        raise UnknownNameError("format", chosen, REPRODUCTION_FORMATS)
    from edgevit.verbs.reproduce import reproduce as run

    with CliProgress(quiet=chosen == "json") as progress:
        found = run(
            protocol,
            device=device,
            formats=split_list(formats),
            quick=quick,
            batch=batch,
            threads=threads,
            runs=runs,
            output=output,
            fresh=fresh,
            seed=seed,
            progress=progress,
        )
    if chosen == "json":
        print_json([one.to_json() for one in found])
    else:
        typer.echo("\n\n".join(render_reproduction(one, chosen) for one in found))
        error_console().print(f"results in {output / protocol}", style="dim", markup=False)
    _leave(found)


def _leave(found: list[Reproduction]) -> None:
    statuses = {row.status for one in found for row in one.rows}
    if "mismatch" in statuses:
        sys.exit(1)
    if statuses & {"failed", "missing"}:
        sys.exit(3)


def _list(as_json: bool) -> None:
    from edgevit.report.protocols import PROTOCOLS

    if as_json:
        listed = [
            {"name": p.name, "title": p.title, "batch": p.batch, "threads": p.threads,
             "runs": p.runs, "subjects": list(p.subjects), "stated": p.stated}
            for p in PROTOCOLS.values()
        ]  # fmt: skip
        print_json(listed)
        return
    for p in PROTOCOLS.values():
        runs = f", {p.runs} runs" if p.runs else ""
        line = f"{p.name:<20} {p.title}; batch {p.batch}, threads {p.threads}{runs}"
        out_console().print(line, highlight=False, markup=False)
