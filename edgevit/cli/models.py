"""``edgevit models``: what models and blocks there are, and one of them in detail."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from edgevit.cli.common import out_console, print_json
from edgevit.errors import UnknownNameError


def models(
    pattern: Annotated[
        str | None, typer.Argument(help="A name, or a pattern such as 'elevit_*'.")
    ] = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="List attention blocks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List models and attention blocks, or show one model in detail."""
    if blocks:
        _list_blocks(pattern, as_json)
    elif pattern is None or any(c in pattern for c in "*?["):
        _list_models(pattern, as_json)
    else:
        _show_model(pattern, as_json)


def _list_models(pattern: str | None, as_json: bool) -> None:
    from edgevit.zoo import list_models, model_info

    infos = [model_info(name) for name in list_models(pattern)]
    if pattern is not None and not infos:
        raise UnknownNameError("model", pattern, list_models(), listing="edgevit models")
    if as_json:
        print_json([_entry(info) for info in infos])
        return
    rows = [
        (i.name, _millions(i.params), _giga(i.macs), str(i.image_size), i.paper or "", i.summary)
        for i in infos
    ]
    _print_table(("model", "params", "MACs", "px", "paper", "what it is"), rows)


def _list_blocks(pattern: str | None, as_json: bool) -> None:
    from edgevit.zoo import block_info, list_blocks

    infos = [block_info(name) for name in list_blocks(pattern)]
    if pattern is not None and not infos:
        raise UnknownNameError("block", pattern, list_blocks(), listing="edgevit models --blocks")
    if as_json:
        print_json([asdict(info) for info in infos])
        return
    rows = [(i.name, i.layout, i.paper or "", i.summary) for i in infos]
    _print_table(("block", "works on", "paper", "what it is"), rows)


def _show_model(name: str, as_json: bool) -> None:
    from edgevit.zoo import model_info

    entry = _entry(model_info(name))
    if as_json:
        print_json(entry)
        return
    for key, value in entry.items():
        if value not in (None, "", [], {}):
            print(f"{key:<12} {_plain(value)}")


def _entry(info: Any) -> dict[str, Any]:
    entry = asdict(info) | {"family": info.family, "aliases": list(info.aliases)}
    del entry["function"]
    return {"name": entry.pop("name"), "summary": entry.pop("summary"), **entry}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _millions(count: int | None) -> str:
    return f"{count / 1e6:.2f} M" if count is not None else ""


def _giga(count: int | None) -> str:
    return f"{count / 1e9:.3f} G" if count is not None else ""


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if sys.stdout.isatty():  # rich takes longer to import than the rest to run
        from rich.table import Table

        table = Table(*header, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*row)
        out_console().print(table)
        return
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
