"""Softmax kept out of the layout that XNNPACK's convolutions compute in.

ExecuTorch has XNNPACK keep a feature map with channels last from a convolution on, through whatever
works element by element. Softmax it takes for such an operator, and XNNPACK's softmax runs along
the last axis in memory: along the channels, where the columns were meant. A reshape needs the
order that the program has, so one before and one after puts that right:

    given     softmax(x, -1)                                 x (B, C, H, W), behind a convolution
    result    reshape(softmax(reshape(x, (B·C·H, W)), -1), (B, C, H, W))
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["softmax_in_rows"]

aten = torch.ops.aten
SOFTMAX = {aten.softmax.int, aten._softmax.default}
#: What computes with channels last in XNNPACK.
CHANNELS_LAST = {
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.convolution.default,
    aten.conv_transpose2d.input,
    aten.mean.dim,
    aten.amax.default,
    aten.max.dim,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.upsample_bilinear2d.vec,
    aten.prelu.default,
}
#: Behind one of these the axes stand in memory as the program has them.
AS_GIVEN = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.matmul.default,
    aten.bmm.default,
    aten.linear.default,
    aten.scaled_dot_product_attention.default,
}


def softmax_in_rows(program: Program) -> Program:
    """The program with every softmax of a feature map in rows; the very same if it has none."""
    graph = program.graph_module()
    found = [node for node in graph.graph.nodes if _is_of_a_map(node)]
    for node in found:
        _reshape_round(graph.graph, node)
    return program.rewritten(graph) if found else program


def _is_of_a_map(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in SOFTMAX or _rank(node) != 4:
        return False
    return node.args[1] in (-1, 3) and _behind_a_convolution(node)


def _behind_a_convolution(node: fx.Node) -> bool:
    """Whether something that computes with channels last comes before, and nothing in between."""
    seen, todo = {node}, list(node.all_input_nodes)
    while todo:
        source = todo.pop()
        if source in seen or _rank(source) != 4 or source.target in AS_GIVEN:
            continue
        if source.target in CHANNELS_LAST:
            return True
        seen.add(source)
        todo += source.all_input_nodes
    return False


def _rank(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else None


def _reshape_round(graph: fx.Graph, node: fx.Node) -> None:
    source, shape = node.all_input_nodes[0], list(node.meta["val"].shape)
    with graph.inserting_before(node):
        rows = graph.call_function(
            aten.reshape.default, (source, [math.prod(shape[:-1]), shape[-1]])
        )
    with graph.inserting_after(node):
        back = graph.call_function(aten.reshape.default, (node, shape))
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    node.args = (rows, -1, *node.args[2:])
