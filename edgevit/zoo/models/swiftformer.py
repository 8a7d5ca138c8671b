"""SwiftFormer (Shaker et al., "SwiftFormer: efficient additive attention for transformer-based
real-time mobile vision applications", 2023); a competitor in EleViT's tables.

    image
      │ stem          two 3x3 stride-2 convolutions, each with BatchNorm and ReLU: 1/4
      │ stage 1..4    ConvEncoders, and one SwiftFormer encoder at the end: 1/4, 1/8, 1/16, 1/32
      │               between stages a 3x3 stride-2 convolution and BatchNorm
      │ head          BatchNorm, mean over the map, two Linears averaged
    logits

ConvEncoder: DW3, BN, PW C -> 4C, GELU, PW 4C -> C. SwiftFormer encoder: the same with C -> C, then
efficient additive attention, then BN, PW C -> 4C, GELU, PW 4C -> C. Every one of these has a
LayerScale and a residual. The second Linear is the head that was distilled; the released models
have it, and ``distillation=False`` leaves it out. Averaging two linear maps is a linear map, so
weights with both heads also load into a model with one, which then computes the same.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.zoo.checkpoints import STAGED, Rule, fit_shapes, rename
from edgevit.zoo.layers import ConvNorm, as_pair, check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.models.elevit import ConvEncoder
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED

__all__ = ["PooledHead", "ScaledResidual", "SwiftFormer", "SwiftFormerConfig", "map_keys"]

STRIDE = 32


@dataclass(frozen=True)
class SwiftFormerConfig:
    """Configuration of :class:`SwiftFormer`, stage by stage; depths count encoders of both kinds.

    ``heads`` are for another ``mixer``; SwiftFormer's own attention has one.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    widths: tuple[int, int, int, int] = (64, 128, 320, 512)
    depths: tuple[int, int, int, int] = (4, 4, 12, 6)
    expansion: int = 4
    mixer: str = "swift_additive"
    heads: tuple[int, int, int, int] = (1, 1, 1, 1)
    layer_scale: float = 1e-5
    distillation: bool = True

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_multiple(self.image_size, STRIDE, "SwiftFormer")

    def grid(self, stage: int) -> tuple[int, int]:
        """Height and width of the maps of a stage."""
        height, width = as_pair(self.image_size)
        return height // (4 << stage), width // (4 << stage)


