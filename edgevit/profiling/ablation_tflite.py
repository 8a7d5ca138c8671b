"""A TFLite file without one of its blocks, and how blocks are found where names are lost.

The converter keeps no layer's name, but it keeps weights. So an operator whose weights are those of
a node of the bundle's ONNX file belongs to that node's layer. Between the last such operator of one
block and the first of the next, the border is the first place that a single tensor crosses:

    ... proj -> ADD | MEAN -> SUB -> ... -> FULLY_CONNECTED (weights of the next block)

A block between two borders of the same shape can be left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.profiling.ablation import CannotLeaveOutError
from edgevit.profiling.layers import TOP, block_of
from edgevit.profiling.places import layer_in_name

__all__ = ["TFLiteBlocks", "layers_of_weights"]

#: Smaller constants may be alike by chance.
LEAST_NUMBERS = 16
FLOAT32 = 0
IDENTIFIER = b"TFL3"


@dataclass(frozen=True)
class _Block:
    """A run of operators, the tensors at its borders, None where several cross."""

    name: str
    start: int
    end: int
    takes: int | None
    gives: int | None


class TFLiteBlocks:
    """The blocks of a TFLite file.

    Args:
        file: the TFLite file.
        layers: of weights, by their digest; see :func:`layers_of_weights`.
    """

    suffix = ".tflite"

    def __init__(self, file: Path, layers: Mapping[str, str]) -> None:
        self._file = file
        graph = _read(file).subgraphs[0]
        self._blocks = _blocks(graph, _anchors(_read(file), layers))

    @property
    def names(self) -> list[str]:
        """In the order of the file."""
        return list(self._blocks)

    def write_whole(self, path: Path) -> None:
        """The file as the others are written."""
        path.write_bytes(_packed(_read(self._file)))

    def write_without(self, name: str, path: Path) -> None:
        """The file without that block.

        Raises:
            CannotLeaveOutError: several tensors cross its borders, or it changes shapes.
        """
        block, model = self._blocks[name], _read(self._file)
        graph = model.subgraphs[0]
        if block.takes is None or block.gives is None:
            raise CannotLeaveOutError("more than one tensor crosses its border")
        shapes = [list(graph.tensors[i].shape) for i in (block.takes, block.gives)]
        if shapes[0] != shapes[1]:
            raise CannotLeaveOutError("what it gives has another shape than what it takes")
        if block.gives in graph.outputs:
            raise CannotLeaveOutError("it gives the output of the model")
        rest = [*graph.operators[: block.start], *graph.operators[block.end :]]
        for operator in rest:
            given = np.asarray(operator.inputs)
            operator.inputs = np.where(given == block.gives, block.takes, given)
        graph.operators = rest
        _empty_unread(model)
        path.write_bytes(_packed(model))


def layers_of_weights(onnx_file: Path) -> dict[str, str]:
    """Layers by the digest of their weights, from an ONNX file of the same program."""
    import onnx

    graph = onnx.load_model(onnx_file).graph
    reader = {tensor: node.name for node in reversed(graph.node) for tensor in node.input}
    found: dict[str, str] = {}
    for weight in graph.initializer:
        layer = layer_in_name(reader.get(weight.name, ""))
        if layer and weight.data_type == onnx.TensorProto.FLOAT:
            found.setdefault(_digest(onnx.numpy_helper.to_array(weight)), layer)
    return found


def _digest(numbers: NDArray[Any]) -> str:
    """The same however the converter turned the axes."""
    return hashlib.sha256(np.sort(numbers.astype(np.float32).ravel()).tobytes()).hexdigest()


def _read(file: Path) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.read_bytes(), 0))


def _packed(model: Any) -> bytes:
    import flatbuffers  # type: ignore[import-untyped]

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _anchors(model: Any, layers: Mapping[str, str]) -> list[str | None]:
    """For every operator the block that its weights belong to."""
    graph = model.subgraphs[0]
    found: list[str | None] = []
    for operator in graph.operators:
        weights = (_weight(model, graph, int(index)) for index in operator.inputs)
        known = (layers.get(_digest(w)) for w in weights if w is not None)
        layer = next((one for one in known if one), None)
        block = block_of(layer) if layer is not None else None
        found.append(None if block == TOP else block)
    return found


def _weight(model: Any, graph: Any, index: int) -> NDArray[Any] | None:
    if index < 0 or graph.tensors[index].type != FLOAT32:
        return None
    data = model.buffers[graph.tensors[index].buffer].data
    if data is None or len(data) < 4 * LEAST_NUMBERS:
        return None
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32)


def _blocks(graph: Any, anchors: list[str | None]) -> dict[str, _Block]:
    """Blocks in order, with their borders; a name that comes again later is left out."""
    crossing = _crossing(graph)
    known = [(place, name) for place, name in enumerate(anchors) if name is not None]
    runs: list[tuple[str, int, int]] = []
    for place, name in known:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1], place)
        else:
            runs.append((name, place, place))
    borders: list[int | None] = [0]
    for (_, _, last), (_, first, _) in pairwise(runs):
        borders.append(next((c for c in range(last + 1, first + 1) if len(crossing[c]) == 1), None))
    borders.append(len(graph.operators))
    found: dict[str, _Block] = {}
    for number, (name, first, last) in enumerate(runs):
        start, end = borders[number], borders[number + 1]
        takes, gives = (None if b is None else _only(crossing[b]) for b in (start, end))
        whole = _Block(name, first if start is None else start, end or last + 1, takes, gives)
        again = name in found
        found[name] = _Block(name, whole.start, whole.end, None, None) if again else whole
    return found


def _crossing(graph: Any) -> list[set[int]]:
    """For every place between operators the tensors made before it and read at or after it."""
    made = {int(index): 0 for index in graph.inputs}
    last: dict[int, int] = {int(index): len(graph.operators) for index in graph.outputs}
    for place, operator in enumerate(graph.operators):
        for index in operator.outputs:
            made[int(index)] = place + 1
        for index in operator.inputs:
            last[int(index)] = max(place, last.get(int(index), 0))
    places = range(len(graph.operators) + 1)
    crossing: list[set[int]] = [set() for _ in places]
    for index, first in made.items():
        for place in range(first, last.get(index, -1) + 1):
            crossing[place].add(index)
    return crossing


def _only(indices: set[int]) -> int | None:
    return next(iter(indices)) if len(indices) == 1 else None


def _empty_unread(model: Any) -> None:
    """Weights that nothing reads any more need no place in the file."""
    graph = model.subgraphs[0]
    read = {int(i) for operator in graph.operators for i in operator.inputs if i >= 0}
    kept = {graph.tensors[i].buffer for i in read}
    for number, buffer in enumerate(model.buffers):
        if number not in kept and buffer.data is not None:
            buffer.data = None
