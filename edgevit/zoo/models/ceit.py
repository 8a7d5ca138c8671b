"""CeiT (Yuan et al., "Incorporating convolution designs into visual transformers"), and with less
attention (LaViT, Table 5).

    image
      │ stem          7x7 stride-2 convolution, BatchNorm, 3x3 stride-2 max-pooling: 1/4
      │ patch_embed   4x4 convolution, stride 4: 1/16
      │ class token in front, learned positions
      │ blocks        12 times: x + attention(LN x); x + LeFF(LN x)
      │ lca           one block over the class tokens of all 12, of which the last goes on
      │ head          LayerNorm and Linear
    logits

LeFF (locally enhanced feed-forward) is PW C -> 4C, DW3, PW 4C -> C on the map of the patch tokens,
each with bias and BatchNorm, GELU after the first two; the class token passes it as it is. The
layer-wise class-token attention (LCA) has learned positions, one a layer, and an ordinary MLP. The
released code computes it for every class token and then takes the last; here only the last one's
query, output and MLP are computed, which gives the same. Nothing reads the patch tokens of the last
block, so its LeFF is without effect; it is there, and computed, as released.

LaViT gives no detail of its CeiT. Here the later half of the layers has less attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.zoo.attention.class_attention import ClassAttention
from edgevit.zoo.checkpoints import Rule, rename
from edgevit.zoo.layers import ConvNorm, check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.models.deit import Mlp, check_input, init_weights_
from edgevit.zoo.models.less_common import (
    LessConfig,
    LessModel,
    Maps,
    ScoredBlock,
    check_mixer,
    check_starts,
    token_attention,
)
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED, split_rows, with_positions

__all__ = ["CeiT", "CeiTConfig", "LocallyEnhancedFeedForward", "map_keys"]

STEM = 64


@dataclass(frozen=True)
class CeiTConfig(LessConfig):
    """Configuration of :class:`CeiT`; the defaults are CeiT-T.

    ``mixer`` names a block, ``mixer_options`` go to it.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    width: int = 192
    depth: int = 12
    heads: int = 3
    expansion: int = 4
    mixer: str = "softmax"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_multiple(self.image_size, 16, "CeiT")
        check_starts([self.less_from], [self.depth], [2])
        check_mixer(
            self.mixer,
            self.mixer_options,
            "softmax",
            less=bool(self.less_from),
            takes_options=True,
        )

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return check_multiple(self.image_size, 16, "CeiT")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token map."""
        return self.image[0] // 16, self.image[1] // 16


class LocallyEnhancedFeedForward(nn.Module):
    """PW, DW3, PW on the patch tokens' map, the class token as it is; (B, 1 + N, C) is kept."""

    def __init__(self, dim: int, hidden: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.expand = ConvNorm(dim, hidden, bias=True, activation=nn.GELU())
        self.local = ConvNorm(hidden, hidden, 3, groups=hidden, bias=True, activation=nn.GELU())
        self.reduce = ConvNorm(hidden, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, C) to (B, 1 + N, C)."""
        token, patches = x[:, :1], x[:, 1:]
        image = patches.transpose(1, 2).reshape(-1, x.shape[2], *self.grid)
        out: Tensor = self.reduce(self.local(self.expand(image)))
        return torch.cat([token, out.flatten(2).transpose(1, 2)], 1)


class CeiTBlock(ScoredBlock):
    """x + attention(LN x), then x + LeFF(LN x), handing the scores on."""

    def __init__(self, config: CeiTConfig, layer: int) -> None:
        dim = config.width
        leff = LocallyEnhancedFeedForward(dim, config.expansion * dim, config.grid)
        super().__init__(dim, _attention(config, layer), leff)


def _attention(config: CeiTConfig, layer: int) -> nn.Module:
    dim, heads, grid = config.width, config.heads, config.grid
    if config.mixer == "softmax" and not config.mixer_options:
        tokens = 1 + grid[0] * grid[1]
        return token_attention(config, layer, dim=dim, heads=heads, tokens=tokens)
    options = config.mixer_options
    return make_mixer(config.mixer, dim=dim, heads=heads, tokens=grid, prefix_tokens=1, **options)


class LayerwiseClassAttention(nn.Module):
    """The last of the class tokens after it has seen the others: (B, depth, C) to (B, C)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, 1e-6)
        self.attn = ClassAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, 1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, depth, C) to (B, C)."""
        normed, last = self.norm1(tokens), tokens[:, -1:]
        # The order of the keys does not matter, so the last token may stand first.
        x = last + self.attn(normed[:, -1:], normed[:, :-1])
        out: Tensor = x + self.mlp(self.norm2(x))
        return out[:, 0]


class CeiT(LessModel):
    """CeiT: images (B, in_chans, H, W) of the configured size to logits (B, num_classes)."""

    def __init__(self, config: CeiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, (height, width) = config.width, config.grid
        self.stem = ConvNorm(config.in_chans, STEM, 7, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.patch_embed = nn.Conv2d(STEM, dim, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width, dim))
        self.blocks = nn.ModuleList(CeiTBlock(config, i) for i in range(1, config.depth + 1))
        self.layer_pos_embed = nn.Parameter(torch.zeros(1, config.depth, dim))
        self.lca = LayerwiseClassAttention(dim, config.heads, config.expansion * dim)
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, config.num_classes)
        init_weights_(self)
        nn.init.trunc_normal_(self.layer_pos_embed, std=0.02)

    def run(self, x: Tensor, maps: Maps | None) -> Tensor:
        """Images to logits; what less-attention layers compute is added to ``maps``."""
        check_input(x, self.config.image, "CeiT")
        x = self.patch_embed(self.pool(self.stem(x))).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        tokens = torch.cat(self._class_tokens(x, maps), 1) + self.layer_pos_embed
        logits: Tensor = self.head(self.norm(self.lca(tokens)))
        return logits

    def _class_tokens(self, x: Tensor, maps: Maps | None) -> list[Tensor]:
        """The class token (B, 1, C) after every block."""
        after: list[Tensor] = []
        scores: Tensor | None = None
        block: Any
        for block in self.blocks:
            x, scores = block(x, scores if block.less else None)
            after.append(x[:, :1])
            if maps is not None and block.less and scores is not None:
                maps.append((block.attn, scores))
        return after

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by our names, positions resized to this model's token map."""
        return with_positions(map_keys(state), self.config.grid, prefix_tokens=1)


