"""A batch of one left out of attention, so that onnxruntime reads heads where they lie.

    (1, tokens, heads, channels) -> Transpose (0, 2, 1, 3) -> MatMul        copied in memory
    (tokens, heads, channels) -> Transpose (1, 0, 2) -> MatMul              read through

onnxruntime takes a permutation into the product behind it where that brings the first axis before
the last or the last two change places as well (``FusedMatMul``'s ``transBatch``). With a batch
before the tokens it is no such permutation. Where the batch is one for good, its axis is left out,
of all that lies between products with heads: attention of any kind by a quarter (197 tokens in 6
heads on AVX-512), whole models by 1 to 4 %. Products with weights need no reshape before them
either.

All operators in between do the same without the axis. A reshape takes it off and puts it back for
others; where that would be before a node or behind it, it is done where a tensor is cut anyhow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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

__all__ = ["leave_out_batch"]

#: Permutations of heads that a product reads through once the batch before them is left out.
READ_THROUGH = {(0, 2, 1, 3), (0, 2, 3, 1)}
#: Number by number, with what is broadcast to it.
ELEMENTWISE = {
    "Abs", "Add", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu",
    "Sigmoid", "Sin", "Softplus", "Sqrt", "Sub", "Sum", "Tanh",
}  # fmt: skip
#: Along one axis, by the axis that they take without being told.
ALONG_AXIS = {
    "Concat": 0, "LayerNormalization": -1, "LogSoftmax": -1, "Softmax": -1, "Split": 0,
}  # fmt: skip
REDUCTIONS = {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "ReduceSumSquare"}


def leave_out_batch(model: Any) -> int:
    """Rewrite an ONNX model in place; returns how many permutations are read through."""
    graph = Graph(model)
    if not any(_may_be_read_through(graph, node) for node in model.graph.node):
        return 0
    plan = _Plan(graph, model.graph.node)
    if saved := plan.settle():
        _Writer(plan).write(model)
    return saved


def _may_be_read_through(graph: Graph, node: Any) -> bool:
    """Whether a node is a permutation of heads before nothing but products."""
    if node.op_type != "Transpose" or permutation(node) not in READ_THROUGH:
        return False
    return {reader.op_type for reader in graph.readers[node.output[0]]} == {"MatMul"}


class _Plan:
    """Which nodes go without the batch's axis.

    A node is *bare* if its outputs are to be without. Reshapes take a tensor with or without, so
    nothing has to stand between them and others.
    """

    def __init__(self, graph: Graph, nodes: Sequence[Any]) -> None:
        self.graph, self.nodes = graph, list(nodes)
        self._bare = {_key(node) for node in self.nodes if self._can_be_bare(node)}

    def is_bare(self, node: Any | None) -> bool:
        """None is an input of the graph, which is not."""
        return node is not None and _key(node) in self._bare

    def has_batch(self, name: str) -> bool:
        """Whether what is computed as a tensor has an axis of one that can be left out."""
        shape = self.graph.shape(name)
        has_one = len(shape) > 2 and shape[0] == 1 and None not in shape
        return has_one and not self.graph.is_constant(name)

    def settle(self) -> int:
        """Leave those bare that are worth it; returns how many permutations that saves."""
        queue = list(self.nodes)
        while queue:
            node = queue.pop()
            if self.is_bare(node) and not self._is_saved(node) and not self._is_amid(node):
                self._bare.discard(_key(node))
                queue.extend(self._neighbours(node))
        saved = 0
        for part in list(self._parts()):
            if found := sum(map(self._is_saved, part)):
                saved += found
            else:
                self._bare.difference_update(map(_key, part))
        return saved

    def axes(self, reduction: Any) -> list[int] | None:
        """Those that a reduction is told; None where it is told none, or what is computed."""
        axes = attribute(reduction, "axes")
        if axes is None and len(reduction.input) > 1:
            axes = self.graph.constant(reduction.input[1])
        return None if axes is None else [int(axis) for axis in axes]

    def _can_be_bare(self, node: Any) -> bool:
        graph, operator = self.graph, node.op_type
        if not all(self.has_batch(name) and name not in graph.kept for name in node.output):
            return False
        read = [name for name in node.input if name]
        if not read or any(n not in graph.shapes or None in graph.shape(n) for n in read):
            return False
        rank = len(graph.shape(read[0]))
        if operator == "Reshape":
            return graph.is_constant(node.input[1])
        if operator == "Transpose":
            return next(iter(permutation(node)), None) == 0
        if operator in REDUCTIONS:
            axes = self.axes(node)
            return axes is not None and all(axis % rank for axis in axes)
        if operator in ALONG_AXIS:
            axis: int = attribute(node, "axis", ALONG_AXIS[operator])
            return axis % rank != 0
        return operator == "MatMul" or operator in ELEMENTWISE

    def _is_saved(self, node: Any) -> bool:
        """Whether it is a permutation that products read through."""
        return self.is_bare(node) and _may_be_read_through(self.graph, node)

    def _makers(self, node: Any) -> list[Any | None]:
        """Of what it reads with a batch; None is an input of the graph."""
        return [self.graph.makers.get(name) for name in node.input if self.has_batch(name)]

    def _readers(self, node: Any) -> list[Any]:
        return [reader for name in node.output for reader in self.graph.readers[name]]

    def _neighbours(self, node: Any) -> list[Any]:
        return [other for other in (*self._makers(node), *self._readers(node)) if other is not None]

    def _is_amid(self, node: Any) -> bool:
        """Whether it has more bare neighbours than others, of those that need a reshape between.

        At the edge of a part the original may as well stay.
        """
        around = [*self._makers(node), *self._readers(node)]
        free = self.is_reshape(node)
        bound = [o for o in around if o is None or not (free or self.is_reshape(o))]
        if not bound:
            return any(map(self.is_bare, self._readers(node)))
        return 2 * sum(map(self.is_bare, bound)) > len(bound)

    def _parts(self) -> Iterator[list[Any]]:
        """Bare nodes that hang together."""
        seen: set[str] = set()
        for start in self.nodes:
            part, queue = [], [start]
            while queue:
                node = queue.pop()
                if self.is_bare(node) and _key(node) not in seen:
                    seen.add(_key(node))
                    part.append(node)
                    queue.extend(self._neighbours(node))
            if part:
                yield part

    def is_reshape(self, node: Any) -> bool:
        """Whether a node takes a tensor with the batch or without: what it makes is known."""
        shape = self.graph.shape(node.output[0])
        return node.op_type == "Reshape" and bool(shape) and None not in shape

    def is_bared_for(self, node: Any, name: str) -> bool:
        """Whether a bare node reads a tensor that is not."""
        needs = self.is_bare(node) and node.op_type != "Reshape" and self.has_batch(name)
        return needs and not self.is_bare(self.graph.makers.get(name))

    def is_filled_for(self, node: Any, name: str) -> bool:
        """Whether another node reads a tensor that is bare."""
        needs = not self.is_bare(node) and not self.is_reshape(node)
        return needs and self.is_bare(self.graph.makers.get(name))


class _Writer:
    """Writes a graph anew, by a plan."""

    def __init__(self, plan: _Plan) -> None:
        self._plan, self._graph = plan, plan.graph
        self._nodes: list[Any] = []
        self._added: dict[str, Array] = {}
        self._reshaped: set[str] = set()

    def write(self, model: Any) -> None:
        """Into the model itself."""
        import onnx

        changed = set()
        for node in self._plan.nodes:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.input[:] = [self._input(node, name) for name in node.input]
            if self._plan.is_reshape(node):
                copy.input[1] = self._sizes(self._made(node))
            if self._plan.is_bare(node):
                changed.update(node.output)
                self._take_off(copy, node)
            self._nodes.append(copy)
        forget_shapes(model.graph, changed)
        add_constants(model.graph, self._added)
        keep_read(model.graph, self._nodes)

    def _input(self, node: Any, name: str) -> str:
        shape = self._graph.shape(name)
        if self._plan.is_bared_for(node, name):
            return self._reshape(node, name, f"{name}::bare", shape[1:])
        if self._plan.is_filled_for(node, name):
            return self._reshape(node, name, f"{name}::filled", shape)
        most = len(self._graph.shape(node.output[0]))
        is_data = self._plan.is_bare(node) and node.op_type != "Reshape" and len(shape) == most > 2
        if is_data and (value := self._graph.constant(name)) is not None:
            return self._constant(f"{name}::bare", value[0])
        return name

    def _reshape(self, node: Any, name: str, result: str, shape: Shape) -> str:
        import onnx

        if result not in self._reshaped:
            self._reshaped.add(result)
            layer = node.name.rpartition("/")[0]
            self._nodes.append(
                onnx.helper.make_node(
                    "Reshape",
                    [name, self._sizes(shape)],
                    [result],
                    name=f"{layer}/Reshape_of_batch_{len(self._reshaped)}",
                )
            )
        return result

    def _sizes(self, shape: Shape) -> str:
        return self._constant(sizes_name(shape), np.asarray(shape, np.int64))

    def _constant(self, name: str, value: Array) -> str:
        self._added[name] = value
        return name

    def _made(self, node: Any) -> Shape:
        """What a reshape is to make."""
        shape = self._graph.shape(node.output[0])
        return shape[1:] if self._plan.is_bare(node) else shape

    def _take_off(self, copy: Any, node: Any) -> None:
        """Change what tells axes."""
        operator = node.op_type
        if operator == "Transpose":
            _set(copy, "perm", [axis - 1 for axis in permutation(node)[1:]])
        elif operator in REDUCTIONS:
            axes = [_without_first(axis) for axis in self._plan.axes(node) or ()]
            if len(node.input) > 1:
                name = f"edgevit::axes_{'_'.join(map(str, axes))}"
                copy.input[1] = self._constant(name, np.asarray(axes, np.int64))
            else:
                _set(copy, "axes", axes)
        elif operator in ALONG_AXIS:
            _set(copy, "axis", _without_first(attribute(node, "axis", ALONG_AXIS[operator])))


def _key(node: Any) -> str:
    return str(node.output[0])


def _without_first(axis: int) -> int:
    return axis if axis < 0 else axis - 1


def _set(node: Any, name: str, value: Any) -> None:
    import onnx

    others = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*others, onnx.helper.make_attribute(name, value)])
