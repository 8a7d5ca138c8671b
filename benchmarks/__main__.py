"""``python -m benchmarks [name ...]``: run the named measurements, or all that are quick.

``python -m benchmarks.peers`` (about five minutes a model) takes arguments of its own, and so does
``python -m benchmarks.costs``, which publishes three of these.
"""

from __future__ import annotations

import os
import runpy
import sys

ALL = (
    "startup", "agent_overhead", "repeatability", "parity", "boards", "export_cost", "two_percent",
)  # fmt: skip


def main() -> None:
    names = sys.argv[1:] or list(ALL)
    load = os.getloadavg()[0]
    print(f"load average {load:.2f}", file=sys.stderr)
    if load > 1.5:
        print("the machine is busy: times below are not worth much", file=sys.stderr)
    for name in names:
        if name not in ALL:
            sys.exit(f"unknown benchmark {name!r}; there are {', '.join(ALL)}")
        sys.argv = [name]
        print(f"== {name}")
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
