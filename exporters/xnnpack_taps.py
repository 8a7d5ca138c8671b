"""Depthwise convolutions cut to what XNNPACK's kernels for them take.

They take up to 25 weights a channel (5 x 5), on every processor; what is larger is computed as
general products, one for each channel, and takes twice to six times as long as in parts
(docs/performance.md). A convolution is the sum of the convolutions with the parts of its kernel,
each reading the padded map from where its part begins:

    given     W * x                              W (C, 1, 9, 9), padding 4
    result    W₀₀ * p + W₀₅ * p[.., 5:] + W₅₀ * p[.., 5:, :] + W₅₅ * p[.., 5:, 5:]
              p = x, padded; W₀₀ 5 x 5, W₀₅ 5 x 4, W₅₀ 4 x 5, W₅₅ 4 x 4

The first part has the bias. Exact but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from edgevit.passes.graph import add_constant, arguments, constant, replace_node, shape

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["cut_depthwise"]

aten = torch.ops.aten
#: Weights a channel of the largest kernel that XNNPACK has.
TAPS = 25
#: Its kernels compute 8 or 16 channels at once, so with fewer in all the parts gain nothing.
CHANNELS = 8
CONVOLUTIONS = {aten.conv2d.default, aten.conv2d.padding}


def cut_depthwise(program: Program) -> tuple[Program, int]:
    """The program with every large depthwise convolution in parts, and how many were cut.

    The very same program where none is.
    """
    module = program.graph_module()
    found = [node for node in module.graph.nodes if _is_large(module, node)]
    for node in found:
        _cut(module, node)
    return (program.rewritten(module) if found else program), len(found)


def _is_large(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in CONVOLUTIONS:
        return False
    given = arguments(node)
    weight = constant(module, given["weight"])
    if weight is None or weight.dtype != torch.float32:
        return False
    channels = weight.shape[0]
    return (
        weight[0].numel() > TAPS
        and channels >= CHANNELS
        and shape(given["input"])[-3] == given["groups"] == channels
    )


@dataclass(frozen=True)
class Axis:
    """How a convolution goes along rows or columns: sizes in positions."""

    size: int
    taps: int
    before: int
    after: int
    stride: int
    dilation: int

    def read(self, first: int, taps: int) -> tuple[int, int]:
        """From where to where, on the padded map, a part of the kernel reads."""
        reach = self.dilation * (self.taps - 1) + 1
        steps = (self.before + self.size + self.after - reach) // self.stride
        start = first * self.dilation
        return start, start + steps * self.stride + (taps - 1) * self.dilation + 1


def _axes(node: fx.Node, weight: Tensor) -> list[Axis]:
    given = arguments(node)
    stride, dilation = _pair(given["stride"]), _pair(given["dilation"])
    axes = []
    for i, (size, taps) in enumerate(
        zip(shape(given["input"])[-2:], weight.shape[2:], strict=True)
    ):
        if given["padding"] == "same":  # an odd one goes behind
            whole = dilation[i] * (taps - 1)
            before, after = whole // 2, whole - whole // 2
        elif given["padding"] == "valid":
            before = after = 0
        else:
            before = after = _pair(given["padding"])[i]
        axes.append(Axis(size, taps, before, after, stride[i], dilation[i]))
    return axes


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _parts(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """The fewest parts of a kernel of so many rows and columns that are small enough."""
    height, width = min(
        ((h, min(columns, TAPS // h)) for h in range(1, min(rows, TAPS) + 1)),
        key=lambda part: (ceil(rows / part[0]) * ceil(columns / part[1]), -part[1]),
    )
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


def _cut(module: fx.GraphModule, node: fx.Node) -> None:
    given, graph = arguments(node), module.graph
    weight = constant(module, given["weight"])
    assert weight is not None  # it was found by it
    rows, columns = _axes(node, weight)

    def call(operator: Any, *values: Any) -> fx.Node:
        with graph.inserting_before(node):
            made = graph.call_function(operator, values)
        made.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
        return made

    padded, whole = given["input"], None
    borders = [columns.before, columns.after, rows.before, rows.after]
    if any(borders):
        padded = call(aten.constant_pad_nd.default, padded, borders, 0.0)
    bias = given["bias"]
    for high, wide in _parts(rows.taps, columns.taps):
        read = padded
        for axis, along, part in ((-2, rows, high), (-1, columns, wide)):
            start, stop = along.read(part.start, part.stop - part.start)
            read = call(aten.slice.Tensor, read, axis, start, stop)
        held = add_constant(module, node, "weight_part", weight[:, :, high, wide].contiguous())
        strides = [[along.stride for along in (rows, columns)], [0, 0]]
        dilations = [along.dilation for along in (rows, columns)]
        made = call(aten.conv2d.default, read, held, bias, *strides, dilations, given["groups"])
        whole = made if whole is None else call(aten.add.Tensor, whole, made)
        bias = None
    assert whole is not None  # a kernel has a part
    whole.meta["val"] = node.meta["val"]
    replace_node(node, whole)
