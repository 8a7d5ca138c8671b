"""Attention as the one operator that ONNX has for it since opset 23.

    Reshape, Transpose of q, k, v -> MatMul [-> Add] -> Softmax -> MatMul -> Transpose, Reshape
        Attention(q, k, v[, mask])          q, k, v of shape (batch, tokens, heads x channels)

onnxruntime's kernel takes heads as they lie, side by side in each token, so nothing is transposed
in memory: whole models gain 1.5 to 6 % (onnxruntime 1.31 on AVX-512; ``docs/performance.md``).

Attention on maps, whose channels come first, is left: its parts need no transposition, the operator
would. So is attention whose scores are changed by anything but the sum of a mask.
"""

from __future__ import annotations

from typing import Any

from exporters.onnx_graph import (
    TO_HEADS,
    Graph,
    Heads,
    Shape,
    attribute,
    heads_of,
    keep_read,
    permutation,
)

__all__ = ["join_attention"]

#: From (batch, tokens, heads, channels) to the columns of each head.
TO_COLUMNS = (0, 2, 3, 1)


def join_attention(model: Any) -> int:
    """Rewrite the graph of an ONNX model of opset 23 in place; returns how many are joined."""
    graph = Graph(model)
    joined = {}
    for node in model.graph.node:
        if node.op_type == "Softmax" and (found := _attention(graph, node)) is not None:
            last, attention = found
            joined[last.output[0]] = attention
    if joined:
        nodes = [joined.get(node.output[0], node) for node in model.graph.node]
        keep_read(model.graph, nodes)
    return len(joined)


def _attention(graph: Graph, softmax: Any) -> tuple[Any, Any] | None:
    """The node that makes the result of attention, and the operator in its place."""
    import onnx

    weighted = graph.reader(softmax.output[0], "MatMul")
    if weighted is None or weighted.input[0] != softmax.output[0] or not _is_last_axis(softmax):
        return None
    scores, masks = graph.maker(softmax.input[0], "MatMul"), []
    if (masked := graph.maker(softmax.input[0], "Add")) is not None:
        for own, other in (masked.input, reversed(masked.input)):
            if graph.reader(own, "Add") is not None and scores is None:
                scores, masks = graph.maker(own, "MatMul"), [other]
    if scores is None or graph.reader(softmax.input[0], "Softmax") is None:
        return None
    query = _heads(graph, scores.input[0], TO_HEADS)
    key = _heads(graph, scores.input[1], TO_COLUMNS)
    value = _heads(graph, weighted.input[1], TO_HEADS)
    if query is None or key is None or value is None:
        return None
    if not query.heads == key.heads == value.heads:
        return None
    if masks and not _fits(graph.shape(masks[0]), query, key):
        return None
    turned = graph.reader(weighted.output[0], "Transpose")
    if turned is None or permutation(turned) != TO_HEADS:
        return None
    flat = graph.reader(turned.output[0], "Reshape")
    if flat is None or graph.shape(flat.output[0])[1:2] != (query.tokens,):
        return None
    if len(graph.shape(flat.output[0])) != 3:
        return None
    return flat, onnx.helper.make_node(
        "Attention",
        [query.name, key.name, value.name, *masks],
        [flat.output[0]],
        name=softmax.name.replace("Softmax", "Attention"),
        q_num_heads=query.heads,
        kv_num_heads=key.heads,
        scale=1.0,  # it is in the weights, or a factor that is left before
    )


def _heads(graph: Graph, name: str, order: tuple[int, ...]) -> Heads | None:
    """What a tensor of heads is made of, where channels did not come first before."""
    found = heads_of(graph, name, order)
    return found if found and graph.maker(found.name, "Transpose") is None else None


def _fits(mask: Shape, query: Heads, key: Heads) -> bool:
    """Whether a mask has a row for each query, one column a key, and before them what is usual.

    That is nothing, heads, or the batch and heads; shifted windows have a mask for each of both.
    """
    several: set[Shape] = {(), *((rows,) for rows in (1, query.heads))}
    several |= {(batch, *rows) for batch in (1, query.batch) for rows in several if rows}
    return mask[-2:] == (query.tokens, key.tokens) and mask[:-2] in several


def _is_last_axis(softmax: Any) -> bool:
    return bool(attribute(softmax, "axis", -1) == -1)
