"""A layer whose output is cut into pieces made one layer for each piece.

    q, k, v = chunk(W x + b)            q = W_q x + b_q, k = W_k x + b_k, v = W_v x + b_v

The weights of the pieces are rows of W, so the sums are the same; the copies that cut a tensor
along its channels are gone, and each piece is laid out as what reads it likes it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import fx

from edgevit.passes.base import PassReport, Refusal
from edgevit.passes.graph import (
    add_constant,
    arguments,
    as_int,
    constant,
    describe,
    layer_name,
    operation,
    readers,
    shape,
)

__all__ = ["RULE", "SplitLayers"]

aten = torch.ops.aten

SPLITS = {aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split}
#: The channels of a layer's output, counted from its end for Linear and from its front else.
CHANNELS = {aten.linear: -1, aten.conv1d: 1, aten.conv2d: 1, aten.conv3d: 1}


class SplitLayers:
    """Cuts layers into those that their pieces need."""

    name: ClassVar[str] = "split_layers"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` counts the layers that were made."""
        rewritten, made, refusals = 0, 0, []
        for node in list(module.graph.nodes):
            if not _cuts_a_layer(node):
                continue
            layer = node.args[0]
            if (reason := _refusal(module, node)) is not None:
                refusals.append(Refusal(layer_name(layer) or layer.name, reason))
                continue
            made += _cut(module, node)
            rewritten += 1
        return PassReport(self.name, rewritten, tuple(refusals), {"layers": made})


RULE = SplitLayers()


def _cuts_a_layer(node: fx.Node) -> bool:
    """Whether a node cuts the channels of a layer's output, each piece taken by name."""
    if operation(node) not in SPLITS or not isinstance(node.args[0], fx.Node):
        return False
    layer = node.args[0]
    if operation(layer) not in CHANNELS:
        return False
    rank = len(shape(layer))
    axis: int = arguments(node)["dim"]
    return (
        axis % rank == CHANNELS[operation(layer)] % rank
        and all(operation(user) is operator.getitem for user in node.users)
        and isinstance(node.meta["val"], list | tuple)
    )


def _refusal(module: fx.GraphModule, node: fx.Node) -> str | None:
    layer = node.all_input_nodes[0]
    values = arguments(layer)
    if any(reader is not node for reader in readers(layer)):
        return f"the whole of {describe(layer)} is read, too"
    if values.get("groups", 1) != 1:
        return f"{describe(layer)} has groups"
    held = [values["weight"], values["bias"]]
    if any(argument is not None and constant(module, argument) is None for argument in held):
        return f"the weights of {describe(layer)} are computed in the graph"
    return None


def _cut(module: fx.GraphModule, node: fx.Node) -> int:
    """One layer for each piece that is read; returns their number."""
    layer = node.all_input_nodes[0]
    rank, pieces = len(shape(layer)), node.meta["val"]
    axis = CHANNELS[operation(layer)] % rank
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + as_int(piece.shape[axis]))
    users = list(node.users)
    for user in users:
        index = int(user.args[1]) % len(pieces)  # type: ignore[arg-type]
        made = _piece(module, layer, starts[index], starts[index + 1])
        made.meta = {**layer.meta, "val": pieces[index].contiguous()}
        user.replace_all_uses_with(made)
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    module.graph.erase_node(layer)
    return len(users)


def _piece(module: fx.GraphModule, layer: fx.Node, start: int, end: int) -> fx.Node:
    """The layer of some of the output channels, before the whole one."""
    values: dict[str, Any] = dict(arguments(layer))
    for name in ("weight", "bias"):
        whole = constant(module, values[name])
        if whole is not None:
            values[name] = add_constant(module, layer, name, whole[start:end].clone())
    source, target = values.pop("input"), cast("Callable[..., Any]", layer.target)
    with module.graph.inserting_before(layer):
        return module.graph.call_function(target, (source,), values)
