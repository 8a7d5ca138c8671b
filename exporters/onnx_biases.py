"""The scores of one head and a constant that is added to them, in one operator.

    Softmax(MatMul(Transpose(q), k) + C)        Softmax(Gemm(q, k, C))

Where heads are computed one after the other (cascaded attention) and an image is a single window,
the scores of a head are one matrix. ``Gemm`` starts from C where a product starts from zero, so the
sum costs no operator and no pass of its own; of EfficientViT-M0, with 20 heads of that kind, that
is 1.3 %. Operators with a batch, be it of one, have no such form, hence the scores go without it up
to the product with the values, which takes them either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from exporters.base import Array
from exporters.onnx_graph import (
    Graph,
    Shape,
    add_constants,
    attribute,
    forget_shapes,
    keep_read,
    permutation,
    sizes_name,
)

__all__ = ["join_biases"]


class _Scores(NamedTuple):
    """Nodes from the product to what turns the weights, if something does, and the bias."""

    product: Any
    bias: Array
    add: Any
    softmax: Any
    turned: Any | None


def join_biases(model: Any) -> int:
    """Rewrite an ONNX model in place; returns how many sums."""
    graph = Graph(model)
    found = {s.add.output[0]: s for node in model.graph.node if (s := _scores(graph, node))}
    if not found:
        return 0
    constants: dict[str, Any] = {}
    nodes: list[Any] = []
    for node in model.graph.node:
        scores = found.get(node.output[0])
        nodes.extend([node] if scores is None else _gemm(graph, scores, constants))
    for scores in found.values():
        _set(scores.softmax, axis=-1)
        if scores.turned:
            _set(scores.turned, perm=[1, 0])
    read = [node for s in found.values() for node in (s.add, s.softmax, s.turned) if node]
    forget_shapes(model.graph, {node.output[0] for node in read})
    add_constants(model.graph, constants)
    keep_read(model.graph, nodes)
    return len(found)


def _scores(graph: Graph, add: Any) -> _Scores | None:
    if add.op_type != "Add":
        return None
    for name, other in (add.input, reversed(add.input)):
        bias, product = graph.constant(other), graph.maker(name, "MatMul")
        if bias is None or product is None or not _is_matrix(bias.shape):
            continue
        softmax = graph.reader(add.output[0], "Softmax")
        if softmax is None or any(map(graph.is_constant, product.input)):
            continue
        shape = graph.shape(name)
        if not _is_matrix(shape) or attribute(softmax, "axis", -1) not in {-1, len(shape) - 1}:
            continue
        if any(len(graph.shape(factor)) != len(shape) for factor in product.input):
            continue  # a vector, say
        turned = graph.reader(softmax.output[0], "Transpose")
        if graph.reader(name, "Add") and bias.shape[-2:] == shape[-2:]:
            scores = _Scores(product, bias, add, softmax, turned)
            return scores if _goes_into_products(graph, scores, len(shape)) else None
    return None


def _is_matrix(shape: Shape) -> bool:
    """Whether all axes but the last two are of size one."""
    return len(shape) > 1 and None not in shape and set(shape[:-2]) <= {1}


def _goes_into_products(graph: Graph, scores: _Scores, rank: int) -> bool:
    """Whether the weights are read by products alone, which give the same with fewer axes."""
    if scores.turned and permutation(scores.turned) != _last_two(graph, scores.turned.input[0]):
        return False
    name = (scores.turned or scores.softmax).output[0]
    readers = graph.readers[name]
    others = [other for r in readers for other in r.input if other != name]
    products = all(r.op_type == "MatMul" for r in readers) and name not in graph.kept
    return products and bool(others) and all(len(graph.shape(o)) == rank for o in others)


def _last_two(graph: Graph, name: str) -> tuple[int, ...]:
    """The permutation that exchanges the last two axes of a tensor."""
    rank = len(graph.shape(name))
    return (*range(rank - 2), rank - 1, rank - 2)


def _gemm(graph: Graph, scores: _Scores, constants: dict[str, Any]) -> Iterator[Any]:
    """The nodes in place of a sum."""
    import onnx

    result, name = scores.add.output[0], scores.product.name
    inputs, turned = [], []
    for side, factor in zip("AB", scores.product.input, strict=True):
        turn = graph.maker(factor, "Transpose")
        turned.append(turn is not None and permutation(turn) == _last_two(graph, factor))
        source = turn.input[0] if turn is not None and turned[-1] else factor
        shape = graph.shape(source)[-2:]
        # Of what a reshape made, before that.
        cut = graph.maker(source, "Reshape")
        constants[sizes := sizes_name(shape)] = np.asarray(shape, np.int64)
        inputs.append(f"{result}::{side}")
        yield onnx.helper.make_node(
            "Reshape", [cut.input[0] if cut else source, sizes], inputs[-1:], name=f"{name}_{side}"
        )
    constants[f"{result}::C"] = scores.bias.reshape(scores.bias.shape[-2:])
    yield onnx.helper.make_node(
        "Gemm",
        [*inputs, f"{result}::C"],
        [result],
        name=f"{name}_and_bias",
        transA=int(turned[0]),
        transB=int(turned[1]),
    )


def _set(node: Any, **attributes: Any) -> None:
    import onnx

    del node.attribute[:]
    node.attribute.extend(onnx.helper.make_attribute(*entry) for entry in attributes.items())
