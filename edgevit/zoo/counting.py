"""Parameters and multiply-accumulates of a module.

One MAC is one multiply-accumulate of a convolution or matrix product, counted by torch's flop
counter (its total halved). Normalisation, activations, softmax and element-wise products are not
counted: what the papers call FLOPs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgevit.tensorspec import TensorSpec

__all__ = ["count_macs", "count_parameters", "count_torchsummary"]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars; buffers such as running statistics are not among them."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(module: nn.Module, inputs: Sequence[TensorSpec]) -> int:
    """MACs of one forward pass at the inputs' shapes, computed without computing where possible."""
    # The counter hooks inputs that require a gradient, which a view of a parameter pretends to.
    copied = copy.deepcopy(module).requires_grad_(False)
    try:
        return _count(copied.to("meta"), [torch.empty(s.shape, device="meta") for s in inputs])
    except Exception:
        # Tensors that a forward makes by itself, or values that it looks at, need the real thing.
        real = copy.deepcopy(module).requires_grad_(False)
        return _count(real, [torch.zeros(spec.shape) for spec in inputs])


def _count(module: nn.Module, tensors: Sequence[Tensor]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*tensors)
    return int(counter.get_total_flops()) // 2


def count_torchsummary(module: nn.Module, inputs: Sequence[TensorSpec]) -> int:
    """Parameters by the narrower rule of the torchsummary package, as some papers print them.

    The sizes of the attributes ``weight`` and ``bias`` of every sub-module, added up each time that
    the sub-module is called in one forward pass; containers and the module itself are left out.
    Bare parameters (class tokens, positions, sequence projections) are invisible to it.
    """
    tensors = [torch.empty(spec.shape, device="meta") for spec in inputs]
    meta = copy.deepcopy(module).to("meta")
    total = 0

    def count(layer: nn.Module, *_: Any) -> None:
        nonlocal total
        owned = (getattr(layer, name, None) for name in ("weight", "bias"))
        total += sum(tensor.numel() for tensor in owned if isinstance(tensor, Tensor))

    for layer in meta.modules():
        if layer is not meta and not isinstance(layer, (nn.Sequential, nn.ModuleList)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        meta(*tensors)
    return total
