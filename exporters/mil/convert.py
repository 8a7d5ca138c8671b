"""Calling coremltools, saving what it made in a reproducible form, and explaining its failures."""

from __future__ import annotations

import json
import traceback
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx
from torch.export import ExportedProgram

from edgevit.errors import ConversionError, OptionError, OutputError
from exporters.failure import layer_of
from exporters.mil.prepare import operator_name, prepared
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["convert", "save"]


#: Passes of coremltools that are left out.
REMOVED_PASSES = {
    # It turns x * a + b into a batch_norm of variance 1 with epsilon 1e-5, so 5e-6 too small.
    "common::fuse_elementwise_to_batchnorm",
    # Folding is the business of our passes: who wants none gets none, in this format as in others.
    # What is folded here, in fp32 and then rounded, also differs from the program rounded to fp16.
    "common::fuse_conv_batchnorm",
    "common::fuse_conv_scale",
}


def convert(program: Program, *, target: str, half: bool, keep_fp32: Collection[str] = ()) -> Any:
    """A coremltools model of the program, with its inputs and outputs in fp32 under their names.

    Args:
        program: a program with a fixed batch.
        target: ``"ios15"`` to ``"ios18"``.
        half: compute in fp16.
        keep_fp32: types of ops that stay in fp32 nevertheless.

    Raises:
        ConversionError: coremltools gave up; the message names the operator and its module.
        OptionError: ``keep_fp32`` names no type of op.
    """
    with quiet():
        exported: ExportedProgram | None = None
        try:
            exported = prepared(program.exported)
            return _convert(exported, program, target, _precision(half, keep_fp32))
        except OptionError:
            raise
        except Exception as error:
            raise _failure(error, exported) from error


def save(model: Any, path: Path) -> None:
    """Write the package so that the same model gives the same bytes.

    coremltools dates a package, numbers its parts at random and adds a table for a debugger.

    Raises:
        OutputError: the folder cannot be written.
    """
    with quiet():
        try:
            model.user_defined_metadata.pop("com.github.apple.coremltools.conversion_date", None)
            model.save(str(path))
            (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
            _number_by_content(path / "Manifest.json")
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error}") from error


def _convert(exported: ExportedProgram, program: Program, target: str, precision: Any) -> Any:
    import coremltools

    pipeline = coremltools.PassPipeline.DEFAULT
    pipeline.remove_passes(REMOVED_PASSES)
    tensor = coremltools.TensorType
    return coremltools.convert(
        exported,
        convert_to="mlprogram",
        inputs=[tensor(name=s.name, shape=s.shape, dtype=np.float32) for s in program.inputs],
        outputs=[tensor(name=s.name, dtype=np.float32) for s in program.outputs],
        minimum_deployment_target=coremltools.target[target.replace("ios", "iOS")],
        compute_precision=precision,
        pass_pipeline=pipeline,
        skip_model_load=True,
    )


def _precision(half: bool, keep_fp32: Collection[str]) -> Any:
    import coremltools
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    for kind in keep_fp32:
        if kind not in SSAOpRegistry.core_ops:
            raise OptionError("keep_fp32", expected="types of Core ML ops", got=kind)
    if half and keep_fp32:
        return coremltools.transform.FP16ComputePrecision(
            op_selector=lambda op: op.op_type not in keep_fp32
        )
    return coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32


def _number_by_content(manifest: Path) -> None:
    """Replace the random identifiers of a package's parts by ones that follow from their paths."""
    content = json.loads(manifest.read_text())
    names = {
        old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"]))
        for old, entry in content["itemInfoEntries"].items()
    }
    content["itemInfoEntries"] = {names[k]: v for k, v in content["itemInfoEntries"].items()}
    content["rootModelIdentifier"] = names[content["rootModelIdentifier"]]
    manifest.write_text(json.dumps(content, indent=4, sort_keys=True) + "\n")


def _failure(error: Exception, exported: ExportedProgram | None) -> ConversionError:
    node = _failing_node(error, exported.graph) if exported is not None else None
    where = ""
    if node is not None:
        path = layer_of(node)
        where = f" {operator_name(node)}" + (f" of layer {path}" if path else "")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ConversionError(
        f"coremltools cannot convert{where or ' the program'}: {lines[0][:300]}",
        hint="write that layer with other operators" if where else None,
    )


def _failing_node(error: Exception, graph: fx.Graph) -> fx.Node | None:
    """The node that the converter was at, from the local variables of its functions."""
    nodes: dict[str, fx.Node] = {
        node.name: node for node in graph.nodes if node.op == "call_function"
    }
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = getattr(frame.f_locals.get("node"), "name", None)
        if name in nodes:
            return nodes[name]
    return None
