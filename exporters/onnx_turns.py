"""Two permutations, one behind the other, written as one.

    Transpose -> Reshape -> Transpose        Reshape -> Transpose -> Reshape

Maps are cut in windows and put together again first along rows, then along columns, where a tensor
is to have no more than four axes. onnxruntime takes any number, and each permutation is a pass
through memory. With C channels of 14 x 14 and windows of 7 x 7:

    (C, 14, 14) = (C, 2, 7, 2, 7) -> (2, 2, C, 7, 7)

What two do together is found by cutting every axis wherever the shape before or behind the reshape
has a border, and following the parts; those that stay side by side are one axis. Only done where
the last axis stays the last, so that runs of numbers are copied: elsewhere one permutation may take
longer than two.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from exporters.onnx_graph import Graph, add_constants, keep_read, permutation, sizes_name

__all__ = ["join_turns"]


class _Turn(NamedTuple):
    """A tensor is reshaped to the sizes, the axes of that are put in this order."""

    name: str
    sizes: list[int]
    order: list[int]


def join_turns(model: Any) -> int:
    """Rewrite an ONNX model in place; returns how many pairs became one."""
    graph = Graph(model)
    nodes: list[Any] = []
    constants: dict[str, Any] = {}
    turned: dict[str, str] = {}  # what is read, and the same numbers before their last reshape

    def add(
        operator: str, inputs: Sequence[str], result: str, label: str, **attributes: Any
    ) -> None:
        import onnx

        made = onnx.helper.make_node(operator, inputs, [result], name=label, **attributes)
        nodes.append(made)

    def sizes(shape: Sequence[int]) -> str:
        constants[name := sizes_name(shape)] = np.asarray(shape, np.int64)
        return name

    for node in model.graph.node:
        result = node.output[0]
        source = turned.get(node.input[0], "") if node.op_type == "Reshape" else ""
        if source and (shape := _known(graph, result)):
            add("Reshape", [source, sizes(shape)], result, node.name)
        elif turn := _both(graph, node, turned):
            turned[result] = turn.name
            if len(turn.sizes) > 1:
                parts, turned[result] = f"{result}::parts", f"{result}::turned"
                add("Reshape", [turn.name, sizes(turn.sizes)], parts, f"{node.name}_parts")
                add("Transpose", [parts], turned[result], node.name, perm=turn.order)
            whole = sizes(_known(graph, result))
            add("Reshape", [turned[result], whole], result, f"{node.name}_whole")
        else:
            nodes.append(node)
    if turned:
        add_constants(model.graph, constants)
        keep_read(model.graph, nodes)
    return len(turned)


def _known(graph: Graph, name: str) -> list[int]:
    """The shape of a tensor, or nothing where a size of it is not known."""
    shape = graph.shape(name)
    return [] if None in shape else [size for size in shape if size is not None]


def _both(graph: Graph, second: Any, joined: Collection[str]) -> _Turn | None:
    """What a permutation and the one before it do; None without one, or where it must stay."""
    if second.op_type != "Transpose":
        return None
    between = graph.maker(second.input[0], "Reshape")
    first = graph.maker(between.input[0], "Transpose") if between else None
    if between is None or first is None or first.output[0] in joined:
        return None
    if not graph.reader(first.output[0], "Reshape") or not graph.reader(
        second.input[0], "Transpose"
    ):
        return None
    before, behind = (_known(graph, node.input[0]) for node in (between, second))
    ends = sorted({*accumulate(before, mul), *accumulate(behind, mul)} - {1})
    steps = list(pairwise([1, *ends]))
    if not before or not behind or any(end % start for start, end in steps):
        return None
    # Parts are numbered in the order that the first permutation leaves them in.
    parts, order = _parts(before, ends), permutation(first)
    source = [part for axis in range(len(order)) for part in parts[order.index(axis)]]
    parts = _parts(behind, ends)
    result = [part for axis in permutation(second) for part in parts[axis]]
    if not result or source[-1] != result[-1]:
        return None
    runs = _runs(result, source)
    in_source = sorted(runs, key=lambda run: source.index(run[0]))
    sizes = [math.prod(steps[part][1] // steps[part][0] for part in run) for run in in_source]
    cut = graph.maker(first.input[0], "Reshape")
    name = cut.input[0] if cut else first.input[0]
    return _Turn(name, sizes, [in_source.index(run) for run in runs])


def _parts(shape: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    """For each axis the parts that it is cut in, where ``ends`` of them lie."""
    borders = pairwise(accumulate(shape, mul, initial=1))
    return [[part for part, end in enumerate(ends) if low < end <= high] for low, high in borders]


def _runs(parts: Sequence[int], source: Sequence[int]) -> list[list[int]]:
    """Parts together that lay one behind the other in the source, too."""
    runs: list[list[int]] = []
    for part in parts:
        if runs and source.index(part) == source.index(runs[-1][-1]) + 1:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs
