"""HVT (Pan et al., "Scalable vision transformers with hierarchical pooling"), and with less
attention (LaViT, Table 5).

    image
      │ patch_embed   16x16 convolution, stride 16; learned positions, no class token
      │ blocks        12 times: x + attention(LN x); x + MLP(LN x)
      │               after some: max-pooling over three tokens in a row, stride 2, new positions
      │ head          LayerNorm, mean over the tokens, Linear
    logits

HVT-S-n pools n times, after blocks 1, 1 + 12/n, ...; the row of tokens is pooled as it is, without
padding: 196, 97, 48, 23, 11.

LaViT's Table 5 names no variant; its FLOPs are those of HVT-S-4 (1.39 G) and HVT-S-0 (4.57 G). A
less-attention layer needs a map of its own number of tokens, so the first layer after a pooling is
a vanilla one here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.checkpoints import rename
from edgevit.zoo.layers import check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.models.deit import Mlp, PatchEmbed, check_input, init_weights_
from edgevit.zoo.models.less_common import (
    LessConfig,
    LessModel,
    Maps,
    ScoredBlock,
    ScoredBlocks,
    VanillaAttention,
    check_mixer,
    check_starts,
    token_attention,
)
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED, resize_positions

__all__ = ["HVT", "HVTConfig", "map_keys"]

#: Tokens that are pooled into one, and how far the next ones are.
KERNEL, STRIDE = 3, 2


@dataclass(frozen=True)
class HVTConfig(LessConfig):
    """Configuration of :class:`HVT`; the defaults are HVT-Ti-1.

    ``pools`` is how often the tokens are pooled; it divides ``depth``. ``mixer`` names a block,
    ``mixer_options`` go to it.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    expansion: int = 4
    pools: int = 1
    mixer: str = "softmax"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_multiple(self.image_size, self.patch_size, "HVT")
        if self.pools < 0 or (self.pools and self.depth % self.pools):
            raise OptionError("pools", expected=f"0 or a divisor of {self.depth}", got=self.pools)
        if self.tokens[-1] < 1:
            raise ShapeError(
                f"{self.tokens[0]} tokens cannot be pooled {self.pools} times by {KERNEL}",
                hint="take a larger image, or fewer pools",
            )
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
        return check_multiple(self.image_size, self.patch_size, "HVT")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token map before any pooling."""
        return self.image[0] // self.patch_size, self.image[1] // self.patch_size

    @property
    def tokens(self) -> tuple[int, ...]:
        """Number of tokens before any pooling and after each."""
        counts = [self.grid[0] * self.grid[1]]
        for _ in range(self.pools):
            counts.append((counts[-1] - KERNEL) // STRIDE + 1)
        return tuple(counts)

    def pools_after(self, layer: int) -> bool:
        """Whether the tokens are pooled after a layer; layers are counted from 1."""
        return bool(self.pools) and (layer - 1) % (self.depth // self.pools) == 0

    def tokens_in(self, layer: int) -> int:
        """Number of tokens of a layer."""
        return self.tokens[sum(self.pools_after(before) for before in range(1, layer))]


def _attention(config: HVTConfig, layer: int) -> nn.Module:
    dim, heads, tokens = config.width, config.heads, config.tokens_in(layer)
    if config.mixer != "softmax" or config.mixer_options:
        grid = config.grid if tokens == config.tokens[0] else (tokens, 1)
        return make_mixer(config.mixer, dim=dim, heads=heads, tokens=grid, **config.mixer_options)
    if layer > 1 and config.pools_after(layer - 1):
        return VanillaAttention(dim, heads)
    return token_attention(config, layer, dim=dim, heads=heads, tokens=tokens)


class HVTBlock(ScoredBlock):
    """Attention and MLP, and perhaps pooling and new positions, handing the scores on."""

    def __init__(self, config: HVTConfig, layer: int) -> None:
        dim = config.width
        super().__init__(dim, _attention(config, layer), Mlp(dim, config.expansion * dim))
        pools = config.pools_after(layer)
        self.pool = nn.MaxPool1d(KERNEL, STRIDE) if pools else None
        after = config.tokens_in(layer + 1)
        self.pos_embed = nn.Parameter(torch.zeros(1, after, dim)) if pools else None

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) and perhaps a map to (B, N or (N - 1) / 2, C) and the block's own map."""
        x, scores = super().forward(x, given)
        if self.pool is not None and self.pos_embed is not None:
            x = self.pool(x.transpose(1, 2)).transpose(1, 2) + self.pos_embed
        return x, scores


