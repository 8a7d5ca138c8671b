"""Reading and editing a captured graph: constants, layer names, arguments, readers, shapes.

A node is an ``aten`` call as ``torch.export`` writes it. Weights are ``get_attr`` nodes, and one of
them may serve several layers (tied weights), so a weight is never changed: a use of it is given a
new constant.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = [
    "add_constant",
    "arguments",
    "as_int",
    "constant",
    "describe",
    "is_identity",
    "layer_name",
    "operation",
    "readers",
    "replace_node",
    "set_argument",
    "set_constant",
    "shape",
    "written_after",
]

aten = torch.ops.aten

#: Read the shape of their argument at this position, never its values.
SHAPE_READERS = {
    aten.sym_size: 0,
    aten.sym_numel: 0,
    aten.view_as: 1,
    aten.reshape_as: 1,
    aten.expand_as: 1,
    aten.zeros_like: 0,
    aten.ones_like: 0,
    aten._assert_tensor_metadata: 0,
}
DROPOUTS = {aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout}
#: What a view is where it may need a copy.
RESHAPES: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten.view_as.default: aten.reshape_as.default,
}
#: A batch that is neither 1 nor the size of a usual split.
STAND_IN_BATCH = 3
#: In-place by name and schema, but they leave the values as they are.
HARMLESS = {aten.detach_}


def operation(node: fx.Node) -> Any:
    """The operator a node calls, whatever the overload; None for a node that calls nothing."""
    if node.op != "call_function":
        return None
    return getattr(node.target, "overloadpacket", node.target)


def layer_name(node: fx.Node) -> str:
    """Path in the source model of the module that made this node; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def describe(node: fx.Node) -> str:
    """The node in words for a message: ``gelu in stem.0.2``."""
    if node.op != "call_function":
        kinds = {"placeholder": "the model's input", "output": "the model's output"}
        return kinds.get(node.op, f"the constant {node.target}")
    layer = layer_name(node) or "the model's own forward"
    return f"{operation(node).__name__.lstrip('_')} in {layer}"


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value; a dynamic batch counts as :data:`STAND_IN_BATCH`."""
    return tuple(as_int(size) for size in node.meta["val"].shape)


def as_int(size: int | torch.SymInt) -> int:
    """A size as a number; a dynamic batch counts as :data:`STAND_IN_BATCH`."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, STAND_IN_BATCH)))


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ``aten`` call by their names in its schema, defaults filled in."""
    values = dict(node.kwargs)
    for position, argument in enumerate(_schema(node).arguments):
        if position < len(node.args):
            values[argument.name] = node.args[position]
        else:
            values.setdefault(argument.name, argument.default_value)
    return values


def _schema(node: fx.Node) -> Any:
    target: Any = node.target
    return target._schema


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Give one argument of an ``aten`` call, by its name in the schema, another value."""
    names = [argument.name for argument in _schema(node).arguments]
    position = names.index(name)
    given = arguments(node)
    if name in node.kwargs:
        node.kwargs = {**node.kwargs, name: value}
        return
    positional = [given[n] for n in names[: max(len(node.args), position + 1)]]
    positional[position] = value
    node.args = tuple(positional)
    node.kwargs = {n: v for n, v in node.kwargs.items() if n not in names[: len(positional)]}


def readers(node: fx.Node) -> list[fx.Node]:
    """The nodes that read this one's values, in order; who only asks its shape is left out."""
    return sorted(user for user in node.users if not _reads_shape_only(user, node))


def _reads_shape_only(user: fx.Node, node: fx.Node) -> bool:
    position = SHAPE_READERS.get(operation(user))
    if position is None:
        return False
    return all(arg is not node or i == position for i, arg in enumerate(user.args))


def is_identity(node: fx.Node) -> bool:
    """Whether a node gives the values of its first argument, in the same type."""
    op = operation(node)
    if op in DROPOUTS:
        return not arguments(node)["train"]
    if op in {aten.to, aten._to_copy}:
        source = node.args[0]
        return isinstance(source, fx.Node) and _same_kind(node, source)
    return op in {
        aten.alias,
        aten.clone,
        aten.contiguous,
        aten.detach,
        aten.detach_,
        aten.lift_fresh_copy,
    }


def _same_kind(node: fx.Node, other: fx.Node) -> bool:
    a, b = node.meta["val"], other.meta["val"]
    return bool(a.dtype == b.dtype and a.device == b.device)


# -- constants ------------------------------------------------------------------------------------


