"""What rewrites of an ONNX graph need to know of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "TO_HEADS",
    "Graph",
    "Heads",
    "Shape",
    "add_constants",
    "attribute",
    "forget_shapes",
    "heads_of",
    "keep_read",
    "permutation",
    "sizes_name",
]  # fmt: skip

Shape = tuple[int | None, ...]
#: Constants of more numbers are weights, which the shape of nothing else depends on.
WEIGHT = 4096
#: From (batch, tokens, heads, channels) to the tokens of each head.
TO_HEADS = (0, 2, 1, 3)


@dataclass(frozen=True)
class Heads:
    """A tensor of the graph that holds heads side by side.

    Args:
        name: of the tensor, of shape (batch, tokens, heads x channels).
        batch: how many rows; None where that varies.
        tokens: how many.
        heads: how many.
        channels: of each head.
    """

    name: str
    batch: int | None
    tokens: int
    heads: int
    channels: int


class Graph:
    """Who makes and who reads what, and what shape it has.

    Args:
        model: an ONNX model; what is told of it holds until it is rewritten, which must not be
            before shapes were asked for.
    """

    def __init__(self, model: Any) -> None:
        self.readers: dict[str, list[Any]] = defaultdict(list)
        self.makers: dict[str, Any] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
            self.makers.update(dict.fromkeys(node.output, node))
        self.kept = {value.name for value in model.graph.output}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._model = model

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Of every tensor that onnx's own inference knows, looked for when first asked."""
        return _shapes(self._model)

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
        """Of a tensor; None for a size that varies, and no size at all where nothing is known."""
        return self.shapes.get(name, ())

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is the same whatever the input."""
        return name in self._weights or self.maker(name, "Constant") is not None

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a constant; None if it is none."""
        import onnx

        found: Any = self._weights.get(name)
        if found is None and (node := self.maker(name, "Constant")) is not None:
            found = onnx.helper.get_attribute_value(node.attribute[0])
        is_tensor = isinstance(found, onnx.TensorProto)
        value: NDArray[Any] = onnx.numpy_helper.to_array(found) if is_tensor else np.asarray(found)
        return None if found is None else value


def _shapes(model: Any) -> dict[str, Shape]:
    """By onnx's own inference, which copies a model: here one without its weights."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    for part in ("node", "input", "output"):
        getattr(light.graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > WEIGHT:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(value)
        else:
            light.graph.initializer.append(tensor)
    known = onnx.shape_inference.infer_shapes(light).graph
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in known.initializer}
    for value in (*known.input, *known.value_info, *known.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return shapes


def heads_of(graph: Graph, name: str, order: Sequence[int] = TO_HEADS) -> Heads | None:
    """What a tensor of heads is made of, if by nothing but a reshape and that permutation."""
    turned = graph.maker(name, "Transpose")
    if turned is None or tuple(permutation(turned)) != tuple(order):
        return None
    cut = graph.maker(turned.input[0], "Reshape")
    if cut is None:
        return None
    flat, parts = graph.shape(cut.input[0]), graph.shape(cut.output[0])
    if len(flat) != 3 or len(parts) != 4:
        return None
    _, tokens, heads, channels = parts
    if tokens is None or heads is None or channels is None:
        return None
    if flat[1:] != (tokens, heads * channels):
        return None
    return Heads(cut.input[0], flat[0], tokens, heads, channels)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """An attribute's value."""
    import onnx

    found = (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)
    return next(found, default)


def permutation(transpose: Any) -> Sequence[int]:
    """Of a Transpose."""
    return tuple(attribute(transpose, "perm", ()))


def sizes_name(shape: Sequence[int | None]) -> str:
    """Of the constant that tells a Reshape what to make."""
    return f"edgevit::sizes_{'x'.join(map(str, shape))}"


def keep_read(graph: Any, nodes: Sequence[Any]) -> None:
    """Leave nothing in an ONNX graph but those of these nodes that are read, and what they read."""
    import onnx

    wanted, read = {value.name for value in graph.output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            read.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(read))
    used = {name for node in read for name in (*node.input, *node.output)}
    for part in (graph.value_info, graph.initializer):
        unused = [index for index, entry in enumerate(part) if entry.name not in used]
        for index in reversed(unused):
            del part[index]


def add_constants(graph: Any, values: Mapping[str, NDArray[Any]]) -> None:
    """Those that an ONNX graph does not have yet."""
    import onnx

    known = {tensor.name for tensor in graph.initializer}
    new = (onnx.numpy_helper.from_array(v, k) for k, v in values.items() if k not in known)
    graph.initializer.extend(new)


def forget_shapes(graph: Any, names: Collection[str]) -> None:
    """Of tensors within an ONNX graph that have others now."""
    kept = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)
