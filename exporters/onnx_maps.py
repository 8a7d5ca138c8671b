"""Tokens and maps turned into one another in the order that onnxruntime's convolutions read.

    Transpose (0, 2, 1) -> Reshape (batch, channels, rows, columns) -> Conv
        Reshape (batch, rows, columns, channels) -> Transpose (0, 3, 1, 2) -> Conv

    Conv -> Reshape (batch, channels, tokens) -> Transpose (0, 2, 1)
        Conv -> Transpose (0, 2, 3, 1) -> Reshape (batch, tokens, channels)

The same numbers in the same places. onnxruntime cuts channels in blocks before a convolution and
puts them together behind it, and does so from and to channels that come last as well: a permutation
of all four axes becomes part of that, one of three axes is a pass through memory of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporters.onnx_graph import Graph, Shape, add_constants, forget_shapes, permutation, sizes_name

__all__ = ["turn_maps"]

#: What a permutation of three axes is, and those of four that take its place.
TURNED = (0, 2, 1)
CHANNELS_FIRST, CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
#: Operators that leave channels in the blocks of the convolution before them.
IN_BLOCKS = {"BatchNormalization", "Clip", "Conv", "Gelu", "Relu", "Sigmoid", "Tanh"}


def turn_maps(model: Any) -> int:
    """Rewrite an ONNX model in place; returns how many permutations."""
    graph, changed = Graph(model), set()
    sizes: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type != "Transpose" or permutation(node) != TURNED:
            continue
        if (found := _into_map(graph, node) or _out_of_map(graph, node)) is None:
            continue
        first, second, shape, order = found
        sizes[name := sizes_name(shape)] = np.asarray(shape, np.int64)
        for part in (first, second):
            if part.op_type == "Transpose":
                _become(part, "Reshape", [part.input[0], name])
            else:
                _become(part, "Transpose", [part.input[0]], perm=order)
        changed.add(first.output[0])
    forget_shapes(model.graph, changed)
    add_constants(model.graph, sizes)
    return len(changed)


#: Two nodes that change places, what the reshape makes, and how axes are permuted then.
Swap = tuple[Any, Any, Shape, tuple[int, ...]]


def _into_map(graph: Graph, turned: Any) -> Swap | None:
    cut = graph.reader(turned.output[0], "Reshape")
    if cut is None or any(r.op_type != "Conv" for r in graph.readers[cut.output[0]]):
        return None
    if not _is_cut(graph.shape(turned.output[0]), graph.shape(cut.output[0])):
        return None
    _, channels, rows, columns = graph.shape(cut.output[0])
    return turned, cut, (0, rows, columns, channels), CHANNELS_FIRST


def _out_of_map(graph: Graph, turned: Any) -> Swap | None:
    joined = graph.maker(turned.input[0], "Reshape")
    if joined is None or graph.reader(joined.output[0], "Transpose") is None:
        return None
    maker = graph.makers.get(joined.input[0])
    if maker is None or maker.op_type not in IN_BLOCKS:
        return None
    if any(_reads_through(graph, reader) for reader in graph.readers[turned.output[0]]):
        return None
    if not _is_cut(graph.shape(joined.output[0]), graph.shape(joined.input[0])):
        return None
    _, channels, tokens = graph.shape(joined.output[0])
    return joined, turned, (0, tokens, channels), CHANNELS_LAST


def _reads_through(graph: Graph, reader: Any) -> bool:
    """Whether a permutation of the last two axes costs nothing as it is.

    A product of two computed tensors reads through it, and heads are cut from channels as well.
    """
    computed = not any(map(graph.is_constant, reader.input))
    return reader.op_type == "Reshape" or (reader.op_type == "MatMul" and computed)


def _is_cut(flat: Shape, parts: Shape) -> bool:
    """Whether a map is that of a batch's and of each channel's tokens, row by row."""
    if len(flat) != 3 or len(parts) != 4 or None in (*flat[1:], *parts[1:]):
        return False
    batch, channels, rows, columns = parts
    return flat == (batch, channels, rows * columns)  # type: ignore[operator]


def _become(node: Any, operator: str, inputs: list[str], **attributes: Any) -> None:
    import onnx

    name = node.name.replace(node.op_type, f"{operator}_of_map")
    node.CopyFrom(onnx.helper.make_node(operator, inputs, node.output, name=name, **attributes))
