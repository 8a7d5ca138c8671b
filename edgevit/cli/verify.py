"""``edgevit verify``: check a bundle's files on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.common import out_console, print_json, split_list
from edgevit.errors import VerificationError


def verify(
    bundle: Annotated[Path, typer.Argument(help="The folder that `edgevit export` wrote.")],
    formats: Annotated[
        list[str] | None, typer.Option("--format", "-f", help="Which of its formats; all without.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Check a bundle against its golden outputs, here: hashes first, then every file is run.

    On a Mac this finishes what was checked by reference elsewhere: Core ML itself runs.
    """
    from edgevit.artifacts import summarize, verify_bundle
    from edgevit.bundle import Bundle
    from edgevit.cli.export import verification_text

    opened = Bundle.open(bundle)
    outcome = {
        name: summarize(results)
        for name, results in verify_bundle(opened, split_list(formats) or None).items()
    }
    if as_json:
        print_json(outcome)
    else:
        for name, result in outcome.items():
            line = f"{opened.artifact(name)['file']:<16} {verification_text(result)}"
            out_console().print(line, highlight=False, markup=False)
    failed = [name for name, result in outcome.items() if result["status"] == "mismatch"]
    if failed:
        raise VerificationError(
            f"{', '.join(failed)} of {bundle} does not agree with the golden outputs",
            hint="do not use it; export again, and report it if that does not help",
        )
