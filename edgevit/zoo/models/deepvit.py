"""DeepViT (Zhou et al., "DeepViT: towards deeper vision transformer"), and with less attention.

    image
      │ patch_embed   7x7 stride-2 convolution, 3x3 convolution, each with BatchNorm and ReLU, then
      │               8x8 convolution, stride 8: 1/16
      │ class token in front, learned positions
      │ blocks        16 times: x + 2 attention(LN(x/2)); x + 2 MLP(LN(x/2))
      │ head          LayerNorm and Linear on the class token
    logits

The last five blocks have re-attention: the weights of all heads are mixed, normalised over the
heads and scaled before they meet the value,

    out = BN(Θᵀ softmax(Q Kᵀ / sqrt(d))) / sqrt(d) · V        Θ of heads x heads, with bias

as the released code has it (the factors 2 and 1/sqrt(d) too); the names of the parameters are its
names but for those of the embedding and of re-attention.

LaViT's Table 5 has less attention in DeepViTs of 1.5 G and 4.8 G, which the DeepViT paper does not
describe. Both are 0.1 G above the DeiTs of the same table, as DeiTs whose layers re-attend would
be, so that is what ``deepvit_tiny`` and ``deepvit_small_12`` are: 12 layers on patches, all with
re-attention, in the released code's form, the factor of 2 left out. In ``+la`` the later half of
the layers has less attention, and those of them that re-attend still do: only where the scores come
from changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.checkpoints import Rule, rename
from edgevit.zoo.layers import ConvNorm, check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.models.deit import Mlp, check_input, init_weights_
from edgevit.zoo.models.less_common import (
    LessConfig,
    LessModel,
    Maps,
    ScoredBlock,
    ScoredBlocks,
    check_mixer,
    check_starts,
    token_attention,
)
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED, with_positions

__all__ = ["DeepViT", "DeepViTConfig", "ReAttention", "map_keys"]

OWN_MIXER = "reattention"
STEM = 64
STEMS = ("convolutions", "patches")


@dataclass(frozen=True)
class DeepViTConfig(LessConfig):
    """Configuration of :class:`DeepViT`; the defaults are DeepViT-S.

    ``reattention_from`` is the first layer with re-attention, counted from 1, and 0 for none.
    ``branch_scale`` is what the input of a branch is divided and its output multiplied by.
    ``stem`` embeds by three ``"convolutions"``, or ``"patches"`` of 16 x 16 by one.
    ``mixer`` is DeepViT's own attention or the name of a block, to which ``mixer_options`` go.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    width: int = 396
    depth: int = 16
    heads: int = 12
    expansion: int = 3
    reattention_from: int = 12
    branch_scale: float = 2.0
    stem: str = "convolutions"
    mixer: str = OWN_MIXER
    mixer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_multiple(self.image_size, 16, "DeepViT")
        check_starts([self.less_from], [self.depth], [2])
        check_mixer(self.mixer, self.mixer_options, OWN_MIXER, less=bool(self.less_from))
        if self.stem not in STEMS:
            raise OptionError("stem", expected=" or ".join(STEMS), got=self.stem)
        if self.branch_scale <= 0:
            raise OptionError("branch_scale", expected="a positive number", got=self.branch_scale)

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return check_multiple(self.image_size, 16, "DeepViT")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token map."""
        return self.image[0] // 16, self.image[1] // 16


class ReAttention(nn.Module):
    """BN(Θᵀ softmax(A)) · scale: scores (B, heads, N, M) to weights of the same shape."""

    def __init__(self, heads: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.mix = nn.Conv2d(heads, heads, 1)
        self.norm = nn.BatchNorm2d(heads)

    def forward(self, scores: Tensor) -> Tensor:
        """Shape is kept."""
        weights: Tensor = self.norm(self.mix(scores.softmax(-1)))
        return weights * self.scale


def _attention(config: DeepViTConfig, layer: int) -> nn.Module:
    dim, heads, grid = config.width, config.heads, config.grid
    if config.mixer != OWN_MIXER:
        options = config.mixer_options
        return make_mixer(
            config.mixer, dim=dim, heads=heads, tokens=grid, prefix_tokens=1, **options
        )
    again = 0 < config.reattention_from <= layer
    weigh = ReAttention(heads, (dim // heads) ** -0.5) if again else None
    tokens = 1 + grid[0] * grid[1]
    return token_attention(config, layer, dim=dim, heads=heads, tokens=tokens, weigh=weigh)


class DeepBlock(ScoredBlock):
    """x + s attention(LN(x / s)), then x + s MLP(LN(x / s)), handing the scores on."""

    def __init__(self, config: DeepViTConfig, layer: int) -> None:
        dim = config.width
        super().__init__(dim, _attention(config, layer), Mlp(dim, config.expansion * dim))
        self.scale = config.branch_scale

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) and perhaps a map to (B, N, C) and the block's own map."""
        mixed, scores = self.attend(self.norm1(x / self.scale), given)
        x = x + mixed * self.scale
        return x + self.mlp(self.norm2(x / self.scale)) * self.scale, scores


