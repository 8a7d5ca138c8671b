"""Sums before a LayerNorm written so that onnxruntime does not fuse the two.

onnxruntime makes one operator, SkipLayerNormalization, of an Add that only a LayerNorm reads. Its
kernel for processors is not vectorised: on AVX-512 the fused pair takes five to seven times what
its parts take, which is an eighth of a network that normalises behind each residual. The fusion
looks for Add. ``Sum`` of two tensors is the same operator under a name that it does not know:

    Add(x, y) -> LayerNormalization        Sum(x, y) -> LayerNormalization

A sum with a constant is left, since it may be the bias of the product before it, and so is one of a
convolution's output: those are fused with what is before them, which pays.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

__all__ = ["keep_norms_apart"]

#: The first operators of a LayerNorm in files older than opset 17, which has one for it.
PARTS = {"ReduceMean", "Sub"}


def keep_norms_apart(model: Any) -> int:
    """Rewrite sums of an ONNX model in place; returns how many."""
    graph, readers, makers = model.graph, defaultdict(list), {}
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
        makers.update(dict.fromkeys(node.output, node))
    given = {value.name for value in graph.input}
    kept = {value.name for value in graph.output}
    count = 0
    for node in graph.node:
        if node.op_type != "Add" or node.output[0] in kept:
            continue
        computed = all(n in given or _may_be_summed(makers.get(n)) for n in node.input)
        if computed and _is_normed(readers[node.output[0]]):
            node.op_type = "Sum"
            count += 1
    return count


def _may_be_summed(maker: Any | None) -> bool:
    """Whether a tensor is computed, and not by what an Add is fused with; None is a constant."""
    return maker is not None and maker.op_type not in {"Conv", "Constant"}


def _is_normed(found: list[Any]) -> bool:
    """Whether a LayerNorm, in one piece or in parts, is all that reads a tensor."""
    types = [node.op_type for node in found]
    return types == ["LayerNormalization"] or (len(types) > 1 and set(types) == PARTS)
