"""Constants that are added to scores one after the other, added at once.

    softmax(reshape(s + b) + m) = softmax(reshape(s) + (b + m))                b, m constant

where the reshape leaves the axes alone that b has. Shifted windows add the bias of positions for
each head, and what must not see each other for each window, round which the scores of all images'
windows are reshaped to windows of each image. Of one image both reshapes go, too:

    reshape(reshape(s, (1, n, h, N, N)) + c, (n, h, N, N)) = s + c                    c (n, h, N, N)

after which this is attention with one mask, as runtimes have kernels for. The sum has a number for
each window and head: 2.9 MB more for Swin-T at batch 1, 2.5 % of its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from edgevit.passes.base import PassReport
from edgevit.passes.graph import (
    add_constant,
    constant,
    operation,
    replace_node,
    shape,
    written_after,
)
from edgevit.passes.lower_masks import ends_in_softmax

__all__ = ["RULE", "JoinMasks"]

aten = torch.ops.aten

RESHAPES = {aten.reshape, aten.view}


class JoinMasks:
    """Joins the constants that are added to what a softmax is taken of."""

    name: ClassVar[str] = "join_masks"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place."""
        rewritten = 0
        for node in list(module.graph.nodes):
            while (found := _sums(module, node)) is not None:
                node = _join(module, *found)
                rewritten += 1
        return PassReport(self.name, rewritten)


RULE = JoinMasks()


@dataclass(frozen=True)
class _Sum:
    """A constant added to a value.

    Args:
        node: the sum.
        value: what it is added to.
        held: the constant.
    """

    node: fx.Node
    value: fx.Node
    held: Tensor


def _sum(module: fx.GraphModule, node: Any) -> _Sum | None:
    """A node as the sum of a value and a constant that makes it no larger."""
    if operation(node) is not aten.add or node.kwargs:
        return None
    for value, other in (node.args, node.args[::-1]):
        held = constant(module, other)
        if held is not None and isinstance(value, fx.Node) and shape(value) == shape(node):
            return _Sum(node, value, held) if held.is_floating_point() else None
    return None


def _sums(module: fx.GraphModule, node: fx.Node) -> tuple[_Sum, fx.Node | None, _Sum] | None:
    """Two sums, the second one a node's, and the reshape between them if there is one."""
    second = _sum(module, node)
    if second is None or not ends_in_softmax(node):
        return None
    between = second.value if operation(second.value) in RESHAPES else None
    source: Any = between.args[0] if between else second.value
    first = _sum(module, source)
    if first is None or len(first.node.users) != 1 or (between and len(between.users) != 1):
        return None
    if between and not _keeps_axes(first, between):
        return None
    if written_after(first.value, first.node, until=node) is not None:
        return None
    return first, between, second


def _keeps_axes(first: _Sum, between: fx.Node) -> bool:
    """Whether a reshape changes none of the axes that the constant has."""
    axes = first.held.dim()
    if axes == 0:
        return True
    same = shape(first.node)[-axes:] == shape(between)[-axes:]
    return same and axes <= len(shape(first.node)) and axes <= len(shape(between))


def _join(module: fx.GraphModule, first: _Sum, between: fx.Node | None, second: _Sum) -> fx.Node:
    """Put one sum in the place of two; returns it."""
    graph, node, held = module.graph, second.node, first.held + second.held
    value = first.value
    one_image = between is not None and shape(between) == (1, *shape(value))
    if between is not None and not one_image:
        with graph.inserting_before(node):
            value = graph.call_function(aten.reshape.default, (value, between.args[1]))
        value.meta = dict(between.meta)
    if one_image:
        held = held.reshape(held.shape[-len(shape(value)) :])
    mask = add_constant(module, node, "mask", held)
    with graph.inserting_before(node):
        made = graph.call_function(aten.add.Tensor, (value, mask))
    made.meta = {**node.meta, "val": value.meta["val"]}
    if one_image:
        _read_instead(graph, node, made)
    else:
        replace_node(node, made)
    for dead in (between, first.node):
        if dead is not None:
            graph.erase_node(dead)
    return made


def _read_instead(graph: fx.Graph, node: fx.Node, made: fx.Node) -> None:
    """Let what reads the windows of one image read the same without the axis of images."""
    for reader in [user for user in node.users if operation(user) in RESHAPES]:
        if shape(reader) == shape(made):
            replace_node(reader, made)
    if not node.users:
        graph.erase_node(node)
        return
    with graph.inserting_before(node):
        back = graph.call_function(aten.reshape.default, (made, list(shape(node))))
    back.meta = dict(node.meta)
    replace_node(node, back)
