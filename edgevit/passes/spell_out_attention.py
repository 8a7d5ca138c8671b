"""Attention in one operator made products and a softmax.

    scaled_dot_product_attention(q, k, v, m) = softmax((s q) kᵀ + m) v         s = 1 / sqrt(d)

Exporters spell the operator out by themselves, each in its own way: with the root of s on q and on
k, or with operators that a runtime has no fast kernel for. Spelled out here, the scale is one
factor that :mod:`edgevit.passes.fold_affine` finds, and so is a mask of truth values, which becomes
a constant 0 or -inf.

Where the numbers of a mask are not known, a row of it may forbid everything; the operator gives
zeros there and a softmax no number, so attention with such a mask of truth values stays.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from edgevit.passes.base import PassReport, Refusal
from edgevit.passes.graph import (
    add_constant,
    arguments,
    constant,
    layer_name,
    operation,
    replace_node,
)

__all__ = ["RULE", "SpellOutAttention"]

aten = torch.ops.aten


class SpellOutAttention:
    """Makes products and a softmax of ``scaled_dot_product_attention``."""

    name: ClassVar[str] = "spell_out_attention"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place."""
        rewritten, refusals = 0, []
        for node in list(module.graph.nodes):
            if operation(node) is not aten.scaled_dot_product_attention:
                continue
            if (reason := _refusal(module, node)) is not None:
                refusals.append(Refusal(layer_name(node) or node.name, reason))
                continue
            _spell_out(module, node)
            rewritten += 1
        return PassReport(self.name, rewritten, tuple(refusals))


RULE = SpellOutAttention()


def _refusal(module: fx.GraphModule, node: fx.Node) -> str | None:
    values = arguments(node)
    if values["dropout_p"]:
        return "it drops weights at random"
    if values["enable_gqa"]:
        return "queries share heads of keys"
    mask = values["attn_mask"]
    if mask is not None and mask.meta["val"].dtype is torch.bool:
        allowed = constant(module, mask)
        if allowed is None:
            return "its mask of truth values is computed in the graph"
        if not bool(allowed.any(-1).all()):
            return "its mask forbids every key to some query"
    return None


def _spell_out(module: fx.GraphModule, node: fx.Node) -> None:
    values = arguments(node)
    query, key, value = values["query"], values["key"], values["value"]
    scale = values["scale"]
    if scale is None:
        scale = 1 / math.sqrt(query.meta["val"].shape[-1])

    def call(target: Any, *given: Any) -> fx.Node:
        with module.graph.inserting_before(node):
            made = module.graph.call_function(target, given)
        known = fx.map_arg(given, lambda n: n.meta["val"])
        made.meta = {**node.meta, "val": target(*known)}
        return made

    scaled = call(aten.mul.Tensor, query, scale)
    scores = call(aten.matmul.default, scaled, call(aten.transpose.int, key, -2, -1))
    if (mask := _mask(module, node, values)) is not None:
        scores = call(aten.add.Tensor, scores, mask)
    replace_node(node, call(aten.matmul.default, call(aten.softmax.int, scores, -1), value))


def _mask(module: fx.GraphModule, node: fx.Node, values: dict[str, Any]) -> fx.Node | None:
    """What is added to the scores; None for nothing."""
    mask: fx.Node | None = values["attn_mask"]
    if values["is_causal"]:
        queries, keys = (values[name].meta["val"].shape[-2] for name in ("query", "key"))
        allowed: Tensor | None = torch.ones(queries, keys, dtype=torch.bool).tril()
    elif mask is not None and mask.meta["val"].dtype is torch.bool:
        allowed = constant(module, mask)
    else:
        return mask
    assert allowed is not None
    return add_constant(
        module, node, "mask", torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)
    )
