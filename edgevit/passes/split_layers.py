"""A Linear whose output is cut into pieces made one Linear for each piece.

    q, k, v = chunk(W x + b)            q = W_q x + b_q, k = W_k x + b_k, v = W_v x + b_v

The weights of the pieces are rows of W, so the sums are the same; the copies that cut a tensor
along its channels are gone, and each piece is laid out as what reads it likes it. The cut may also
stand behind a reshape and a permutation, as most attention is written:

    q, k, v = unbind(permute(reshape(W x + b, (B, N, 3, H, D)), (2, 0, 3, 1, 4)))
    q = permute(reshape(W_q x + b_q, (B, N, H, D)), (0, 2, 1, 3)), ...

and a five-dimensional permutation, slow everywhere, becomes three of four dimensions.

On one thread of an x86-64, DeiT-S gains 1.4 +- 0.4 % in onnxruntime and 6.6 +- 1.5 % in LiteRT,
XCiT-S12 4.7 +- 1.5 % and Swin-T 4.3 +- 3.1 % in LiteRT. In OpenVINO, in SOFT and in small ViTs
outside onnxruntime nothing is shown, and nothing was slower.

Convolutions stay whole: a product with few channels costs more than the copy that it saves (0.96 of
EfficientViT-M5's speed in onnxruntime).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx

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
RESHAPES = {aten.view, aten.reshape}


class SplitLayers:
    """Cuts Linears into those that their pieces need."""

    name: ClassVar[str] = "split_layers"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``details`` counts the layers that were made."""
        rewritten, made, refusals = 0, 0, []
        for node in list(module.graph.nodes):
            if operation(node) is not aten.linear:
                continue
            cut = _plain_cut(node) or _laid_out_cut(node)
            if cut is None:
                continue
            if (reason := _refusal(module, node)) is not None:
                refusals.append(Refusal(layer_name(node) or node.name, reason))
                continue
            made += cut.make(module)
            rewritten += 1
        return PassReport(self.name, rewritten, tuple(refusals), {"layers": made})


RULE = SplitLayers()


@dataclass(frozen=True)
class _Cut:
    """A layer and the pieces that are taken of its output.

    Args:
        layer: the layer.
        taken: nodes that are pieces, with the rows of the weight that each is made of.
        shaping: what lies between layer and pieces, as functions that do the same to one piece.
    """

    layer: fx.Node
    taken: list[tuple[fx.Node, Tensor]]
    shaping: list[Callable[[fx.Node], fx.Node]]

    def make(self, module: fx.GraphModule) -> int:
        """Make a layer for each piece; returns their number."""
        for piece, rows in self.taken:
            with module.graph.inserting_before(piece):
                made = _layer_of(module, self.layer, piece, rows)
                for shape_piece in self.shaping:
                    made = shape_piece(made)
            piece.replace_all_uses_with(made)
            module.graph.erase_node(piece)
        module.graph.eliminate_dead_code()
        return len(self.taken)


def _plain_cut(layer: fx.Node) -> _Cut | None:
    """The channels cut as they come out of the layer."""
    cuts = [user for user in layer.users if operation(user) in SPLITS]
    if len(cuts) != 1 or any(operation(user) is not operator.getitem for user in cuts[0].users):
        return None
    (cut,), axis = cuts, len(shape(layer)) - 1
    if arguments(cut)["dim"] not in (-1, axis):
        return None
    sizes = [as_int(piece.shape[axis]) for piece in cut.meta["val"]]
    rows = torch.split(torch.arange(sum(sizes)), sizes)
    return _Cut(layer, [(user, rows[_index(user)]) for user in cut.users], [])


def _laid_out_cut(layer: fx.Node) -> _Cut | None:
    """One axis of the reshaped and permuted channels taken apart."""
    view = _only_user(layer, RESHAPES)
    moved = _only_user(view, {aten.permute}) if view is not None else None
    if view is None or moved is None:
        return None
    order: list[int] = [axis % len(shape(view)) for axis in arguments(moved)["dims"]]
    pieces = _pieces(moved)
    first = len(shape(layer)) - 1  # of the axes that the channels became
    if pieces is None or shape(view)[:first] != shape(layer)[:first]:
        return None
    (place, taken), channels = pieces, shape(view)[first:]
    axis = order[place]
    if axis < first:
        return None
    rows = torch.arange(math.prod(channels)).reshape(channels).movedim(axis - first, 0)
    sizes = list(cast("list[Any]", view.args[1]))
    del sizes[axis]
    dims = [a - (a > axis) for a in order if a != axis]

    def reshape(made: fx.Node) -> fx.Node:
        return _call(aten.reshape.default, made, sizes)

    def permute(made: fx.Node) -> fx.Node:
        return _call(aten.permute.default, made, dims)

    return _Cut(layer, [(node, rows[i].flatten()) for node, i in taken], [reshape, permute])


def _pieces(node: fx.Node) -> tuple[int, list[tuple[fx.Node, int]]] | None:
    """The axis that every reader takes one index of, and the readers with their index."""
    taken, axes, rank = [], set(), len(shape(node))
    for user in node.users:
        if operation(user) is aten.unbind:
            axes.add(arguments(user)["dim"] % rank)
            taken += [(getitem, _index(getitem)) for getitem in user.users]
        elif operation(user) is aten.select:
            axes.add(arguments(user)["dim"] % rank)
            taken.append((user, arguments(user)["index"]))
        else:
            return None
    return (axes.pop(), taken) if len(axes) == 1 else None


def _only_user(node: fx.Node, operations: set[Any]) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and operation(users[0]) in operations else None


def _index(getitem: fx.Node) -> int:
    return cast("int", getitem.args[1])


def _refusal(module: fx.GraphModule, layer: fx.Node) -> str | None:
    values = arguments(layer)
    if len(readers(layer)) != 1:
        return f"the whole of {describe(layer)} is read, too"
    held = [values["weight"], values["bias"]]
    if any(argument is not None and constant(module, argument) is None for argument in held):
        return f"the weights of {describe(layer)} are computed in the graph"
    return None


def _layer_of(module: fx.GraphModule, layer: fx.Node, piece: fx.Node, rows: Tensor) -> fx.Node:
    """The layer of some of the output channels."""
    values: dict[str, Any] = dict(arguments(layer))
    for name in ("weight", "bias"):
        whole = constant(module, values[name])
        if whole is not None:
            own = add_constant(module, layer, name, whole[rows].contiguous())
            values[name] = own
    source = values.pop("input")
    made = module.graph.call_function(cast("Callable[..., Any]", layer.target), (source,), values)
    made.meta = dict(layer.meta)
    made.meta["val"] = layer.meta["val"].narrow(-1, 0, len(rows)).contiguous()
    return made


def _call(target: Any, source: fx.Node, argument: list[Any]) -> fx.Node:
    made = source.graph.call_function(target, (source, argument))
    values = fx.map_arg(argument, lambda node: node.meta["val"])
    made.meta = {**source.meta, "val": target(source.meta["val"], values)}
    return made
