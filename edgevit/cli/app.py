"""The commands put together, and what they have in common: errors, exit codes, interruption.

Exit codes: 0 fine, 1 a check failed, 2 wrong usage, 3 could not be built or measured here, 130
interrupted.
"""

from __future__ import annotations

import json
import sys

import typer

from edgevit.cli import bench, doctor, export, models, table, verify
from edgevit.cli.common import error_console
from edgevit.errors import EdgevitError

__all__ = ["app", "main"]

app = typer.Typer(
    name="edgevit",
    help="Efficient vision transformers from PyTorch to a measured deployment on an edge device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("models")(models.models)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("table")(table.table)
app.command("doctor")(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        from edgevit import __version__

        typer.echo(f"edgevit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line; every error of ours becomes a message and its exit code."""
    try:
        app()
    except EdgevitError as error:
        _show(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        error_console().print("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe went away (`edgevit table | head`): nothing to complain about.
        sys.stderr.close()
        sys.exit(0)


def _show(error: EdgevitError) -> None:
    if "--json" in sys.argv[1:]:
        print(json.dumps(error.to_json(), indent=1))
        return
    console = error_console()
    console.print("[bold red]error:[/]", end=" ")
    console.print(error.message, markup=False, highlight=False)
    if error.hint:
        console.print("[bold]hint:[/]", end=" ")
        console.print(error.hint, markup=False, highlight=False)