def constant(module: fx.GraphModule, node: object) -> Tensor | None:
    """The tensor behind a ``get_attr`` node; None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else None


def set_constant(module: fx.GraphModule, node: fx.Node, name: str, value: Tensor) -> None:
    """Give one argument of a call a new constant, and leave every other use of the old one alone.

    Args:
        module: owner of the constants.
        node: the call.
        name: of the argument in the schema (``"weight"``).
        value: the new constant; it keeps the old one's name where nothing else uses that.
    """
    value = _in_order(value)
    old = arguments(node)[name]
    if isinstance(old, fx.Node) and _only_use(module, old, node):
        target = str(old.target)
    else:
        target = _free_name(module, f"{layer_name(node) or node.name}.{name}")
    parent, _, leaf = target.rpartition(".")
    # A parameter stays one, so that what counts parameters counts this one.
    setattr(_submodule(module, parent), leaf, nn.Parameter(value, requires_grad=False))
    with module.graph.inserting_before(node):
        made = module.graph.get_attr(target)
    made.meta["val"] = value
    set_argument(node, name, made)
    if isinstance(old, fx.Node) and not old.users:
        module.graph.erase_node(old)


def add_constant(
    module: fx.GraphModule, node: fx.Node, name: str, value: Tensor, target: str | None = None
) -> fx.Node:
    """A new ``get_attr`` node before ``node``, of a new buffer.

    Args:
        module: owner of the constants.
        node: the call whose layer the constant belongs to.
        name: of the constant in that layer.
        value: of the constant.
        target: of a constant of this value that is there already.
    """
    value = _in_order(value)
    if target is None:
        layer = layer_name(node)
        target = _free_name(module, f"{layer}.{name}" if layer else name)
        parent, _, leaf = target.rpartition(".")
        _submodule(module, parent).register_buffer(leaf, value)
    with module.graph.inserting_before(node):
        made = module.graph.get_attr(target)
    made.meta["val"] = value
    return made


def _in_order(value: Tensor) -> Tensor:
    """A tensor with the strides of its shape.

    Along an axis of one, ``contiguous`` leaves any; ExecuTorch takes them for another layout.
    """
    return value.reshape(-1).view(value.shape)


def _only_use(module: fx.GraphModule, old: fx.Node, node: fx.Node) -> bool:
    same = module.graph.find_nodes(op="get_attr", target=old.target)
    return same == [old] and list(old.users) == [node]


def _free_name(module: fx.GraphModule, wanted: str) -> str:
    names = chain([wanted], (f"{wanted}_{i}" for i in count(1)))
    return next(name for name in names if not _is_taken(module, name))


def _is_taken(module: nn.Module, path: str) -> bool:
    value: Any = module
    for part in path.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def _submodule(module: nn.Module, path: str) -> nn.Module:
    for part in path.split(".") if path else ():
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    return module


# -- aliases and replacement ----------------------------------------------------------------------


def written_after(node: fx.Node, moment: fx.Node, until: fx.Node | None = None) -> fx.Node | None:
    """A node that writes into this node's memory, directly or through a view.

    Args:
        node: whose memory.
        moment: only nodes behind this one count,
        until: and only those before this one.
    """
    while (source := _viewed(node)) is not None:
        node = source
    for value in _aliases(node):
        for user in value.users:
            late = moment < user and (until is None or user < until)
            if late and _access(user, value) == "writes":
                return user
    return None


def _aliases(node: fx.Node) -> Iterator[fx.Node]:
    yield node
    for user in node.users:
        if _access(user, node) is not None:
            yield from _aliases(user)


def _viewed(node: fx.Node) -> fx.Node | None:
    return next((a for a in node.all_input_nodes if _access(node, a) is not None), None)


def _access(user: fx.Node, node: fx.Node) -> str | None:
    """Whether a user ``"writes"`` into the memory of a node, ``"views"`` it, or takes a copy."""
    op = operation(user)
    if op is operator.getitem or op in HARMLESS or op in DROPOUTS:
        return "views"
    if not hasattr(user.target, "_schema"):
        return None
    infos = [
        info.alias_info
        for value, info in zip(user.args, _schema(user).arguments, strict=False)
        if value is node and info.alias_info is not None
    ]
    if any(info.is_write for info in infos):
        return "writes"
    return "views" if infos else None


def replace_node(node: fx.Node, by: fx.Node) -> None:
    """Let everything that reads ``node`` read ``by`` instead, and remove ``node``.

    Where the two lie differently in memory, a ``view`` of the result may no longer be possible; it
    becomes a ``reshape``, which is the same otherwise.
    """
    if _strides(node) != _strides(by):
        for value in list(_aliases(node)):
            value.target = RESHAPES.get(value.target, value.target)
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _strides(node: fx.Node) -> list[int]:
    return [as_int(step) for step in node.meta["val"].stride()]
