"""The commands put together, and what they have in common: errors, exit codes, interruption.

Exit codes: 0 fine, 1 a check failed, 2 wrong usage, 3 could not be built or measured here, 130
interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, NoReturn

import typer

from edgevit.errors import EdgevitError

__all__ = ["COMMANDS", "main", "make_app"]

#: Commands in the order of the help; each is what has its own name in its own module: a function,
#: or an app of commands.
COMMANDS = {
    "models": "List models and attention blocks, or show one model in detail.",
    "export": "Export a model to ONNX, Core ML, TFLite or PyTorch, and check every file.",
    "verify": "Check a bundle's files on this machine.",
    "attend": "Draw what a model pays attention to over a picture.",
    "bench": "Check and time models and attention blocks on a device.",
    "profile": "Show where the time of a model goes: by operator, block, module, stage.",
    "table": "Show results as a table, with where every number comes from.",
    "compare": "Tell what got faster or slower between two sets of results.",
    "tune": "Find the format, rewrites and settings that are fastest on a device.",
    "count": "Count the instructions of one inference, which no other work disturbs.",
    "reproduce": "Measure a paper's table by its protocol, beside what the paper printed.",
    "report": "Write results as one page of HTML, with plots, that works offline.",
    "ci": "Write a workflow that measures; keep the tables of a page; comment on changes.",
    "devices": "List devices; add, set up and check boards.",
    "doctor": "Show what is installed, and what each format and device lacks.",
}


#: Exit code after Ctrl-C.
INTERRUPTED = 130


def make_app(command: str | None = None) -> typer.Typer:
    """The command line with one command, or with the list of all and none that runs."""
    app = typer.Typer(
        name="edgevit",
        help="Vision transformers from PyTorch to a measured deployment on an edge device.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Plain help: the decorated one imports a Markdown parser and a syntax highlighter first.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, short in COMMANDS.items():
        if name == command:
            _add(app, name, getattr(importlib.import_module(f"edgevit.cli.{name}"), name))
        elif command is None:
            app.command(name, help=short)(_never_run)
    return app


def _add(app: typer.Typer, name: str, command: Any) -> None:
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)


def _never_run() -> None:
    """Stands for a command in the list of all; running one imports it first."""


def _version(value: bool) -> None:
    if value:
        from edgevit import __version__

        typer.echo(f"edgevit {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line; every error of ours becomes a message and its exit code."""
    asked = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    app = make_app(asked if asked in COMMANDS else None)
    try:
        app()
    except EdgevitError as error:
        _show(error)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer makes this of Ctrl-C, without a word
            _interrupted()
        raise
    except KeyboardInterrupt:
        _interrupted()
    except BrokenPipeError:
        # The reader of a pipe went away (`edgevit table | head`): nothing to complain about.
        sys.stderr.close()
        sys.exit(0)


def _interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    # Python remembers that Ctrl-C went through an `exec` of a string (dataclasses are made by one)
    # and then dies of SIGINT at its end, caught or not. The next `exec` makes it forget.
    exec("")
    sys.exit(INTERRUPTED)


def _show(error: EdgevitError) -> None:
    if "--json" in sys.argv[1:]:
        import json

        print(json.dumps(error.to_json(), indent=1))
        return
    from edgevit.cli.common import error_console

    console = error_console()
    console.print("[bold red]error:[/]", end=" ")
    console.print(error.message, markup=False, highlight=False)
    if error.hint:
        console.print("[bold]hint:[/]", end=" ")
        console.print(error.hint, markup=False, highlight=False)