class HVT(LessModel):
    """HVT: images (B, in_chans, H, W) of the configured size to logits (B, num_classes)."""

    def __init__(self, config: HVTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.width
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens[0], dim))
        self.blocks = ScoredBlocks(*(HVTBlock(config, i) for i in range(1, config.depth + 1)))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, config.num_classes)
        init_weights_(self)

    def run(self, x: Tensor, maps: Maps | None) -> Tensor:
        """Images to logits; what less-attention layers compute is added to ``maps``."""
        check_input(x, self.config.image, "HVT")
        x, _ = self.blocks(self.patch_embed(x) + self.pos_embed, maps=maps)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by our names, positions resized to this model's tokens.

        The positions of the map are resized as an image, those after a pooling as a row.
        """
        adapted, own = map_keys(state), self.state_dict()
        for name, table in adapted.items():
            if name == "pos_embed":
                adapted[name] = resize_positions(table, self.config.grid)
            elif name.endswith(".pos_embed") and name in own:
                adapted[name] = _resized_row(table, own[name].shape[1])
        return adapted


def _resized_row(table: Tensor, tokens: int) -> Tensor:
    """Positions (1, N, C) as those of another number of tokens."""
    if table.shape[1] == tokens:
        return table
    rows = F.interpolate(table.float().transpose(1, 2), tokens, mode="linear", align_corners=False)
    return rows.transpose(1, 2).to(table.dtype)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """HVT's own released checkpoint by our names, which are the same."""
    return rename(state, (WRAPPED,))


def _tiny(options: dict[str, Any], **variant: Any) -> HVT:
    return HVT(make_config(HVTConfig, variant | options))


def _small(options: dict[str, Any], **variant: Any) -> HVT:
    return HVT(make_config(HVTConfig, {"width": 384, "heads": 6} | variant | options))


TABLE5: dict[str, Any] = {"paper": "lavit", "table": "Table 5"}
OTHER = "LaViT's Table 5 has {} instead"
LESS = "the paper gives no detail of it, where less attention starts is ours{}"


@register_model(
    aliases=("hvt_ti_1",),
    paper="hvt",
    published={"params_m": 5.74, "flops_g": 0.64, "top1": 69.64},
    note=OTHER.format("HVT-S-4"),
)
def hvt_tiny(**options: Any) -> HVT:
    """HVT-Ti-1: 12 layers of width 192, 3 heads, pooled once."""
    return _tiny(options)


@register_model(
    aliases=("hvt_s_1",),
    paper="hvt",
    published={"params_m": 22.09, "flops_g": 2.40, "top1": 78.00},
    note=OTHER.format("HVT-S-0"),
)
def hvt_small(**options: Any) -> HVT:
    """HVT-S-1: 12 layers of width 384, 6 heads, pooled once."""
    return _small(options)


@register_model(aliases=("hvt_s_0",), **TABLE5, published={"flops_g": 4.6, "top1": 80.4})
def hvt_small_0(**options: Any) -> HVT:
    """HVT-S-0: 12 layers of width 384, 6 heads, never pooled."""
    return _small(options, pools=0)


@register_model(aliases=("hvt_s_4",), **TABLE5, published={"flops_g": 1.4, "top1": 75.7})
def hvt_small_4(**options: Any) -> HVT:
    """HVT-S-4: 12 layers of width 384, 6 heads, pooled four times."""
    return _small(options, pools=4)


@register_model(name="hvt_tiny+la", note=LESS.format("; LaViT's Table 5 has HVT-S-4 instead"))
def hvt_tiny_la(**options: Any) -> HVT:
    """HVT-Ti-1 with less attention from layer 7 on."""
    return _tiny(options, less_from=7)


@register_model(name="hvt_small+la", note=LESS.format("; LaViT's Table 5 has HVT-S-0 instead"))
def hvt_small_la(**options: Any) -> HVT:
    """HVT-S-1 with less attention from layer 7 on."""
    return _small(options, less_from=7)


@register_model(
    name="hvt_small_0+la",
    **TABLE5,
    published={"flops_g": 4.2, "top1": 80.8},
    note=LESS.format("; the FLOPs are +11.4 %"),
)
def hvt_small_0_la(**options: Any) -> HVT:
    """HVT-S-0 with less attention from layer 7 on."""
    return _small(options, pools=0, less_from=7)


@register_model(
    name="hvt_small_4+la",
    **TABLE5,
    published={"flops_g": 1.2, "top1": 76.2},
    note=LESS.format("; the FLOPs are +13.6 %"),
)
def hvt_small_4_la(**options: Any) -> HVT:
    """HVT-S-4 with less attention from layer 7 on, but for the first layer after a pooling."""
    return _small(options, pools=4, less_from=7)
