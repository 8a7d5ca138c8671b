"""``edgevit devices peak``: what a machine reaches at best."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from edgevit.cli.common import out_console, print_json
from edgevit.errors import OptionError

__all__ = ["peak"]


def peak(
    name: Annotated[str, typer.Argument(help="Of a board, or local.", metavar="NAME")] = "local",
    threads: Annotated[
        int | None, typer.Option(help="Of the products. The device's own default without.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure even if it is known.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Tell a machine's peak: GFLOP/s of products and GB/s of copying.

    It is measured once and kept; profiles set what models reach beside it. Measure while the
    machine does nothing else.
    """
    from edgevit.verbs.peak import peak as run

    if threads is not None and threads < 1:
        raise OptionError("--threads", expected="a whole number of at least 1", got=threads)
    roof = run(name, threads=threads, fresh=fresh)
    if as_json:
        print_json({"name": name, **asdict(roof)})
        return
    lines = (
        f"{name}, threads {roof.threads}, measured {roof.created[:16].replace('T', ' ')} UTC",
        f"  {roof.flops_per_s / 1e9:8.4g} GFLOP/s  {roof.methods['flops']}",
        f"  {roof.bytes_per_s / 1e9:8.4g} GB/s     {roof.methods['bytes']}",
    )
    for line in lines:
        out_console().print(line, highlight=False, markup=False)
