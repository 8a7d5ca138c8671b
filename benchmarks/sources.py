"""Whose source decides what a file of a format is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["format_digest"]

ROOT = Path(__file__).resolve().parent.parent
#: Modules that every format goes through.
SHARED = ("base.py", "traceable.py")


def format_digest(formats: Iterable[str], root: Path = ROOT) -> str:
    """sha256 over the source of what writes the formats from a graph."""
    digest = hashlib.sha256()
    for name in formats:
        for file in format_files(name, root):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def format_files(name: str, root: Path = ROOT) -> list[Path]:
    """The modules that a rewritten graph goes through on its way to a format."""
    patterns = [*SHARED, f"{name}*.py"]
    if name == "coreml":
        patterns.append("mil/*.py")
    if name in ("tflite", "executorch"):
        patterns.append("xnnpack*.py")
    return [file for p in patterns for file in sorted((root / "exporters").glob(p))]