class ScaledResidual(nn.Module):
    """x + scale ⊙ inner(x), one learned scale per channel (LayerScale), on (B, C, H, W)."""

    def __init__(self, inner: nn.Module, dim: int, initial: float) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.full((dim, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        out: Tensor = x + self.scale * self.inner(x)
        return out


class PooledHead(nn.Module):
    """BatchNorm, mean over the map, Linear; a second Linear is averaged with the first.

    Maps (B, C, H, W) to logits (B, num_classes).
    """

    def __init__(self, dim: int, num_classes: int, *, distillation: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.linear = nn.Linear(dim, num_classes)
        self.distilled = nn.Linear(dim, num_classes) if distillation else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, num_classes); the two heads are averaged in training too."""
        pooled = self.norm(x).mean((-2, -1))
        logits: Tensor = self.linear(pooled)
        return logits if self.distilled is None else (logits + self.distilled(pooled)) / 2


def merge_heads_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with both heads' Linears made one: the mean of weights and of biases."""
    merged = dict(state)
    for part in ("weight", "bias"):
        first, second = f"head.linear.{part}", f"head.distilled.{part}"
        if first in merged and second in merged:
            merged[first] = (merged[first] + merged.pop(second)) / 2
    return merged


def conv_feed_forward(dim: int, expansion: int) -> nn.Sequential:
    """BN, PW C -> expansion · C, GELU, PW back to C."""
    hidden = expansion * dim
    return nn.Sequential(
        nn.BatchNorm2d(dim), nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1)
    )


class SwiftFormerEncoder(nn.Sequential):
    """Local representation, attention, feed-forward, each with LayerScale and residual."""

    def __init__(self, stage: int, config: SwiftFormerConfig) -> None:
        dim = config.widths[stage]
        mixer = make_mixer(
            config.mixer,
            dim=dim,
            heads=config.heads[stage],
            tokens=config.grid(stage),
            layout="map",
        )
        mlp = conv_feed_forward(dim, config.expansion)
        super().__init__(
            OrderedDict(
                local=ScaledResidual(ConvEncoder(dim, 1), dim, 1.0),
                attention=ScaledResidual(mixer, dim, config.layer_scale),
                mlp=ScaledResidual(mlp, dim, config.layer_scale),
            )
        )


class Stage(nn.Sequential):
    """What lies before a stage, and its encoders."""

    def __init__(self, stage: int, config: SwiftFormerConfig) -> None:
        dim = config.widths[stage]
        downsample = (
            ConvNorm(config.widths[stage - 1], dim, 3, stride=2, bias=True)
            if stage
            else nn.Identity()
        )
        encoders: list[nn.Module] = [
            ScaledResidual(ConvEncoder(dim, config.expansion), dim, 1.0)
            for _ in range(config.depths[stage] - 1)
        ]
        blocks = nn.Sequential(*encoders, SwiftFormerEncoder(stage, config))
        super().__init__(OrderedDict(downsample=downsample, blocks=blocks))


class SwiftFormer(nn.Module):
    """SwiftFormer: images (B, in_chans, H, W), multiples of 32, to logits (B, num_classes)."""

    def __init__(self, config: SwiftFormerConfig) -> None:
        super().__init__()
        self.config = config
        channels = (config.in_chans, config.widths[0] // 2, config.widths[0])
        self.stem = nn.Sequential(
            *(
                ConvNorm(a, b, 3, stride=2, bias=True, activation=nn.ReLU())
                for a, b in itertools.pairwise(channels)
            )
        )
        self.stages = nn.Sequential(*(Stage(i, config) for i in range(4)))
        self.head = PooledHead(
            config.widths[-1], config.num_classes, distillation=config.distillation
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A released state dict made to fit this model.

        Names are mapped (:func:`map_keys`); two heads become one in a model with one.
        """
        mapped = fit_shapes(self, map_keys(state))
        return mapped if self.config.distillation else merge_heads_of(mapped)


SCALED = ("attention", "mlp")

#: The authors' released state dicts (network, layer_scale) and timm's (stages, gamma) to our names.
KEY_MAP: tuple[Rule, ...] = (
    WRAPPED,
    *STAGED,
    (r"\.downsample\.proj\.", ".downsample.0."),
    (r"\.downsample\.norm\.", ".downsample.1."),
    (r"\.layer_scale_([12])(?:\.gamma)?$", lambda m: f".{SCALED[int(m[1]) - 1]}.scale"),
    (r"\.local_representation\.", ".local."),
    (r"\.layer_scale(?:\.gamma)?$", ".scale"),
    (r"\.dwconv\.", ".inner.0.0."),
    (r"(?<=\.local)\.norm\.", ".inner.0.1."),
    (r"(\.blocks\.\d+)\.norm\.", r"\1.inner.0.1."),
    (r"\.pwconv1\.", ".inner.1."),
    (r"\.pwconv2\.", ".inner.3."),
    (r"\.linear\.norm1\.", ".mlp.inner.0."),
    (r"\.linear\.fc1\.", ".mlp.inner.1."),
    (r"\.linear\.fc2\.", ".mlp.inner.3."),
    (r"\.attn\.", ".attention.inner.block."),
    (r"\.to_(query|key)\.", r".\1."),
    (r"\.w_g$", ".weight"),
    (r"\.block\.Proj\.", ".block.proj."),
    (r"\.block\.final\.", ".block.out."),
)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the released models, the authors' or timm's, under our names."""
    return rename(state, KEY_MAP)


@register_model(
    paper="swiftformer",
    published={"params_m": 28.5, "flops_g": 4.0},
    note="EleViT's tables print 27.5 M for it, its count without distillation head and with few "
    "classes (distillation=False)",
)
def swiftformer_l3(**options: Any) -> SwiftFormer:
    """SwiftFormer-L3."""
    return SwiftFormer(make_config(SwiftFormerConfig, options))
