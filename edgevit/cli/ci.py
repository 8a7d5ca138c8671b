"""``edgevit ci``: a workflow to start with, tables between markers, a comment on what changed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.common import error_console, split_list
from edgevit.errors import CheckError, OutputError, UsageError

ci = typer.Typer(no_args_is_help=True, help="Measure in continuous integration.")


@ci.command("init")
def init(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to measure; two small ones without.")
    ] = None,
    board: Annotated[
        list[str] | None, typer.Option("--board", help="Label of a self-hosted runner; repeat.")
    ] = None,
    page: Annotated[str, typer.Option(help="The Markdown file with the tables.")] = (
        "docs/latency.md"
    ),
    install: Annotated[str, typer.Option(help="Arguments of pip install.")] = (
        "edgevit[onnx,coreml]"
    ),
    fail_over: Annotated[str, typer.Option(help="By how much instructions may grow.")] = "2%",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        ".github/workflows/latency.yml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite it.")] = False,
) -> None:
    """Write a workflow for GitHub that measures, keeps a page's tables, and comments.

    Hosted Linux on x86-64 and arm64, macOS on Apple silicon, and boards by label.
    """
    from edgevit.ci.workflow import Plan, workflow
    from edgevit.cli.compare import parse_share
    from edgevit.measure.results import write_atomically

    parse_share("--fail-over", fail_over)
    if output.exists() and not force:
        raise UsageError(f"{output} is there already", hint="--force overwrites it")
    given = Plan()
    command = shlex.join(["edgevit", *(a for a in sys.argv[1:] if a != "--force")])
    plan = Plan(
        models or given.models, page, install, split_list(board), fail_over, command=command
    )
    for word in (*plan.models, page, install, *plan.boards):
        if any(c in word for c in "\"\\\n$`'"):
            raise UsageError(f"{word!r} cannot stand in a workflow as it is")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, workflow(plan).rstrip("\n"))
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from error
    typer.echo(str(output))


@ci.command("tables")
def tables(
    page: Annotated[Path, typer.Argument(help="The Markdown file.")],
    folders: Annotated[
        list[str], typer.Argument(help="Folders of results; NAME=FOLDER for another name.")
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if more than times differ.")
    ] = False,
    relative_to: Annotated[
        str | None, typer.Option(help="A format or model: adds speed as a ratio to its row.")
    ] = None,
) -> None:
    """Write the tables of a page between their markers, one a folder of results.

    With --check: exit code 1 if columns, rows or provenance are not what would be written.
    """
    from edgevit.ci.tables import differences, section, with_tables
    from edgevit.measure.results import read_results, write_atomically

    named = [_named(word) for word in folders]
    sections = {
        name: section(read_results(folder), relative_to=relative_to) for name, folder in named
    }
    try:
        text = page.read_text(encoding="utf-8") if page.exists() else "# Latency\n"
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {page}: {error}") from error
    if check:
        if told := differences(text, sections):
            typer.echo(told)
            command = f"edgevit ci tables {page} {' '.join(folders)}"
            raise CheckError(f"the tables in {page} are not what would be written", hint=command)
        error_console().print(f"{page}: tables as they should be", style="dim", markup=False)
        return
    try:
        write_atomically(page, with_tables(text, sections).rstrip("\n"))
    except OSError as error:
        raise OutputError(f"cannot write {page}: {error.strerror}") from error
    typer.echo(str(page))


@ci.command("comment")
def comment(
    last: Annotated[Path, typer.Argument(help="The last results: a folder a machine.")],
    now: Annotated[Path, typer.Argument(help="The results of now, likewise.")],
    fail_over: Annotated[
        str | None, typer.Option(help="Fail where instructions grew by more than this.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")
    ] = None,
) -> None:
    """Compare with the last results, machine by machine, as a comment in Markdown.

    Times are told and decide nothing, since hosted runners differ. Exit code 1: instructions grew
    past --fail-over; 3: there are counts, and they cannot be compared.
    """
    from edgevit.ci.comment import compare_folders
    from edgevit.cli.compare import parse_share

    limit = parse_share("--fail-over", fail_over) if fail_over is not None else None
    told = compare_folders(last, now, fail_over=limit)
    if output is None:
        typer.echo(told.text, nl=False)
    else:
        try:
            output.write_text(told.text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {output}: {error.strerror}") from error
    sys.exit(told.exit_code)


def _named(word: str) -> tuple[str, Path]:
    name, equals, folder = word.partition("=")
    return (name, Path(folder)) if equals else (Path(word).name, Path(word))
