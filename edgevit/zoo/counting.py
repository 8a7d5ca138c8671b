"""Parameters and multiply-accumulates of a module.

One MAC is one multiply-accumulate of a convolution or matrix product, counted by torch's flop
counter
(its total halved). Normalisation, activations, softmax and element-wise products are not counted:
what the papers call FLOPs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgevit.tensorspec import TensorSpec

__all__ = ["count_macs", "count_parameters"]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars; buffers such as running statistics are not among them."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(module: nn.Module, inputs: Sequence[TensorSpec]) -> int:
    """MACs of one forward pass at the inputs' shapes, computed without computing (meta tensors)."""
    tensors = [torch.empty(spec.shape, device="meta") for spec in inputs]
    meta = copy.deepcopy(module).to("meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        meta(*tensors)
    return int(counter.get_total_flops()) // 2
