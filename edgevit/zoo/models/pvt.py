"""PVT, the Pyramid Vision Transformer in its first version (Wang et al., ICCV 2021).

    image
      │ stage 1       4x4 convolution, stride 4, to 1/4; width 64, 1 head, reduction 8
      │ stage 2       2x2 convolution, stride 2, to 1/8; width 128, 2 heads, reduction 4
      │ stage 3       2x2 convolution, stride 2, to 1/16; width 320, 5 heads, reduction 2
      │ stage 4       2x2 convolution, stride 2, to 1/32, class token; width 512, 8 heads
      │ head          LayerNorm and Linear on the class token
    logits

A stage is LayerNorm after its convolution, learned positions, and blocks x + attention(LN x);
x + MLP(LN x). The attention has the queries of all tokens; keys and values come from the map after
a convolution of kernel and stride ``reduction`` and LayerNorm, so every stage has as many keys.

``features=True`` builds the backbone for dense prediction, as its authors' does: no class token, no
norm and no head, but the maps of the four stages.

LaViT (:mod:`edgevit.zoo.models.lavit`) is this network with less attention; the figures here are
those that its Table 2 quotes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.less_attention import attention_scores
from edgevit.zoo.checkpoints import Rule, rename
from edgevit.zoo.layers import check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.models.deit import Mlp, check_input, init_weights_
from edgevit.zoo.models.less_common import (
    LessModel,
    Maps,
    ScoredAttention,
    ScoredBlock,
    ScoredBlocks,
    check_mixer,
)
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED, resize_positions

__all__ = ["LAST", "OWN_MIXER", "PVT", "Four", "PVTConfig", "make_reduction", "map_keys"]

LAST = 3
OWN_MIXER = "spatial_reduction"
Four = tuple[int, int, int, int]


@dataclass(frozen=True)
class PVTConfig:
    """Configuration of :class:`PVT`, one entry a stage; the defaults are PVT-Tiny.

    ``mixer`` is PVT's own attention or the name of a block, to which ``mixer_options`` go.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    widths: Four = (64, 128, 320, 512)
    depths: Four = (2, 2, 2, 2)
    heads: Four = (1, 2, 5, 8)
    expansions: Four = (8, 8, 4, 4)
    reductions: Four = (8, 4, 2, 1)
    mixer: str = OWN_MIXER
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    features: bool = False

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_multiple(self.image_size, 32, "PVT")
        check_mixer(self.mixer, self.mixer_options, OWN_MIXER, less=False)
        for stage in range(LAST + 1):
            step = (4 << stage) * self.reduction(stage)
            check_multiple(self.image_size, step, "PVT with these reductions")
        if self.prefix(LAST) and self.reduction(LAST) != 1:
            raise OptionError(
                "reductions",
                expected="1 in the last stage, which has a class token",
                got=self.reductions,
            )

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return check_multiple(self.image_size, 32, "PVT")

    def grid(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's token map, stages counted from 0."""
        height, width = self.image
        return height // (4 << stage), width // (4 << stage)

    def prefix(self, stage: int) -> int:
        """How many class tokens stand before the map's own tokens."""
        return int(stage == LAST and not self.features)

    def reduction(self, stage: int) -> int:
        """By what the sides of a stage's map are divided for keys and values."""
        return self.reductions[stage]

    def attention_for(self, stage: int, layer: int) -> nn.Module:
        """The attention of one layer; layers are counted from 1."""
        dim, heads, grid = self.widths[stage], self.heads[stage], self.grid(stage)
        if self.mixer == OWN_MIXER:
            return SpatialReductionAttention(dim, heads, grid, self.reduction(stage))
        size: dict[str, Any] = {"dim": dim, "heads": heads, "tokens": grid}
        size["prefix_tokens"] = self.prefix(stage)
        return make_mixer(self.mixer, **size, **self.mixer_options)

    def residual_into(self, stage: int) -> nn.Module | None:
        """What makes a map for the stage's first layer from the last map of the stage before."""
        return None


class SpatialReduction(nn.Module):
    """Convolution of kernel and stride ``ratio``, LayerNorm: (B, H W, C) to (B, H W/ratio², C)."""

    def __init__(self, dim: int, grid: tuple[int, int], ratio: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H W, C) to (B, H W / ratio², C)."""
        image = x.transpose(1, 2).reshape(-1, x.shape[2], *self.grid)
        out: Tensor = self.norm(self.conv(image).flatten(2).transpose(1, 2))
        return out


def make_reduction(dim: int, grid: tuple[int, int], ratio: int) -> nn.Module:
    """What keys and values come from: all tokens with a ratio of 1, otherwise a reduced map."""
    return SpatialReduction(dim, grid, ratio) if ratio > 1 else nn.Identity()


class SpatialReductionAttention(ScoredAttention):
    """Softmax attention with keys and values from a reduced map.

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        grid: height and width of the token map.
        ratio: of the reduction, along each side.
    """

    def __init__(self, dim: int, heads: int, grid: tuple[int, int], ratio: int) -> None:
        super().__init__(dim, heads)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.reduce = make_reduction(dim, grid, ratio)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, C) and perhaps (B, heads, N, M) to (B, N, C) and (B, heads, N, M)."""
        key, value = (self.split(part) for part in self.kv(self.reduce(x)).chunk(2, -1))
        scores = attention_scores(self.split(self.q(x)), key, given)
        return self.mix(scores, value), scores


class PatchEmbed(nn.Module):
    """Convolution of kernel and stride ``patch``, LayerNorm: maps (B, C, H, W) to tokens."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, N, C), row by row."""
        out: Tensor = self.norm(self.proj(x).flatten(2).transpose(1, 2))
        return out


class Stage(nn.Module):
    """Embedding, positions and blocks of one resolution."""

    def __init__(self, config: PVTConfig, stage: int) -> None:
        super().__init__()
        dim, (height, width) = config.widths[stage], config.grid(stage)
        prefix = config.prefix(stage)
        before = config.widths[stage - 1] if stage else config.in_chans
        self.patch_embed = PatchEmbed(before, dim, 2 if stage else 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if prefix else None
        self.pos_embed = nn.Parameter(torch.zeros(1, prefix + height * width, dim))
        self.residual = config.residual_into(stage)
        hidden = config.expansions[stage] * dim
        self.blocks = ScoredBlocks(
            *(
                ScoredBlock(dim, config.attention_for(stage, layer), Mlp(dim, hidden))
                for layer in range(1, config.depths[stage] + 1)
            )
        )

    def forward(
        self, x: Tensor, scores: Tensor | None, maps: Maps | None
    ) -> tuple[Tensor, Tensor | None]:
        """The map (B, C, H, W) and last scores of the stage before to tokens and last scores."""
        x = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        residual = self.residual(scores) if self.residual is not None else None
        out: tuple[Tensor, Tensor | None] = self.blocks(x + self.pos_embed, residual, maps)
        return out


class PVT(LessModel):
    """PVT: images (B, in_chans, H, W) of the configured size to logits (B, num_classes).

    With ``features`` to the maps of the four stages, (B, 64, H/4, W/4) to (B, 512, H/32, W/32).
    """

    def __init__(self, config: PVTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.widths[LAST]
        self.stages = nn.ModuleList(Stage(config, i) for i in range(LAST + 1))
        self.norm = None if config.features else nn.LayerNorm(dim, 1e-6)
        self.head = None if config.features else nn.Linear(dim, config.num_classes)
        init_weights_(self)

    def run(self, x: Tensor, maps: Maps | None) -> Tensor | tuple[Tensor, ...]:
        """Images to the output; what less-attention layers compute is added to ``maps``."""
        check_input(x, self.config.image, "PVT")
        outs: list[Tensor] = []
        scores: Tensor | None = None
        for i, stage in enumerate(self.stages):
            tokens, scores = stage(outs[-1] if outs else x, scores, maps)
            if self.head is not None and self.norm is not None and i == LAST:
                logits: Tensor = self.head(self.norm(tokens[:, 0]))
                return logits
            outs.append(tokens.transpose(1, 2).reshape(-1, tokens.shape[2], *self.config.grid(i)))
        return tuple(outs)

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by our names, positions resized to this model's token maps.

        A model with ``features`` leaves class token, norm and head out.
        """
        adapted = map_keys(state)
        if self.config.features:
            adapted = without_class(adapted)
        for stage in range(LAST + 1):
            name = f"stages.{stage}.pos_embed"
            if name in adapted:
                adapted[name] = resize_positions(
                    adapted[name],
                    self.config.grid(stage),
                    prefix_tokens=self.config.prefix(stage),
                )
        return adapted


def without_class(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a classifier as that of its backbone, without class token, norm and head.

    The authors' own backbones for dense prediction keep the class token's position, which is how
    the last table is one row longer than a map.
    """
    left_out = (f"stages.{LAST}.cls_token", "norm.", "head.")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
    name = f"stages.{LAST}.pos_embed"
    if name in kept:
        rows, before = kept[name].shape[1], state.get(f"stages.{LAST - 1}.pos_embed")
        area = before.shape[1] // 4 if before is not None else math.isqrt(rows) ** 2
        kept[name] = kept[name][:, rows - area :]
    return kept


def _stage_name(match: re.Match[str]) -> str:
    return f"stages.{int(match[2]) - 1}.{'blocks' if match[1] == 'block' else match[1]}"


KEYS: tuple[Rule, ...] = (
    WRAPPED,
    (r"^(block|pos_embed|patch_embed)(\d)", _stage_name),
    (r"^cls_token$", f"stages.{LAST}.cls_token"),
    (r"\.attn\.sr\.", ".attn.reduce.conv."),
    (r"\.attn\.norm\.", ".attn.reduce.norm."),
)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PVT's own released checkpoint by our names."""
    return rename(state, KEYS)


def _pvt(options: dict[str, Any], **variant: Any) -> PVT:
    return PVT(make_config(PVTConfig, variant | options))


TABLE2: dict[str, Any] = {"paper": "lavit", "table": "Table 2"}


@register_model(**TABLE2, published={"params_m": 13.2, "flops_g": 1.9, "top1": 75.1})
def pvt_tiny(**options: Any) -> PVT:
    """PVT-Tiny: 2, 2, 2 and 2 layers of widths 64, 128, 320 and 512."""
    return _pvt(options)


@register_model(**TABLE2, published={"params_m": 24.5, "flops_g": 3.8, "top1": 79.8})
def pvt_small(**options: Any) -> PVT:
    """PVT-Small: 3, 4, 6 and 3 layers of widths 64, 128, 320 and 512."""
    return _pvt(options, depths=(3, 4, 6, 3))


@register_model(**TABLE2, published={"params_m": 44.2, "flops_g": 6.7, "top1": 81.2})
def pvt_medium(**options: Any) -> PVT:
    """PVT-Medium: 3, 4, 18 and 3 layers of widths 64, 128, 320 and 512."""
    return _pvt(options, depths=(3, 4, 18, 3))
