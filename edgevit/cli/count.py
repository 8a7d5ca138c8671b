"""``edgevit count``: instructions of one inference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.common import CliProgress, print_json, split_list


def count(
    subjects: Annotated[
        list[str], typer.Argument(help="Models, bundles (folders of `edgevit export`).")
    ],
    formats: Annotated[
        list[str] | None, typer.Option("--format", "-f", help="Which formats; onnx without.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the results; not that of a bench.")
    ] = Path("instructions"),
    image_size: Annotated[int | None, typer.Option(help="Pixels; small ones count fast.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Size of the head.")] = None,
    counter: Annotated[
        str | None,
        typer.Option(help="callgrind, or qemu for arm64; callgrind without --sysroot."),
    ] = None,
    sysroot: Annotated[
        Path | None,
        typer.Option(help="Folder of an arm64 system for qemu, with Python and the runtime."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and inputs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The results on stdout.")] = False,
) -> None:
    """Count the instructions of one inference, by valgrind here or by qemu for arm64, one thread.

    A gate for machines whose times are noise: `edgevit compare --metric instructions`. It is a
    cost, not a latency. It takes about a minute a model. Exit code 3: the counter is not
    here.
    """
    from edgevit.verbs.count import count as run

    with CliProgress(quiet=as_json) as progress:
        results = run(
            subjects,
            formats=split_list(formats) or ["onnx"],
            output=output,
            image_size=image_size,
            num_classes=num_classes,
            counter=counter,
            sysroot=sysroot,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json([result.to_json() for result in results])
    else:
        for result in results:
            told = result.instructions
            words = f"{told.per_inference / 1e6:.3f} M instructions" if told else result.reason
            typer.echo(f"{result.subject.name} {result.subject.format}: {words}")
    statuses = {result.status for result in results}
    if statuses != {"ok"}:
        sys.exit(1 if "mismatch" in statuses else 3)
