"""What was published: races in ``docs/performance.json``, row by row, and costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevit.measure.results import write_atomically

__all__ = ["COSTS", "RECORD", "read_record", "write_record"]

RECORD = Path(__file__).parents[1] / "docs" / "performance.json"
COSTS = RECORD.with_name("costs.json")


def read_record(file: Path) -> dict[str, dict[str, Any]]:
    """What was published; empty if nothing was."""
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def write_record(file: Path, record: Mapping[str, Mapping[str, Any]]) -> None:
    """One line a candidate, so that a change shows as such."""
    tables = []
    for kind, rows in record.items():
        lines = [f"  {json.dumps(model)}: {_row_text(row)}" for model, row in sorted(rows.items())]
        tables.append(f" {json.dumps(kind)}: {{\n" + ",\n".join(lines) + "\n }")
    write_atomically(file, "{\n" + ",\n".join(tables) + "\n}")


def _row_text(row: Mapping[str, Any]) -> str:
    head = json.dumps({k: v for k, v in row.items() if k != "candidates"})[:-1]
    cells = [f"   {json.dumps(n)}: {json.dumps(entry)}" for n, entry in row["candidates"].items()]
    return f'{head}, "candidates": {{\n' + ",\n".join(cells) + "\n  }}"
