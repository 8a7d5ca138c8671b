"""Versions of the tools that make a file what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["TOOLS", "code_digest", "tool_versions"]

#: Distributions whose versions decide what an export writes, and how it is run.
TOOLS = (
    "edgevit",
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "coremltools",
    "litert-torch",
    "ai-edge-litert",
    "tflite-runtime",
    "openvino",
    "executorch",
)


def tool_versions(names: Sequence[str] = TOOLS) -> dict[str, str | None]:
    """Version by distribution; None for what is not installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def code_digest() -> str:
    """sha256 over the source of what turns a name into a file; a new one makes caches stale."""
    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for folder in (root, root.parent / "exporters"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
