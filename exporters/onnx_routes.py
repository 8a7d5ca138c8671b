"""The two ways from a captured program to an ONNX model, both torch's own.

The older exporter traces with TorchScript: it writes the opset it is asked for, says so where it
cannot, and takes a tenth of the time. The newer one (dynamo) knows operators that the older one
does not (FFT, complex numbers), but writes opset 18 and converts down, which may silently not
happen or leave a file that no runtime takes.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.errors import ConversionError
from exporters.base import Array
from exporters.failure import conversion_error
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["WRITERS", "example", "restore_inputs", "simplified"]

#: The newest opset that the older exporter writes.
TORCHSCRIPT_OPSET = 20


def by_torchscript(program: Program, opset: int, path: Path) -> Any:
    """The older exporter's model; writes it to ``path`` on the way.

    Beyond the newest opset that it knows, onnx converts its model up: the operators stay what they
    are, for more types of numbers.

    Args:
        program: stays as it is.
        opset: of the file.
        path: of the file.

    Raises:
        ConversionError: an operator that it does not know at this opset.
    """
    import onnx
    import onnx.version_converter
    import torch

    from exporters.traceable import layer_in_name, make_traceable

    inputs, outputs = [s.name for s in program.inputs], [s.name for s in program.outputs]
    dynamic = {name: {0: "batch"} for name in inputs + outputs} if program.dynamic_batch else None
    try:
        with quiet(), torch.no_grad():
            torch.onnx.export(
                make_traceable(program.graph_module(lazy=True)),
                tuple(torch.from_numpy(array) for array in example(program)),
                path,
                dynamo=False,
                opset_version=min(opset, TORCHSCRIPT_OPSET),
                input_names=inputs,
                output_names=outputs,
                dynamic_axes=dynamic,
            )
    except Exception as error:
        raise conversion_error(f"ONNX opset {opset}", program, error) from error
    model = onnx.load_model(path)
    _name_by_layer(model.graph, lambda node: layer_in_name(node.name))
    if opset > TORCHSCRIPT_OPSET:
        model = onnx.version_converter.convert_version(model, opset)
    return model


def by_dynamo(program: Program, opset: int, path: Path) -> Any:
    """The newer exporter's model.

    Raises:
        ConversionError: an operator that it does not know, or onnxscript is not installed.
    """
    import torch

    if find_spec("onnxscript") is None:
        raise ConversionError(
            "torch's newer ONNX exporter needs onnxscript, which is not installed",
            hint='pip install "edgevit[onnx]"',
        )
    try:
        with quiet():
            written: Any = torch.onnx.export(
                program.exported,
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in program.inputs],
                output_names=[spec.name for spec in program.outputs],
                verbose=False,
            )
            model = written.model_proto
    except Exception as error:
        raise conversion_error(f"ONNX opset {opset}", program, error) from error
    _name_by_layer(model.graph, _layer_in_metadata)
    _drop_metadata(model.graph)
    _name_batch(model.graph)
    return model


#: By the name that the option ``exporter`` and the manifest use.
WRITERS: Mapping[str, Callable[[Program, int, Path], Any]] = {
    "torchscript": by_torchscript,
    "dynamo": by_dynamo,
}


def example(program: Program, batch: int | None = None) -> list[Array]:
    """Seeded normal noise for every input, by default at the batch of the capture."""
    own = program.inputs[0].shape[0]
    batch = batch or (max(2, own) if program.dynamic_batch else own)
    generator = np.random.default_rng(0)
    shapes = [spec.with_batch(batch).shape for spec in program.inputs]
    return [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]


def restore_inputs(model: Any, program: Program) -> None:
    """Put back inputs that nothing reads: the file takes what the program takes, in its order."""
    import onnx

    kept = {value.name: value for value in model.graph.input}
    wanted = []
    for spec in program.inputs:
        shape = ["batch" if program.dynamic_batch else spec.shape[0], *spec.shape[1:]]
        unread = onnx.helper.make_tensor_value_info(spec.name, onnx.TensorProto.FLOAT, shape)
        wanted.append(kept.get(spec.name, unread))
    del model.graph.input[:]
    model.graph.input.extend(wanted)


def simplified(model: Any) -> Any:
    """The model after onnxsim.

    Raises:
        ConversionError: onnxsim failed, or says that its result differs.
    """
    import onnxsim

    hint = "leave simplify out"
    try:
        with quiet():
            result, agrees = onnxsim.simplify(model)
    except Exception as error:
        raise ConversionError(f"onnxsim gave up: {error}", hint=hint) from error
    if not agrees:
        raise ConversionError("onnxsim says that its result differs", hint=hint)
    return result


def _name_by_layer(graph: Any, layer_of_node: Callable[[Any], str]) -> None:
    """Call nodes ``/layer/Operator``, so that a profile of the file can be read by layer."""
    counts: Counter[str] = Counter()
    for node in graph.node:
        layer = layer_of_node(node)
        name = f"/{layer}/{node.op_type}" if layer else f"/{node.op_type}"
        node.name = f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 1


def _layer_in_metadata(node: Any) -> str:
    kept = {entry.key: entry.value for entry in node.metadata_props}
    # From the model down to the node itself; the last but one is its module.
    scopes: list[str] = ast.literal_eval(kept.get("pkg.torch.onnx.name_scopes", "[]"))
    return scopes[-2] if len(scopes) > 1 else ""


def _drop_metadata(graph: Any) -> None:
    """Forget which line of which file made a node: that tells the user's folders to others."""
    for part in chain(graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("metadata_props")


def _name_batch(graph: Any) -> None:
    """Give the one symbolic size its name, wherever shapes are told."""
    for value in chain(graph.input, graph.output, graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param and size.dim_param.isidentifier():
                size.dim_param = "batch"
