"""Largest difference per format for EleViT and each variant of its ablation, at 224 pixels."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import edgevit


def worst(check: dict[str, Any]) -> str:
    comparison = max(check["comparisons"], key=lambda c: c["relative"])
    return f"{comparison['max_abs']:.1e} ({comparison['relative']:.1e})"


def main() -> None:
    names = sys.argv[1:] or edgevit.list_models("elevit*")
    print("max abs (share of the output's scale), over noise and a photograph")
    print("| model | file | status | run by | max abs |")
    print("|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            bundle = edgevit.export(name, formats=["onnx", "coreml", "tflite"], output=folder)
        for entry in bundle.manifest["artifacts"].values():
            for check in entry["verification"]["checks"]:
                status = entry["verification"]["status"]
                print(
                    f"| {name} | {entry['file']} | {status} | {check['label']} | {worst(check)} |"
                )


if __name__ == "__main__":
    main()
