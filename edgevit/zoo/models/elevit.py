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
per encoder.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgevit.errors import ShapeError
from edgevit.zoo.attention.elementwise import ElementwiseAttention, check_options
from edgevit.zoo.layers import ConvNorm, Residual, check_classes, check_multiple, check_square
from edgevit.zoo.registry import make_config, register_model

__all__ = ["EleViT", "EleViTConfig"]


@dataclass(frozen=True)
class EleViTConfig:
    """Configuration of :class:`EleViT`; sizes are channels, depths count encoders."""

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

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_options(qk=self.qk, fv=self.fv, softmax_axis=self.softmax_axis)
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


class Encoder(nn.Sequential):
    """ConvEncoder and element-wise attention, each with a residual."""

    def __init__(self, dim: int, config: EleViTConfig) -> None:
        attention = ElementwiseAttention(
            dim,
            qk=config.qk,
            fv=config.fv,
            focus=config.focus,
            softmax_axis=config.softmax_axis,
        )
        super().__init__(Residual(ConvEncoder(dim, config.expansion)), Residual(attention))


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
        for width, depth in zip(config.widths, config.depths, strict=True):
            downsample: list[nn.Module] = []
            if previous is not None:
                downsample.append(ConvNorm(previous, width, 3, stride=2, bias=True))
            self.stages.append(
                nn.Sequential(*downsample, *(Encoder(width, config) for _ in range(depth)))
            )
            previous = width
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
