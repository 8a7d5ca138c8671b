"""Benches of one bundle, apart in time: how far their medians lie apart, and what they say.

python -m benchmarks.repeatability                                  twice, at once
python -m benchmarks.repeatability elevit --times 5 --every 3600 --folder F    five, an hour apart

With ``--folder`` bundle and results stay there: the same command again goes on with what is
missing (``--times`` counts those that are there), so that the hours may lie in several days.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import edgevit
from devices.base import Schedule
from edgevit.bundle import Bundle
from edgevit.measure.results import Result, read_results


def main() -> None:
    parser = argparse.ArgumentParser(description="how far benches of the same files lie apart")
    parser.add_argument("model", nargs="?", default="elevit")
    parser.add_argument("--times", type=int, default=2, help="benches altogether")
    parser.add_argument("--every", type=float, default=0, help="seconds from start to start")
    parser.add_argument("--folder", type=Path, help="where bundle and results stay")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp())
    bundle = bundle_in(folder, asked.model)
    results = folder / f"{asked.model}-results"
    while (done := len(runs(results))) < asked.times:
        began = time.monotonic()
        schedule = Schedule(seed=done)
        edgevit.bench([bundle], schedule=schedule, memory=False, output=results / f"{done}")
        if done + 1 < asked.times:
            time.sleep(max(0.0, began + asked.every - time.monotonic()))
    print(json.dumps(report(runs(results)), indent=1))


def bundle_in(folder: Path, model: str) -> Bundle:
    """The bundle of an earlier call, or a new one, in a folder of the model's name."""
    if (folder / model).exists():
        return Bundle.open(folder / model)
    return edgevit.export(model, formats=["onnx", "tflite", "torch"], output=folder)


def runs(results: Path) -> list[Path]:
    return sorted(results.iterdir(), key=lambda p: int(p.name)) if results.exists() else []


def report(folders: list[Path]) -> list[dict[str, Any]]:
    """A row a format: medians, their spread, and how wide the intervals are that came with them."""
    of_format: dict[str, list[Result]] = defaultdict(list)
    for folder in folders:
        for result in read_results(folder):
            of_format[result.subject.format].append(result)
    return [row(name, results) for name, results in of_format.items()]


def row(name: str, results: list[Result]) -> dict[str, Any]:
    figures = [r.statistics for r in results if r.statistics is not None]
    medians = [f.median_ms for f in figures]
    intervals = [f.interval_ms for f in figures if f.interval_ms is not None]
    middle = sorted(medians)[len(medians) // 2]
    pairs = list(combinations(intervals, 2))
    return {
        "format": name,
        "created": [r.context.created for r in results],
        "median_ms": [round(m, 3) for m in medians],
        "interval_ms": [[round(end, 3) for end in interval] for interval in intervals],
        "spread_of_medians": round((max(medians) - min(medians)) / middle, 4),
        "widest_interval": round(max((b - a) / middle for a, b in intervals), 4),
        "pairs_of_intervals_that_meet": f"{sum(meet(*p) for p in pairs)} of {len(pairs)}",
        "status": [r.status for r in results],
        "reason": [r.reason for r in results if r.reason],
    }


def meet(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first[0] <= second[1] and second[0] <= first[1]


if __name__ == "__main__":
    main()