class ConvEmbed(nn.Sequential):
    """Three convolutions: (B, in_chans, H, W) to (B, C, H/16, W/16)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__(
            ConvNorm(in_chans, STEM, 7, stride=2, activation=nn.ReLU()),
            ConvNorm(STEM, STEM, 3, activation=nn.ReLU()),
            nn.Conv2d(STEM, dim, 8, 8),
        )


class DeepViT(LessModel):
    """DeepViT: images (B, in_chans, H, W) of the configured size to logits (B, num_classes)."""

    def __init__(self, config: DeepViTConfig) -> None:
        super().__init__()
        self.config = config
        dim, (height, width) = config.width, config.grid
        self.patch_embed = (
            ConvEmbed(config.in_chans, dim)
            if config.stem == STEMS[0]
            else nn.Conv2d(config.in_chans, dim, 16, 16)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width, dim))
        self.blocks = ScoredBlocks(*(DeepBlock(config, i) for i in range(1, config.depth + 1)))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, config.num_classes)
        init_weights_(self)

    def run(self, x: Tensor, maps: Maps | None) -> Tensor:
        """Images to logits; what less-attention layers compute is added to ``maps``."""
        check_input(x, self.config.image, "DeepViT")
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        x, _ = self.blocks(x, maps=maps)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by our names, positions resized to this model's token map."""
        return with_positions(map_keys(state), self.config.grid, prefix_tokens=1)


KEYS: tuple[Rule, ...] = (
    WRAPPED,
    (r"^patch_embed\.conv([12])\.", lambda m: f"patch_embed.{int(m[1]) - 1}.0."),
    (r"^patch_embed\.bn([12])\.", lambda m: f"patch_embed.{int(m[1]) - 1}.1."),
    (r"^patch_embed\.proj\.", "patch_embed.2."),
    (r"\.attn\.reatten_matrix\.", ".attn.weigh.mix."),
    (r"\.attn\.var_norm\.", ".attn.weigh.norm."),
)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeepViT's own released checkpoint by our names."""
    return rename(state, KEYS)


def _deepvit(options: dict[str, Any], **variant: Any) -> DeepViT:
    return DeepViT(make_config(DeepViTConfig, variant | options))


@register_model(
    paper="lavit",
    table="Table 2",
    published={"params_m": 27.0, "flops_g": 6.2, "top1": 82.3},
    note="the published FLOPs could not be reproduced: ours has +1.2 % parameters, +2.6 % FLOPs",
)
def deepvit_small(**options: Any) -> DeepViT:
    """DeepViT-S: 16 layers of width 396, 12 heads, re-attention in the last 5."""
    return _deepvit(options)


@register_model(
    name="deepvit_small+la",
    paper="lavit",
    note="no table of the paper has it: those of Table 5 are DeiTs with re-attention, see "
    "deepvit_small_12+la; where less attention starts is ours",
)
def deepvit_small_la(**options: Any) -> DeepViT:
    """DeepViT-S with less attention from layer 9 on."""
    return _deepvit(options, less_from=9)


TABLE5: dict[str, Any] = {"paper": "lavit", "table": "Table 5"}
READING = (
    "the paper gives no detail of it: ours is a DeiT with re-attention in every layer, and in +la "
    "less attention in the later half; the FLOPs are {}"
)
PLAIN: dict[str, Any] = {
    "depth": 12,
    "expansion": 4,
    "reattention_from": 1,
    "branch_scale": 1.0,
    "stem": "patches",
}
TINY: dict[str, Any] = {"width": 192, "heads": 3, **PLAIN}
SMALL: dict[str, Any] = {"width": 384, "heads": 6, **PLAIN}


@register_model(**TABLE5, published={"flops_g": 1.5, "top1": 73.4}, note=READING.format("-16.1 %"))
def deepvit_tiny(**options: Any) -> DeepViT:
    """DeiT-Ti with re-attention: 12 layers of width 192, 3 heads."""
    return _deepvit(options, **TINY)


@register_model(**TABLE5, published={"flops_g": 4.8, "top1": 80.9}, note=READING.format("-3.8 %"))
def deepvit_small_12(**options: Any) -> DeepViT:
    """DeiT-S with re-attention: 12 layers of width 384, 6 heads."""
    return _deepvit(options, **SMALL)


@register_model(
    name="deepvit_tiny+la",
    **TABLE5,
    published={"flops_g": 1.1, "top1": 73.8},
    note=READING.format("+27.4 %"),
)
def deepvit_tiny_la(**options: Any) -> DeepViT:
    """DeiT-Ti with re-attention, with less attention from layer 7 on."""
    return _deepvit(options, **TINY, less_from=7)


@register_model(
    name="deepvit_small_12+la",
    **TABLE5,
    published={"flops_g": 4.2, "top1": 81.4},
    note=READING.format("+12.6 %"),
)
def deepvit_small_12_la(**options: Any) -> DeepViT:
    """DeiT-S with re-attention, with less attention from layer 7 on."""
    return _deepvit(options, **SMALL, less_from=7)
