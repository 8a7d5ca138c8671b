"""What a written ONNX file must stand before it counts as written.

It is read again for opset, IR version, names and sizes. Then onnxruntime opens and runs it, with a
dynamic batch at two batches neither of which is the one it was captured at.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.errors import ConversionError
from edgevit.tensorspec import TensorSpec
from exporters.base import Array, numpy_outputs
from exporters.onnx_routes import example
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["check_model", "check_runs", "open_session", "run_session"]

# onnxruntime 1.29 and later keep an identifier in the user's home and send it with what they ran.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

#: Batches that a file with a dynamic batch is tried with; it was captured at another.
BATCHES = (1, 3)


def check_model(model: Any, program: Program, *, opset: int, ir_version: int) -> None:
    """Compare a model, as it was read from its file, with what was asked for.

    Raises:
        ConversionError: another opset or IR version, foreign operators, other names or sizes, a
            batch that is not dynamic, or not valid ONNX at all.
    """
    import onnx

    domains = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if (got := domains.get("ai.onnx")) != opset:
        raise ConversionError(
            f"ONNX: the exporter wrote opset {got} where {opset} was asked for",
            hint=f"opset {got} may do; else write the model without the operators that need it",
        )
    if model.ir_version != ir_version:
        raise ConversionError(
            f"ONNX: the file has IR version {model.ir_version} where {ir_version} was asked for"
        )
    if foreign := {node.domain for node in model.graph.node} - {"", "ai.onnx"}:
        raise ConversionError(f"ONNX: operators outside the standard: {', '.join(sorted(foreign))}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ConversionError(f"ONNX: the file is not valid: {_first_line(error)}") from error
    _check_border(program.inputs, model.graph.input, dynamic=program.dynamic_batch)
    _check_border(program.outputs, model.graph.output, dynamic=program.dynamic_batch)


def _check_border(specs: Sequence[TensorSpec], values: Any, *, dynamic: bool) -> None:
    """Names and order as the program has them; sizes, where the file knows them."""
    got = {value.name: _shape(value) for value in values}
    if list(got) != [spec.name for spec in specs]:
        wanted = ", ".join(spec.name for spec in specs)
        raise ConversionError(f"ONNX: the file has {', '.join(got)} where {wanted} was expected")
    for spec in specs:
        shape = got[spec.name]
        if dynamic and shape[:1] != [None]:
            raise ConversionError(
                f"ONNX: the batch of {spec.name} was to be dynamic and came out as {shape[:1]}",
                hint="export without dynamic batch",
            )
        if len(shape) != len(spec.shape) or any(
            size not in (None, want) for size, want in zip(shape, spec.shape, strict=True)
        ):
            raise ConversionError(f"ONNX: {spec.name} has shape {shape}, expected {spec.shape}")


def _shape(value: Any) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]


def check_runs(path: Path, program: Program) -> None:
    """Run the file on noise; its outputs must have the program's shapes at every batch.

    Raises:
        ConversionError: onnxruntime refuses the file or cannot run it, or a shape is wrong.
    """
    session = open_session(path)
    for batch in BATCHES if program.dynamic_batch else (program.inputs[0].shape[0],):
        hint = "export without dynamic batch" if program.dynamic_batch else None
        try:
            outputs = run_session(session, program.inputs, example(program, batch))
        except Exception as error:
            raise ConversionError(
                f"onnxruntime {version('onnxruntime')} cannot run the written file at batch "
                f"{batch}: {_first_line(error)}",
                hint=hint,
            ) from error
        for spec, output in zip(program.outputs, outputs, strict=True):
            if output.shape != spec.with_batch(batch).shape:
                raise ConversionError(
                    f"ONNX: at batch {batch} the file gives {spec.name} the shape {output.shape}",
                    hint=hint,
                )


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPU with one thread.

    Raises:
        ConversionError: onnxruntime refuses the file.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    try:
        with quiet():
            return onnxruntime.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )
    except Exception as error:
        raise ConversionError(
            f"onnxruntime {version('onnxruntime')} refuses {path.name}: {_first_line(error)}",
            hint="choose another opset, or export again if the file was damaged",
        ) from error


def run_session(session: Any, specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> list[Array]:
    """Arrays in the order of ``specs`` to the outputs in the file's order."""
    feeds = {spec.name: np.ascontiguousarray(a) for spec, a in zip(specs, arrays, strict=True)}
    return numpy_outputs(session.run(None, feeds))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
