"""EleViT (Shah et al., "EleViT: exploiting element-wise products for designing efficient and
lightweight vision transformers").

    image
      │ stem          three 3x3 stride-2 convolutions, each with BatchNorm and GELU: 1/8
      │ stage 1       encoders at 1/8
      │ downsample    3x3 stride-2 convolution, BatchNorm
      │ stage 2       encoders at 1/16
      │ downsample
      │ stage 3       encoders at 1/32
      │ head          BatchNorm, mean over the map, Linear
    logits

An encoder is a ConvEncoder and then element-wise attention, both with a residual (section 3.2,
equation 4). The paper prints one figure, 23.4 M parameters, and no widths or depths; the
configuration here (widths 128, 256, 512, depths 4, 8, 8) is one that gives it, with one attention
per encoder. ``mixer`` puts another block in its place, with heads of width 32.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.elementwise import ElementwiseAttention, check_options
from edgevit.zoo.layers import ConvNorm, Residual, check_classes, check_multiple, check_square
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.registry import make_config, register_model

__all__ = ["EleViT", "EleViTConfig"]

OWN_MIXER = "elementwise"
#: Width of a head of other blocks; a width that is no multiple of it gets one head.
HEAD_DIM = 32


@dataclass(frozen=True)
class EleViTConfig:
    """Configuration of :class:`EleViT`; sizes are channels, depths count encoders.

    ``qk``, ``fv``, ``focus`` and ``softmax_axis`` are the element-wise attention's. ``mixer`` names
    another block, to which ``mixer_options`` go.
    """

    num_classes: int = 10
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    stem: tuple[int, int] = (32, 64)
    widths: tuple[int, int, int] = (128, 256, 512)
    depths: tuple[int, int, int] = (4, 8, 8)
    expansion: int = 4
    qk: str = "element"
    fv: str = "element"
    focus: bool = True
    softmax_axis: str = "width"
    mixer: str = OWN_MIXER
    mixer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_options(qk=self.qk, fv=self.fv, softmax_axis=self.softmax_axis)
        if self.mixer_options and self.mixer == OWN_MIXER:
            raise OptionError(
                "mixer_options",
                expected="nothing with elementwise here: qk, fv, focus, softmax_axis",
                got=dict(self.mixer_options),
            )
        check_square(check_multiple(self.image_size, 32, "EleViT"), "EleViT")


class ConvEncoder(nn.Sequential):
    """DW3, BN, PW C -> 4C, GELU, PW 4C -> C (equation 4, without its residual)."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__(
            ConvNorm(dim, dim, 3, groups=dim, bias=True),
            nn.Conv2d(dim, expansion * dim, 1),
            nn.GELU(),
            nn.Conv2d(expansion * dim, dim, 1),
        )


def _attention(dim: int, side: int, config: EleViTConfig) -> nn.Module:
    if config.mixer == OWN_MIXER:
        return ElementwiseAttention(
            dim,
            qk=config.qk,
            fv=config.fv,
            focus=config.focus,
            softmax_axis=config.softmax_axis,
        )
    heads = 1 if dim % HEAD_DIM else dim // HEAD_DIM
    grid, options = (side, side), config.mixer_options
    return make_mixer(config.mixer, dim=dim, heads=heads, tokens=grid, layout="map", **options)


class Encoder(nn.Sequential):
    """ConvEncoder and attention, each with a residual, on a map of ``side`` cells a side."""

    def __init__(self, dim: int, side: int, config: EleViTConfig) -> None:
        super().__init__(
            Residual(ConvEncoder(dim, config.expansion)), Residual(_attention(dim, side, config))
        )


class EleViT(nn.Module):
    """EleViT: images (B, in_chans, S, S), S a multiple of 32, to logits (B, num_classes)."""

    def __init__(self, config: EleViTConfig) -> None:
        super().__init__()
        self.config = config
        channels = (config.in_chans, *config.stem, config.widths[0])
        self.stem = nn.Sequential(
            *(
                ConvNorm(a, b, 3, stride=2, bias=True, activation=nn.GELU())
                for a, b in itertools.pairwise(channels)
            )
        )
        self.stages = nn.ModuleList()
        previous = None
        side = check_multiple(config.image_size, 32, "EleViT")[0] // 8
        for width, depth in zip(config.widths, config.depths, strict=True):
            downsample: list[nn.Module] = []
            if previous is not None:
                downsample.append(ConvNorm(previous, width, 3, stride=2, bias=True))
            self.stages.append(
                nn.Sequential(*downsample, *(Encoder(width, side, config) for _ in range(depth)))
            )
            previous, side = width, side // 2
        self.norm = nn.BatchNorm2d(config.widths[-1])
        self.head = nn.Linear(config.widths[-1], config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, S, S) to logits (B, num_classes).

        Raises:
            ShapeError: the images are not square, so the key's map cannot be transposed.
        """
        if x.shape[-1] != x.shape[-2]:
            raise ShapeError(f"EleViT needs square images, got {x.shape[-2]} x {x.shape[-1]}")
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(self.norm(x).mean((-2, -1)))
        return logits


def _elevit(options: dict[str, Any], **variant: Any) -> EleViT:
    return EleViT(make_config(EleViTConfig, variant | options))


PAPER: dict[str, Any] = {"paper": "elevit", "num_classes": 10}
ABLATION: dict[str, Any] = PAPER | {"table": "Table 2"}


@register_model(
    **PAPER,
    table="Table 1",
    published={"params_m": 23.4},
    note="widths and depths are ours: the paper prints the parameter count only",
)
def elevit(**options: Any) -> EleViT:
    """EleViT with both products element-wise and the focusing factor."""
    return _elevit(options)


@register_model(**ABLATION)
def elevit_qkdot(**options: Any) -> EleViT:
    """EleViT ablation: matrix product of query and key."""
    return _elevit(options, qk="dot")


@register_model(**ABLATION)
def elevit_fvdot(**options: Any) -> EleViT:
    """EleViT ablation: matrix product of attention map and value."""
    return _elevit(options, fv="dot")


@register_model(**ABLATION)
def elevit_qkdot_fvdot(**options: Any) -> EleViT:
    """EleViT ablation: both products matrix products."""
    return _elevit(options, qk="dot", fv="dot")


@register_model(**ABLATION)
def elevit_noff(**options: Any) -> EleViT:
    """EleViT ablation: no focusing factor."""
    return _elevit(options, focus=False)


@register_model(**ABLATION)
def elevit_qkdot_noff(**options: Any) -> EleViT:
    """EleViT ablation: matrix product of query and key, no focusing factor."""
    return _elevit(options, qk="dot", focus=False)


@register_model(**ABLATION)
def elevit_fvdot_noff(**options: Any) -> EleViT:
    """EleViT ablation: matrix product of attention map and value, no focusing factor."""
    return _elevit(options, fv="dot", focus=False)


@register_model(**ABLATION)
def elevit_qkdot_fvdot_noff(**options: Any) -> EleViT:
    """EleViT ablation: both products matrix products, no focusing factor."""
    return _elevit(options, qk="dot", fv="dot", focus=False)
