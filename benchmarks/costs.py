"""What exporting and benching cost, and what parts of models take, for the page of races.

python -m benchmarks.costs [depthwise border products export_cost agent_overhead two_percent]
    [--publish]

``--publish`` writes ``docs/costs.json`` and ends with 3 where the machine is busy; the
benchmarks run by themselves as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import agent_overhead, border, depthwise, export_cost, products, two_percent
from benchmarks.peers import SETTLE_S, BusyError, settle
from benchmarks.record import COSTS, read_record
from devices.agent.facts import cpu
from edgevit.measure.results import write_atomically
from edgevit.versions import tool_versions

TABLES: Mapping[str, Callable[[], list[str]]] = {
    "depthwise": depthwise.table,
    "border": border.table,
    "products": products.table,
    "export_cost": export_cost.table,
    "agent_overhead": agent_overhead.table,
    "two_percent": two_percent.table,
}
PACKAGES = (
    "torch", "onnx", "onnxruntime", "openvino", "ai-edge-litert", "executorch", "edgevit",
)  # fmt: skip


def measure(names: Sequence[str], file: Path | None, settle_s: float = SETTLE_S) -> int:
    """Measure, print, and write what is published; the exit code."""
    for name in names:
        if file is not None:
            try:
                settle(settle_s)
            except BusyError as error:
                print(f"{error}: nothing more is published")
                return 3
        lines, load = TABLES[name](), round(os.getloadavg()[0], 2)
        print("\n".join([f"== {name}", *lines, f"load average {load}"]), flush=True)
        if file is not None:
            known = read_record(file)
            known[name] = {
                "lines": lines,
                "load": load,
                "cpu": cpu(),
                "versions": tool_versions(PACKAGES),
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
            write_atomically(
                file, json.dumps({n: known[n] for n in TABLES if n in known}, indent=1)
            )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="; ".join(TABLES))
    parser.add_argument("--publish", action="store_true", help=f"write {COSTS.name}")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in TABLES]:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(TABLES)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return measure(asked.names or list(TABLES), COSTS if asked.publish else None)


if __name__ == "__main__":
    sys.exit(main())
