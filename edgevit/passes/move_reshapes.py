"""Reshapes between a map and its list of positions moved to where the fewest are needed.

    x + unflatten(y) = unflatten(flatten(x) + y)        x a map (B, C, H, W), y a list (B, C, HW)
    flatten(conv2d(x, W)) = conv1d(flatten(x), W)       W of 1 x 1
    flatten(chunk(x, n, 1)[i]) = chunk(flatten(x), n, 1)[i]

and so on for cat and for what goes element by element.

Attention computes with lists and the convolutions round it with maps. A runtime copies nothing for
a reshape, but each costs it a call, and EfficientViT-M0 makes 37 of its 457 for nothing: 1.4 to
3.6 % of its time in onnxruntime, 4.1 to 7.6 % in OpenVINO, where a call costs a share of so small
a model. In M4, M5 and SOFT, which also make fewer, onnxruntime shows nothing.

Which values had best be lists is a minimum cut: what only maps can do lies on one side, what reads
or gives lists on the other, and a value that is needed on both costs a reshape. An operation that
could do either stays with maps where that is no dearer, so that it keeps its place in a kernel
that fuses it. A convolution may only change sides where most of what reads it reads lists, and
nothing that it reads comes straight from another one: onnxruntime keeps such maps in blocks of
channels, in which they are convolved faster (LeViT loses 2 % otherwise).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import fx

from edgevit.passes.base import PassReport
from edgevit.passes.graph import (
    add_constant,
    arguments,
    constant,
    operation,
    readers,
    replace_node,
    shape,
    written_after,
)

__all__ = ["RULE", "MoveReshapes"]

aten = torch.ops.aten

UNARY = {
    aten.elu,
    aten.exp,
    aten.gelu,
    aten.hardsigmoid,
    aten.hardswish,
    aten.hardtanh,
    aten.leaky_relu,
    aten.neg,
    aten.relu,
    aten.relu6,
    aten.sigmoid,
    aten.silu,
    aten.sqrt,
    aten.tanh,
}
BINARY = {aten.add, aten.div, aten.mul, aten.sub}
SPLITS = {aten.chunk, aten.split, aten.split_with_sizes}
#: Reshapes that name every size, so that what they read may have any shape.
VIEWS = {aten.reshape, aten.view}
RESHAPES = {*VIEWS, aten.flatten, aten.unflatten}

#: What a reshape costs, and an operation on a list in place of a map.
RESHAPE, CHANGE = 1000, 1


class MoveReshapes:
    """Computes with lists of positions where that takes fewer reshapes."""

    name: ClassVar[str] = "move_reshapes"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place. ``rewritten`` counts operations, ``details`` reshapes that are gone."""
        nets, written = _nets(module), _count_reshapes(module.graph)
        chosen = _cut(nets) if any(LIST in net for net in nets) else set()
        for node in [node for node in module.graph.nodes if _deciding(node) in chosen]:
            _change(module, node)
        _join_reshapes(module.graph)
        module.graph.eliminate_dead_code()
        gone = written - _count_reshapes(module.graph)
        return PassReport(self.name, len(chosen) or gone, details={"reshapes": gone})


RULE = MoveReshapes()

#: Of a net's members: those that want a map whatever comes, and those that want a list.
MAP, LIST = "map", "list"

#: Who gives and reads one value: nodes that can do either, and ``MAP`` or ``LIST`` for others.
_Net = set[fx.Node | str]


# -- the choice -----------------------------------------------------------------------------------


def _nets(module: fx.GraphModule) -> list[_Net]:
    movable = {node for node in module.graph.nodes if _is_movable(module, node)}
    nets = []
    for node in module.graph.nodes:
        if _is_value(node) and not _is_converter(node):
            ends = [(node, len(shape(node)) == 4), *_readers(node)]
            members = [_as_member(*end, movable) for end in ends]
            nets.append({member for member in members if member is not None})
    return [net for net in nets if len(net) > 1]


def _is_value(node: fx.Node) -> bool:
    value = node.meta.get("val") if node.op != "get_attr" else None
    return isinstance(value, torch.Tensor) and value.dim() in (3, 4)


def _is_converter(node: fx.Node) -> bool:
    """Whether it makes a list of a map, (B, C, H, W) to (B, C, HW), or the other way round."""
    if operation(node) not in RESHAPES:
        return False
    source = node.args[0]
    if not isinstance(source, fx.Node) or not _is_value(source) or not _is_value(node):
        return False
    a, b = sorted((shape(source), shape(node)), key=len)
    return len(a) == 3 and len(b) == 4 and a == (*b[:2], b[2] * b[3])


