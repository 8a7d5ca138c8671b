"""Random values where a fresh model has none, so that comparing its outputs proves something.

A new BatchNorm is the identity up to epsilon, a zero-initialised scale hides the branch behind it,
and a fresh class token is zero: a wrong export of such a model gives the right numbers. Nothing
changes for speed; a model with random weights means nothing anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgevit.tensorspec import TensorSpec

__all__ = ["randomize_", "settle_"]

#: Items of noise that a BatchNorm's statistics are taken from; the fewest; and the numbers in one
#: above which there are fewer, so that an image for detection takes no eight times its memory.
#: Three hardly differ in some channels: rounding alone then moved EfficientViT-M4 by 8e-5 of its
#: scale at 800 x 1280 (2e-6 with five, and with eight).
ITEMS, FEWEST, LARGE = 8, 5, 2**20


@torch.no_grad()
def randomize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm weights, biases and statistics; random values for constant parameters.

    Scales come uniformly from 0.5 to 1.5, offsets from a normal distribution of deviation 0.1.

    Args:
        model: changed in place.
        seed: of the generator; the same seed gives the same values.

    Returns:
        The same model.
    """
    generator = torch.Generator().manual_seed(seed)

    def scale_(tensor: Tensor) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)

    def offset_(tensor: Tensor) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)

    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            offset_(module.running_mean)
            assert module.running_var is not None
            scale_(module.running_var)
    for parameter in model.parameters():
        first = parameter.flatten()[:1]
        if parameter.numel() and bool((parameter == first).all()):
            (scale_ if float(first) != 0 and parameter.dim() <= 1 else offset_)(parameter)
    for module in model.modules():
        # Zero-initialised scales look like offsets above; a BatchNorm's weight is known to be a
        # scale.
        if isinstance(module, _BatchNorm) and module.affine:
            scale_(module.weight)
            offset_(module.bias)
    return model


@torch.no_grad()
def settle_(model: nn.Module, inputs: Sequence[TensorSpec], seed: int = 0) -> nn.Module:
    """Set the statistics of every BatchNorm to what it sees, for one batch of noise.

    Random statistics let the signal shrink from layer to layer, until the output hardly depends on
    the input and agreement proves little. Statistics that fit keep its scale, as training does.
    The items of the batch differ in contrast and brightness: if they were alike once pooled, a
    BatchNorm behind the pooling would blow up their small differences, and rounding errors too.

    Args:
        model: changed in place; its mode stays.
        inputs: its inputs; eight items of noise are run through it, fewer if they are large.
        seed: of the noise.

    Returns:
        The same model.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    generator = torch.Generator().manual_seed(seed)
    items = max(FEWEST, min(ITEMS, ITEMS * LARGE // max(_numbers(spec) for spec in inputs)))
    model(*(_varied_noise(spec, items, generator) for spec in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.train(model.training)
    return model


def _numbers(spec: TensorSpec) -> int:
    """Numbers in one item."""
    return math.prod(spec.shape[1:])


def _varied_noise(spec: TensorSpec, items: int, generator: torch.Generator) -> Tensor:
    shape = spec.with_batch(items).shape
    rest = (1,) * (len(shape) - 2)
    contrast = torch.rand((items, *(1,) * (len(shape) - 1)), generator=generator) * 1.8 + 0.2
    brightness = torch.randn((*shape[:2], *rest), generator=generator)
    return torch.randn(shape, generator=generator) * contrast + brightness
