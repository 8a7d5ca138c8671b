"""What onnxruntime makes of a file when it opens it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx


def operators(folder: Path) -> Counter[str]:
    """Of the file itself."""
    return Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)


def optimized(folder: Path) -> Counter[str]:
    """Of what runs in the end."""
    import onnxruntime

    options, path = onnxruntime.SessionOptions(), folder / "optimized.onnx"
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return Counter(node.op_type for node in onnx.load(path).graph.node)
