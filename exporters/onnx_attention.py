"""Attention as the one operator that ONNX has for it since opset 23.

    Reshape, Transpose of q, k, v -> MatMul [-> Add] -> Softmax -> MatMul -> Transpose, Reshape
        Attention(q, k, v[, mask])          q, k, v of shape (batch, tokens, heads x channels)

onnxruntime's kernel takes heads as they lie, side by side in each token, so nothing is transposed
in memory: whole models gain 1.5 to 6 % (onnxruntime 1.31 on AVX-512; ``docs/performance.md``).

Attention on maps, whose channels come first, is left: its parts need no transposition, the operator
would. So is attention whose scores are changed by anything but the sum of a mask.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

__all__ = ["join_attention"]

Shape = tuple[int | None, ...]
#: Tokens of a batch to tokens of a head, and to the columns of a head.
TO_HEADS, TO_COLUMNS = [0, 2, 1, 3], [0, 2, 3, 1]


@dataclass(frozen=True)
class _Heads:
    """A tensor of the graph that holds heads side by side.

    Args:
        name: of the tensor, of shape (batch, tokens, heads x channels).
        batch: how many rows; None where that varies.
        tokens: how many.
        heads: how many.
    """

    name: str
    batch: int | None
    tokens: int | None
    heads: int | None


class _Graph:
    """Who makes and who reads what, and what shape it has."""

    def __init__(self, model: Any) -> None:
        import onnx

        self.readers: dict[str, list[Any]] = defaultdict(list)
        self.makers: dict[str, Any] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
            self.makers.update(dict.fromkeys(node.output, node))
        self.kept = {value.name for value in model.graph.output}
        known = onnx.shape_inference.infer_shapes(model).graph
        self.shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in known.initializer}
        for value in (*known.input, *known.value_info, *known.output):
            dims = value.type.tensor_type.shape.dim
            self.shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in dims
            )

    def maker(self, name: str, operator: str) -> Any | None:
        """The node that makes a tensor, if it is one of that operator."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == operator else None

    def reader(self, name: str, operator: str) -> Any | None:
        """The node that alone reads a tensor, if it is one of that operator."""
        readers = self.readers[name]
        alone = len(readers) == 1 and name not in self.kept
        return readers[0] if alone and readers[0].op_type == operator else None

    def shape(self, name: str) -> Shape:
        return self.shapes.get(name, ())

    def heads(self, name: str, permutation: list[int]) -> _Heads | None:
        """What a tensor of heads is made of, if by nothing but a reshape and that permutation."""
        turned = self.maker(name, "Transpose")
        if turned is None or _permutation(turned) != permutation:
            return None
        cut = self.maker(turned.input[0], "Reshape")
        if cut is None or self.maker(cut.input[0], "Transpose") is not None:
            return None
        flat, parts = self.shape(cut.input[0]), self.shape(cut.output[0])
        if len(flat) != 3 or len(parts) != 4 or None in (*flat[1:], *parts[1:]):
            return None
        _, tokens, heads, channels = parts
        if flat[1:] != (tokens, heads * channels):  # type: ignore[operator]
            return None
        return _Heads(cut.input[0], flat[0], tokens, heads)


def join_attention(model: Any) -> int:
    """Rewrite the graph of an ONNX model of opset 23 in place; returns how many are joined."""
    graph = _Graph(model)
    joined = {}
    for node in model.graph.node:
        if node.op_type == "Softmax" and (found := _attention(graph, node)) is not None:
            last, attention = found
            joined[last.output[0]] = attention
    if joined:
        nodes = [joined.get(node.output[0], node) for node in model.graph.node]
        _keep(model.graph, _read(nodes, graph.kept))
    return len(joined)


def _attention(graph: _Graph, softmax: Any) -> tuple[Any, Any] | None:
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
    query = graph.heads(scores.input[0], TO_HEADS)
    key = graph.heads(scores.input[1], TO_COLUMNS)
    value = graph.heads(weighted.input[1], TO_HEADS)
    if query is None or key is None or value is None:
        return None
    if not query.heads == key.heads == value.heads:
        return None
    if masks and not _fits(graph.shape(masks[0]), query, key):
        return None
    turned = graph.reader(weighted.output[0], "Transpose")
    if turned is None or _permutation(turned) != TO_HEADS:
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


def _fits(mask: Shape, query: _Heads, key: _Heads) -> bool:
    """Whether a mask has a row for each query, one column a key, and before them what is usual.

    That is nothing, heads, or the batch and heads; shifted windows have a mask for each of both.
    """
    several = {(), *((rows,) for rows in (1, query.heads))}
    several |= {(batch, *rows) for batch in (1, query.batch) for rows in several if rows}
    return mask[-2:] == (query.tokens, key.tokens) and mask[:-2] in several


def _is_last_axis(softmax: Any) -> bool:
    axes = [attribute.i for attribute in softmax.attribute if attribute.name == "axis"]
    return axes in ([], [-1])


def _permutation(transpose: Any) -> list[int]:
    return [i for attribute in transpose.attribute for i in attribute.ints]


def _read(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """Nodes something of which is read."""
    wanted, read = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            read.append(node)
    return read[::-1]


def _keep(graph: Any, nodes: list[Any]) -> None:
    """Leave nothing in the graph but these nodes and what they make and read."""
    import onnx

    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    used = {name for node in copies for name in (*node.input, *node.output)}
    for part in (graph.value_info, graph.initializer):
        unused = [index for index, entry in enumerate(part) if entry.name not in used]
        for index in reversed(unused):
            del part[index]
