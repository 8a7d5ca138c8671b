"""Products of several matrices at once, written so that nothing is copied before them.

ExecuTorch takes ``matmul`` apart into an expansion of both factors to a common batch, a reshape of
each, ``bmm`` and a reshape of the result. An expansion that changes nothing is a copy there, made
between two calls of XNNPACK, which could have gone on:

    given     matmul(a, b)                a (..., n, k), b (..., k, m), the same batch before both
    result    reshape(bmm(reshape(a), reshape(b)))      with the batch as one axis
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["products_in_batches"]

aten = torch.ops.aten


def products_in_batches(program: Program) -> tuple[Program, int]:
    """The program with such products as ``bmm``, and how many; the very same if it has none."""
    module = program.graph_module()
    found = [node for node in module.graph.nodes if _is_of_batches(node)]
    for node in found:
        _write(module.graph, node)
    return (program.rewritten(module) if found else program), len(found)


def _is_of_batches(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not aten.matmul.default:
        return False
    first, second = (_shape(factor) for factor in node.args)
    return len(first) > 2 and first[:-2] == second[:-2]


def _shape(node: object) -> tuple[int, ...]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _write(graph: fx.Graph, node: fx.Node) -> None:
    shapes = [list(_shape(factor)) for factor in node.args]
    count = math.prod(shapes[0][:-2])
    with graph.inserting_before(node):
        factors = tuple(
            graph.call_function(aten.reshape.default, (factor, [count, *shape[-2:]]))
            for factor, shape in zip(node.args, shapes, strict=True)
        )
        product = graph.call_function(aten.bmm.default, factors)
        result = graph.call_function(aten.reshape.default, (product, list(_shape(node))))
    node.replace_all_uses_with(result, propagate_meta=True)
    graph.erase_node(node)
