"""A captured graph made fit for the TorchScript exporter, which runs it and writes what it sees.

What it would see otherwise, and what it gets instead (``s`` is the dynamic batch):

    s = sym_size(x, 0)                      a number of the example, baked in
        x.size(0)                           recorded as an operator
    view(x, [s, 49, 64]), flatten(x, 2)     Shape, Gather, Concat round every one of them
        reshape(x, [-1, 49, 64])            the capture knows the other sizes
    chunk(x, 3, -1)                         nine operators that compute where to cut
        split_with_sizes(x, [64, 64, 64])
    scaled_dot_product_attention            opset 14 and up only
        softmax(q · scale @ kᵀ + mask) @ v

Around each node its module's path is pushed as scope, from which :func:`layer_in_name` reads it
in the file. The exporter numbers scopes that come again, so a full stop marks where the path ends:

    stages.0.1.query    is called    /stages.0.1.query./Conv, /stages.0.1.query._1/Mul, ...
"""

from __future__ import annotations

import math
import operator
import re
from typing import Any

import torch
from torch import Tensor, fx

from exporters.failure import layer_of

__all__ = ["layer_in_name", "make_traceable"]

aten = torch.ops.aten
RESHAPES = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
}
IDENTITIES = {
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
}
SPLITS = {aten.chunk.default, aten.split.Tensor}
ASSERTIONS = {
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range_for_size.default,
}


def make_traceable(graph: fx.GraphModule) -> fx.GraphModule:
    """Rewrite a fresh GraphModule of a program in place, and give back one that runs."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function":
            _rewrite(graph.graph, node)
    graph.graph.eliminate_dead_code()
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target is not operator.getitem:
            _push_scope(graph.graph, node)
    graph.graph.lint()
    return fx.GraphModule(graph, graph.graph)


def layer_in_name(name: str) -> str:
    """The layer's path in the name that the exporter gave a node; empty at the top."""
    found = re.fullmatch(r"/(.+)\.(?:_\d+)?/[^/]+", name)
    return found.group(1) if found else ""


def _rewrite(graph: fx.Graph, node: fx.Node) -> None:
    if node.target in ASSERTIONS:
        graph.erase_node(node)
    elif node.target in IDENTITIES and isinstance(source := node.args[0], fx.Node):
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    elif node.target is aten.sym_size.int:
        node.target = Tensor.size
    elif node.target is aten.scaled_dot_product_attention.default:
        _spell_attention_out(node)
    elif node.target in RESHAPES and (sizes := _sizes(node)) is not None:
        node.target, node.kwargs = aten.reshape.default, {}
        node.args = (node.args[0], sizes)
    elif node.target in SPLITS and (parts := _parts(node)) is not None:
        node.target, node.kwargs = aten.split_with_sizes.default, {}
        node.args = (node.args[0], *parts)
    elif any(_is_size(argument) for argument in node.all_input_nodes):
        _call_by_name(node)


def _sizes(node: fx.Node) -> list[int] | None:
    """The node's output shape with -1 for the one size that is not a number."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    known = sizes.count(-1) <= 1 and 0 not in sizes
    return sizes if known else None


def _parts(node: fx.Node) -> tuple[list[int], int] | None:
    """Sizes of a split's parts and its axis, counted from the front."""
    values, rank = node.meta.get("val"), _rank(node.args[0])
    if not isinstance(values, (list, tuple)) or rank is None:
        return None
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    axis = int(dim) % rank  # type: ignore[arg-type]
    sizes = [value.shape[axis] for value in values]
    return (sizes, axis) if all(isinstance(size, int) for size in sizes) else None


def _rank(argument: Any) -> int | None:
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return value.dim() if isinstance(value, Tensor) else None


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _call_by_name(node: fx.Node) -> None:
    """torch's Python functions keep a traced size traced; ``torch.ops`` makes a number of it."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is not None:
        name = packet.__name__
        replacement: Any = getattr(Tensor, name, None) or getattr(torch, name, node.target)
        node.target = replacement


def _spell_attention_out(node: fx.Node) -> None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given.get("is_causal") or given.get("enable_gqa") or given.get("dropout_p"):
        return
    node.target, node.kwargs = _attention, {"scale": given.get("scale")}
    node.args = tuple(given.get(name) for name in names[:4])


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ value


def _push_scope(graph: fx.Graph, node: fx.Node) -> None:
    if layer := layer_of(node):
        with graph.inserting_before(node):
            # The tracer takes a scope for a module's only when it reads "class::path".
            graph.call_function(_enter, (f"layer::{layer}.",))
        with graph.inserting_after(node):
            graph.call_function(_leave)


def _enter(scope: str) -> None:
    if (tracing := torch._C._get_tracing_state()) is not None:
        tracing.push_scope(scope)


def _leave() -> None:
    if (tracing := torch._C._get_tracing_state()) is not None:
        tracing.pop_scope()
