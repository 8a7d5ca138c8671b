"""An ONNX file without one of its blocks: what read its output reads its input instead.

    without a block:    x -> [block] -> y -> rest        becomes        x -> rest

Only a block that gives one tensor, of the same shape as one that it takes, can be left out; one
that changes shapes (a stem, a downsampling, the head) cannot, and is named with that reason. The
file that is left computes something else, in the same way: it is timed, never verified.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevit.profiling.layers import TOP, block_of
from edgevit.profiling.places import layer_in_name

__all__ = ["CannotLeaveOutError", "OnnxBlocks", "blocks_in", "prepared", "without_block"]


class CannotLeaveOutError(Exception):
    """A block cannot be left out; the message says why."""


class OnnxBlocks:
    """The blocks of an ONNX file."""

    suffix = ".onnx"

    def __init__(self, file: Path) -> None:
        import onnx

        self._model = prepared(onnx.load_model(file))

    @property
    def names(self) -> list[str]:
        """In the order of the file."""
        return blocks_in(self._model)

    def write_whole(self, path: Path) -> None:
        """The file as the others are written."""
        import onnx

        onnx.save_model(self._model, path)

    def write_without(self, name: str, path: Path) -> None:
        """The file without that block.

        Raises:
            CannotLeaveOutError: see :func:`without_block`.
        """
        import onnx

        onnx.save_model(without_block(self._model, name), path)


def prepared(model: Any) -> Any:
    """The model with the shapes of its tensors inferred."""
    import onnx

    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def blocks_in(model: Any) -> list[str]:
    """The blocks of a model's nodes, in their order, those that belong to none left out."""
    found = dict.fromkeys(_block(node) for node in model.graph.node)
    return [name for name in found if name != TOP]


def without_block(model: Any, block: str) -> Any:
    """A copy of a prepared model without that block.

    Raises:
        CannotLeaveOutError: it gives several tensors, or none of the shape that it takes.
    """
    import onnx

    inside = [node for node in model.graph.node if _block(node) == block]
    outside = [node for node in model.graph.node if _block(node) != block]
    made = {tensor for node in inside for tensor in node.output}
    asked = {tensor for node in outside for tensor in node.input}
    asked |= {value.name for value in model.graph.output}
    gives = sorted(made & asked)
    if len(gives) != 1:
        raise CannotLeaveOutError(f"it gives {len(gives)} tensors to others, not one")
    shapes = _shapes(model)
    takes = _taken(model, inside, made)
    fitting = [t for t in takes if shapes.get(t) and shapes.get(t) == shapes.get(gives[0])]
    if not fitting:
        raise CannotLeaveOutError("what it gives has another shape than what it takes")
    shorter = onnx.ModelProto()
    shorter.CopyFrom(model)
    del shorter.graph.node[:]
    shorter.graph.node.extend(_rewired(outside, gives[0], fitting[-1]))
    _drop_unread(shorter.graph)
    return shorter


def _block(node: Any) -> str:
    return block_of(layer_in_name(node.name))


def _shapes(model: Any) -> dict[str, tuple[Any, ...]]:
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {
        v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in values
    }


def _taken(model: Any, inside: list[Any], made: set[str]) -> list[str]:
    """What the block takes from other nodes or the model's input, in the order of their making."""
    read = {tensor for node in inside for tensor in node.input} - made
    order = [v.name for v in model.graph.input]
    order += [t for node in model.graph.node if node.op_type != "Constant" for t in node.output]
    return [tensor for tensor in order if tensor in read]


def _rewired(nodes: list[Any], old: str, new: str) -> list[Any]:
    import onnx

    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        names = [new if tensor == old else tensor for tensor in node.input]
        del copy.input[:]
        copy.input.extend(names)
        copies.append(copy)
    return copies


def _drop_unread(graph: Any) -> None:
    """Take away nodes and weights that nothing reads any more."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    weights = [w for w in graph.initializer if w.name in wanted]
    _replace(graph.node, kept[::-1])
    _replace(graph.initializer, weights)


def _replace(field: Any, items: list[Any]) -> None:
    del field[:]
    field.extend(items)
