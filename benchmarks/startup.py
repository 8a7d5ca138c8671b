"""How long the command line takes to start, as a ratio to importing typer and rich.

Interleaved, CPU time of the child processes (user and system), median of the rounds.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys

ROUNDS = 25
COMMANDS = {
    "import typer, rich": [sys.executable, "-c", "import typer, rich"],
    "edgevit --help": [sys.executable, "-m", "edgevit", "--help"],
    "edgevit models": [sys.executable, "-m", "edgevit", "models"],
}


def cpu_seconds(command: list[str]) -> float:
    """CPU time of a child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> dict[str, float]:
    """Measure, print, and return the ratios."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name in order.sample(list(COMMANDS), len(COMMANDS)):
            times[name].append(cpu_seconds(COMMANDS[name]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["import typer, rich"]
    ratios = {name: round(value / base, 3) for name, value in medians.items()}
    seconds = {name: round(value, 4) for name, value in medians.items()}
    print(json.dumps({"rounds": ROUNDS, "cpu_seconds": seconds, "ratios": ratios}, indent=1))
    return ratios


if __name__ == "__main__":
    main()
