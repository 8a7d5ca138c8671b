"""Masks lowered until the weight of what they forbid is zero, and not a subnormal number.

    softmax(s + m), m = -100 for what is forbidden          m = -10000

exp(-100) is 4e-44, below the smallest normal fp32 number, 1.2e-38, and processors multiply such
numbers tens of times slower than others: in shifted windows, the product of weights and values took
a fifth of Swin's time in onnxruntime. A weight is exp(m + δ) for a score δ above the row's largest,
so zero is within fp32 rounding of it (6e-8) as long as δ stays below 80.

A row that forbids everything must keep what it holds, since softmax looks at differences only.
-10000 is a number in fp16, too.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from edgevit.passes.base import PassReport, Refusal
from edgevit.passes.graph import add_constant, constant, layer_name, operation, readers

__all__ = ["RULE", "LowerMasks", "ends_in_softmax"]

aten = torch.ops.aten

#: What is at most this in a mask forbids; what is at least the other allows.
FORBIDS, ALLOWS = -80.0, -20.0
#: What forbidden places hold instead.
LOW = -1e4

SOFTMAX = {aten.softmax, aten._softmax}
#: What may lie between the sum and the softmax, as long as the last axis stays as it is.
SHAPING = {aten.view, aten.reshape, aten.unsqueeze, aten.squeeze, aten.clone, aten.contiguous}


class LowerMasks:
    """Lowers constants that are added to what a softmax is taken of."""

    name: ClassVar[str] = "lower_masks"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place."""
        rewritten, refusals = 0, []
        for node in list(module.graph.nodes):
            if operation(node) is not aten.add or node.kwargs or not ends_in_softmax(node):
                continue
            for place, argument in enumerate(node.args):
                mask = constant(module, argument)
                if mask is None or not _forbids(mask):
                    continue
                if not bool((mask >= ALLOWS).any(-1).all()):
                    reason = "its mask forbids every key to some query"
                    refusals.append(Refusal(layer_name(node) or node.name, reason))
                    continue
                _lower(module, node, place, mask)
                rewritten += 1
        return PassReport(self.name, rewritten, tuple(refusals))


RULE = LowerMasks()


def ends_in_softmax(node: fx.Node) -> bool:
    """Whether all that becomes of a node is a softmax along its last axis."""
    width, found = node.meta["val"].shape[-1], readers(node)
    for reader in found:
        if (op := operation(reader)) is None:
            return False
        value = reader.meta["val"]
        if op in SOFTMAX:
            if reader.args[1] not in (-1, value.dim() - 1):
                return False
        elif op not in SHAPING or value.shape[-1] != width or not ends_in_softmax(reader):
            return False
    return bool(found)


def _forbids(mask: Tensor) -> bool:
    """Whether it is a mask of which some places forbid, by no more than is to be put there."""
    if not mask.is_floating_point() or mask.dim() == 0:
        return False
    low = mask <= FORBIDS
    return bool(low.any()) and bool((low | (mask >= ALLOWS)).all()) and bool(mask.min() > LOW)


def _lower(module: fx.GraphModule, node: fx.Node, place: int, mask: Tensor) -> None:
    known: Any = node.args[place]
    lowered = mask.masked_fill(mask <= FORBIDS, LOW)
    made = add_constant(module, node, "mask", lowered)
    node.args = tuple(made if i == place else a for i, a in enumerate(node.args))
    if not known.users:
        module.graph.erase_node(known)