def _readers(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """Who reads a value in either form, and whether as a map."""
    for reader in readers(node):
        if _is_converter(reader):
            yield from _readers(reader)
        else:
            yield reader, len(shape(node)) == 4


def _as_member(node: fx.Node, as_map: bool, movable: set[fx.Node]) -> fx.Node | str | None:
    """Who gives or reads a value; None for a reshape, to which either form is the same."""
    if (deciding := _deciding(node)) in movable and as_map:
        return deciding
    if operation(node) in VIEWS and as_map:
        return None
    return MAP if as_map else LIST


def _deciding(node: fx.Node) -> fx.Node:
    """The pieces of a cut have the form of what is cut."""
    source = node.args[0] if operation(node) is operator.getitem else None
    return source if isinstance(source, fx.Node) and operation(source) in SPLITS else node


def _cut(nets: list[_Net]) -> set[fx.Node]:
    """The nodes that work with lists in the cheapest choice."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from((MAP, LIST))
    for number, net in enumerate(nets):
        one, other = ("any map", number), ("any list", number)
        graph.add_edge(one, other, capacity=RESHAPE)
        for member in net:
            graph.add_edge(member, one)
            graph.add_edge(other, member)
            if isinstance(member, fx.Node):
                graph.add_edge(MAP, member, capacity=CHANGE)
    _, (_, listed) = networkx.minimum_cut(graph, MAP, LIST)
    return {node for node in listed if isinstance(node, fx.Node)}


# -- what can work with either --------------------------------------------------------------------


def _is_movable(module: fx.GraphModule, node: fx.Node) -> bool:
    sources = _sources(module, node)
    return bool(sources) and all(
        _is_value(source) and len(shape(source)) == 4 and written_after(source, source) is None
        for source in sources
    )


def _sources(module: fx.GraphModule, node: fx.Node) -> list[Any]:
    """The maps that a node goes over by position and channel; none if it does anything else."""
    op = operation(node)
    if op in UNARY:
        return [node.args[0]]
    if op in BINARY:
        return _operands(module, node)
    if op is aten.cat and arguments(node)["dim"] == 1:
        return list(arguments(node)["tensors"])
    if op in SPLITS and arguments(node)["dim"] == 1:
        pieces = all(operation(user) is operator.getitem for user in node.users)
        return [node.args[0]] if pieces else []
    if op is aten.conv2d and _is_pointwise(module, node) and _is_between_lists(node):
        return [node.args[0]]
    return []


def _operands(module: fx.GraphModule, node: fx.Node) -> list[Any]:
    held = [arg for arg in node.args if isinstance(arg, fx.Node)]
    maps = [arg for arg in held if constant(module, arg) is None]
    same = all(_is_value(arg) and shape(arg) == shape(node) for arg in maps)
    even = all(_is_even(module, arg) for arg in held if arg not in maps)
    return maps if same and even and not node.kwargs.get("rounding_mode") else []


def _is_even(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a constant is the same at every position."""
    value = constant(module, node)
    return value is not None and (value.dim() == 0 or value.shape[-2:] == (1, 1))


def _is_pointwise(module: fx.GraphModule, node: fx.Node) -> bool:
    values = arguments(node)
    weight = constant(module, values["weight"])
    return (
        weight is not None
        and tuple(weight.shape[2:]) == (1, 1)
        and values["groups"] == 1
        and all(step == 1 for step in values["stride"])
        and values["padding"] in (0, [0], [0, 0], "valid", "same")
    )


def _is_between_lists(node: fx.Node) -> bool:
    """Whether half of what reads it, or pieces of it, wants lists, and no other is near."""
    source: Any = node.args[0]
    near = [source, *(source.all_input_nodes if operation(source) in UNARY | BINARY else [])]
    if any(operation(other) is aten.conv2d for other in near):
        return False
    pieces, found = [node], readers(node)
    if len(found) == 1 and operation(found[0]) in SPLITS:
        pieces = list(found[0].users)
    ends = [reader for piece in pieces for reader in readers(piece)]
    return 2 * sum(_is_converter(end) for end in ends) >= len(ends) > 0


# -- the rewrite ----------------------------------------------------------------------------------


def _change(module: fx.GraphModule, node: fx.Node) -> None:
    """Let a node work with a list; its readers get a map of that."""
    target, args, kwargs = node.target, node.args, node.kwargs
    if operation(node) is aten.conv2d:
        values = arguments(node)
        target, kwargs = aten.conv1d.default, {}
        args = (values["input"], values["weight"], values["bias"])
    made = _made(node, target, fx.map_arg(args, lambda arg: _as_list(module, node, arg)), kwargs)
    if operation(node) in SPLITS:
        # Only its pieces have a form, and they are next.
        node.replace_all_uses_with(made)
        return
    made.meta["val"] = node.meta["val"].flatten(2)
    sides = list(node.meta["val"].shape[2:])
    map_of = _made(node, aten.unflatten.int, (made, 2, sides))
    map_of.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(map_of)


def _made(node: fx.Node, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args, kwargs)
    made.meta = dict(node.meta)
    return made


def _as_list(module: fx.GraphModule, node: fx.Node, argument: fx.Node) -> Any:
    """What a node reads, for lists."""
    held = constant(module, argument)
    if held is not None and held.shape[-2:] == (1, 1):
        return add_constant(module, node, "weight", held.squeeze(-1))
    if held is not None or not _is_value(argument):
        return argument
    if _is_converter(argument):  # of a list that is there already
        return argument.args[0]
    made = _made(node, aten.flatten.using_ints, (argument, 2))
    made.meta = {**argument.meta, "val": argument.meta["val"].flatten(2)}
    return made


def _join_reshapes(graph: fx.Graph) -> None:
    """Let each reshape read what the one before it reads, and none stand twice."""
    seen: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = {}
    for node in list(graph.nodes):
        if operation(node) not in RESHAPES:
            continue
        source = node.args[0]
        while operation(source) in RESHAPES:
            source = source.args[0]
        if written_after(source, source) is not None:
            continue
        if shape(source) == shape(node):
            replace_node(node, source)
            continue
        sizes = tuple(size if isinstance(size, int) else -1 for size in node.meta["val"].shape)
        if sizes.count(-1) > 1:
            continue
        if source is not node.args[0]:
            node.target, node.args, node.kwargs = aten.reshape.default, (source, sizes), {}
        node.replace_all_uses_with(seen.setdefault((source, sizes), node))


def _count_reshapes(graph: fx.Graph) -> int:
    return sum(operation(node) in RESHAPES for node in graph.nodes)
