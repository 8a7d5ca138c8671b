"""Sums over tokens written as products with ones, which onnxruntime is fast at.

    ReduceSum(x, second last axis)  ->  MatMul(ones, x)        ReduceMean: ones / their number

onnxruntime adds up rows that lie one after the other at a sixth of the speed that its product of a
row and a matrix has (196 x 384 on AVX-512: 0.10 ms and 0.015), which goes through memory just as
often. It is what the norms of SimA and of XCiT's queries and keys are made of, and what averages
tokens before a classifier.

Norms of heads are taken of the tokens before they are cut, since nothing has to be permuted for
that, number by number being the same in any order:

    f(Transpose(Reshape(x))) -> ReduceSum        Reshape(MatMul(ones, f(x)))
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporters.onnx_graph import (
    Graph,
    Heads,
    add_constants,
    attribute,
    heads_of,
    keep_read,
    sizes_name,
)

__all__ = ["sums_as_products"]


def sums_as_products(model: Any) -> int:
    """Rewrite an ONNX model in place; returns how many sums."""
    graph = Graph(model)
    constants: dict[str, Any] = {}
    nodes, count = [], 0
    for node in model.graph.node:
        if (size := _summed(graph, node)) is None:
            nodes.append(node)
        else:
            nodes.extend(_product(graph, node, size, constants))
            count += 1
    if count:
        add_constants(model.graph, constants)
        keep_read(model.graph, nodes)
    return count


def _summed(graph: Graph, node: Any) -> int | None:
    """How many numbers make one, where they are those of the second last axis; None elsewhere."""
    if node.op_type not in {"ReduceSum", "ReduceMean"} or graph.is_constant(node.input[0]):
        return None
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        axes = graph.constant(node.input[1])
    if axes is None or len(axes) != 1 or int(axes[0]) == -1:
        return None
    shape = graph.shape(node.input[0])
    return shape[-2] if len(shape) > 1 and int(axes[0]) in {-2, len(shape) - 2} else None


def _product(graph: Graph, node: Any, size: int, constants: dict[str, Any]) -> list[Any]:
    """The nodes in place of a sum."""
    import onnx

    keeps = bool(attribute(node, "keepdims", 1))
    # A product with a vector loses the axis, one with a matrix of one row keeps it.
    shape = (1, size) if keeps else (size,)
    ones = f"edgevit::{node.op_type}_of_{'x'.join(map(str, shape))}"
    constants[ones] = np.full(shape, 1 / size if node.op_type == "ReduceMean" else 1, np.float32)
    name, result = node.name.replace(node.op_type, f"MatMul_of_{node.op_type}"), node.output[0]
    found = _before_heads(graph, node.input[0])
    if found is None:
        return [onnx.helper.make_node("MatMul", [ones, node.input[0]], [result], name=name)]
    maker, heads = found
    cut = (0, heads.heads, *(1,) * keeps, heads.channels)
    constants[sizes := sizes_name(cut)] = np.asarray(cut, np.int64)
    each, summed = f"{result}::each", f"{result}::flat"
    changed = onnx.NodeProto.FromString(maker.SerializeToString())
    changed.name = f"{maker.name}_of_tokens"
    changed.input[:] = [heads.name if n == maker.input[0] else n for n in maker.input]
    changed.output[:] = [each]
    return [
        changed,
        onnx.helper.make_node("MatMul", [ones, each], [summed], name=name),
        onnx.helper.make_node(
            "Reshape",
            [summed, sizes],
            [result],
            name=name.replace("MatMul_of", "Reshape_of"),
        ),
    ]


def _before_heads(graph: Graph, name: str) -> tuple[Any, Heads] | None:
    """What is done to each number of heads, of which nothing but the sum reads the result."""
    maker = graph.makers.get(name)
    if maker is None or len(graph.readers[name]) != 1 or name in graph.kept:
        return None
    own, others = maker.input[0], {entry for entry in maker.input[1:] if entry != maker.input[0]}
    scalars = all(graph.is_constant(entry) and graph.shape(entry) == () for entry in others)
    if maker.op_type not in {"Abs", "Mul", "Pow"} or not scalars:
        return None
    heads = heads_of(graph, own)
    return (maker, heads) if heads else None
