"""Parameters and multiply-accumulates of a module.

One MAC is one multiply-accumulate of a convolution or matrix product, counted by torch's flop
counter (its total halved). Normalisation, activations, softmax and element-wise products are not
counted: what the papers call FLOPs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from edgevit.tensorspec import TensorSpec

__all__ = ["count_macs", "count_parameters", "count_torchsummary"]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars; buffers such as running statistics are not among them."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(module: nn.Module, inputs: Sequence[TensorSpec]) -> int:
    """MACs of one forward pass at the inputs' shapes, computed without computing where possible."""
    held = dict(chain(module.named_parameters(), module.named_buffers()))
    # A forward that keeps something, such as a table of positions, keeps it in a copy.
    layers = copy.deepcopy(module, {id(tensor): tensor for tensor in held.values()})
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in held.items()}
    try:
        with _NormsLeftOut():
            return _count(layers, shapes, [torch.empty(s.shape, device="meta") for s in inputs])
    except Exception:
        # Tensors that a forward makes by itself, or values that it looks at, need the real thing.
        real = copy.deepcopy(module).requires_grad_(False)
        return _count(real, {}, [torch.zeros(spec.shape) for spec in inputs])


def _count(module: nn.Module, held: dict[str, Tensor], tensors: Sequence[Tensor]) -> int:
    """MACs with the tensors held in place of the module's own of those names."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Untracked()
    with counter, torch.no_grad():
        torch.func.functional_call(module, held, tuple(tensors))
    return int(counter.get_total_flops()) // 2


class _Untracked(ModuleTracker):
    """Does not hook every module to tell which is under way: that takes longer than to count."""

    def __enter__(self) -> _Untracked:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _NormsLeftOut(TorchFunctionMode):
    """They have no MACs, and without numbers a BatchNorm takes longer than with them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return args[0]
        return func(*args, **(kwargs or {}))


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
