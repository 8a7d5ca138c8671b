"""Two benches of the same bundle in one go: how far apart their medians are, and what they say."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import edgevit
from devices.base import Schedule


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    model = sys.argv[1] if len(sys.argv) > 1 else "elevit"
    bundle = edgevit.export(model, formats=["onnx", "tflite", "torch"], output=folder)
    runs = [
        edgevit.bench([bundle], schedule=Schedule(seed=seed), memory=False, output=None)
        for seed in (0, 1)
    ]
    report = []
    for first, second in zip(*runs, strict=True):
        assert first.statistics is not None
        assert second.statistics is not None
        a, b = first.statistics.median_ms, second.statistics.median_ms
        report.append(
            {
                "model": model,
                "format": first.subject.format,
                "median_ms": [round(a, 3), round(b, 3)],
                "ratio": round(b / a, 4),
                "status": [first.status, second.status],
                "reason": [first.reason, second.reason],
            }
        )
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