PARTS = ("expand", "local", "reduce")
KEYS: tuple[Rule, ...] = (
    WRAPPED,
    (r"^i2t\.backbone\.conv\.", "stem.0."),
    (r"^i2t\.backbone\.bn\.", "stem.1."),
    (r"^i2t\.proj\.", "patch_embed."),
    (r"^pos_layer_embed$", "layer_pos_embed"),
    (r"\.leff\.conv(\d)\.", lambda m: f".mlp.{PARTS[int(m[1]) - 1]}.0."),
    (r"\.leff\.bn(\d)\.", lambda m: f".mlp.{PARTS[int(m[1]) - 1]}.1."),
    (r"^lca\.feedforward\.", "lca.mlp."),
)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CeiT's own released checkpoint by our names."""
    parts = ("lca.attn.q.", "lca.attn.k.", "lca.attn.v.")
    return split_rows(rename(state, KEYS), r"^lca\.attn\.qkv\.", parts)


def _tiny(options: dict[str, Any], **variant: Any) -> CeiT:
    return CeiT(make_config(CeiTConfig, variant | options))


def _small(options: dict[str, Any], **variant: Any) -> CeiT:
    return CeiT(make_config(CeiTConfig, {"width": 384, "heads": 6} | variant | options))


TABLE5: dict[str, Any] = {"paper": "lavit", "table": "Table 5"}
BASE = "the published FLOPs could not be reproduced: ours are {} %"
LESS = "the paper gives no detail of it, where less attention starts is ours; the FLOPs are {} %"


@register_model(
    paper="ceit",
    published={"params_m": 6.4, "flops_g": 1.2, "top1": 76.4},
    note=BASE.format("+16.3"),
)
def ceit_tiny(**options: Any) -> CeiT:
    """CeiT-T: 12 layers of width 192, 3 heads."""
    return _tiny(options)


@register_model(
    paper="ceit",
    published={"params_m": 24.2, "flops_g": 4.5, "top1": 82.0},
    note=BASE.format("+5.8"),
)
def ceit_small(**options: Any) -> CeiT:
    """CeiT-S: 12 layers of width 384, 6 heads."""
    return _small(options)


@register_model(
    name="ceit_tiny+la",
    **TABLE5,
    published={"flops_g": 1.1, "top1": 76.7},
    note=LESS.format("+39.9"),
)
def ceit_tiny_la(**options: Any) -> CeiT:
    """CeiT-T with less attention from layer 7 on."""
    return _tiny(options, less_from=7)


@register_model(
    name="ceit_small+la",
    **TABLE5,
    published={"flops_g": 4.1, "top1": 82.4},
    note=LESS.format("+18.8"),
)
def ceit_small_la(**options: Any) -> CeiT:
    """CeiT-S with less attention from layer 7 on."""
    return _small(options, less_from=7)
