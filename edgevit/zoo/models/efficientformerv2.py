"""EfficientFormerV2 (Li et al., "Rethinking vision transformers for MobileNet size and speed",
2023); a competitor in EleViT's tables, and the host of its attention in one of them.

    image
      │ stem          two 3x3 stride-2 convolutions, each with BatchNorm and GELU: 1/4
      │ stage 1..4    FFNs; the last blocks of stages 3 and 4 have attention before the FFN
      │               between stages a 3x3 stride-2 convolution and BatchNorm; before stage 4 an
      │               attention whose queries are at half resolution is added to it
      │ head          BatchNorm, mean over the map, two Linears averaged
    logits

FFN: PW, DW3, PW, each with BatchNorm, GELU after the first two. Attention has talking heads, a
depthwise convolution of the value added to its output, biases by distance, and in stage 3 works at
half resolution. Both have a LayerScale and a residual.

Another block takes the attention's place with ``mixer`` (``efficientformerv2_l+elementwise``): in
stages 3 and 4, where stage 3 then keeps its full resolution, as EleViT's paper says; or in stage 4
alone with ``mixer_stages="last"``. The paper prints 19.5 M parameters, which neither reading gives:
with 10 classes they have 16.6 M and 19.6 M. The attention between stages 3 and 4 stays in both.

The second Linear of the head is the one that was distilled; see :mod:`swiftformer
<edgevit.zoo.models.swiftformer>`, which this family shares its head and residuals with.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.relative_bias import RelativeBias, fit_tables
from edgevit.zoo.checkpoints import STAGED, Rule, fit_shapes, rename
from edgevit.zoo.layers import ConvNorm, as_pair, check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.models.efficientvit import check_built_for
from edgevit.zoo.models.swiftformer import PooledHead, ScaledResidual, merge_heads_of
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED

__all__ = ["EfficientFormerV2", "EfficientFormerV2Config", "map_keys"]

Grid = tuple[int, int]
STRIDE = 32
MIXER_STAGES = ("all", "last")


@dataclass(frozen=True)
class EfficientFormerV2Config:
    """Configuration of :class:`EfficientFormerV2`, stage by stage.

    ``expansions`` hold one factor a block; their number is the stage's depth. ``attention_blocks``
    is how many blocks, the last ones of stages 3 and 4, have attention. ``mixer`` names another
    block for it, in the ``mixer_stages`` ``"all"`` or ``"last"``.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    widths: tuple[int, int, int, int] = (40, 80, 192, 384)
    expansions: tuple[tuple[int, ...], ...] = (
        (4,) * 5,
        (4,) * 5,
        (4,) * 4 + (3,) * 7 + (4,) * 4,
        (4,) * 3 + (3,) * 4 + (4,) * 3,
    )
    attention_blocks: int = 6
    heads: int = 8
    key_dim: int = 32
    value_ratio: int = 4
    mixer: str | None = None
    mixer_stages: str = "all"
    layer_scale: float = 1e-5
    distillation: bool = True

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_multiple(self.image_size, STRIDE, "EfficientFormerV2")
        if self.mixer_stages not in MIXER_STAGES:
            raise OptionError(
                "mixer_stages", expected=" or ".join(MIXER_STAGES), got=self.mixer_stages
            )

    def grid(self, stage: int) -> Grid:
        """Height and width of the maps of a stage."""
        height, width = as_pair(self.image_size)
        return height // (4 << stage), width // (4 << stage)

    def has_attention(self, stage: int, block: int) -> bool:
        """Whether that block, both counted from 0, has attention before its FFN."""
        return stage >= 2 and block >= len(self.expansions[stage]) - self.attention_blocks

    def attention(self, stage: int) -> nn.Module:
        """The attention of a block of that stage: maps (B, C, H, W) to the same."""
        dim, grid = self.widths[stage], self.grid(stage)
        if self.mixer is not None and (stage == 3 or self.mixer_stages == "all"):
            return make_mixer(self.mixer, dim=dim, heads=self.heads, tokens=grid, layout="map")
        return TalkingAttention(dim, grid, self, stride=2 if stage == 2 else 1)


class TalkingAttention(nn.Module):
    """Attention with talking heads and a local term: (B, C, H, W) to (B, C, H, W).

        V = BN(PW(X)),  A = T2 softmax(T1 (Q Kᵀ / sqrt(32) + bias)),  Y = BN(PW(GELU(A V + DW(V))))

    T1 and T2 mix the heads. With a stride of 2, X is brought to half resolution by a depthwise
    convolution first, and A V + DW(V) is brought back by bilinear interpolation.
    """

    def __init__(
        self, dim: int, grid: Grid, config: EfficientFormerV2Config, *, stride: int
    ) -> None:
        super().__init__()
        self.heads, self.scale = config.heads, config.key_dim**-0.5
        self.grid = (grid[0] // stride, grid[1] // stride)
        keys, values = self.heads * config.key_dim, self.heads * config.key_dim * config.value_ratio
        self.reduce = (
            ConvNorm(dim, dim, 3, stride, groups=dim, bias=True) if stride > 1 else nn.Identity()
        )
        self.query = ConvNorm(dim, keys, bias=True)
        self.key = ConvNorm(dim, keys, bias=True)
        self.value = ConvNorm(dim, values, bias=True)
        self.local = ConvNorm(values, values, 3, groups=values, bias=True)
        self.relative_bias = RelativeBias(self.heads, self.grid)
        self.talk_before = nn.Conv2d(self.heads, self.heads, 1)
        self.talk_after = nn.Conv2d(self.heads, self.heads, 1)
        self.restore = (
            nn.Upsample(scale_factor=stride, mode="bilinear") if stride > 1 else nn.Identity()
        )
        self.gelu = nn.GELU()
        self.proj = ConvNorm(values, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        x = self.reduce(x)
        value = self.value(x)
        scores = attention_scores(self.query(x), self.key(x), self.heads, self.scale)
        weights = self.talk_before(scores + self.relative_bias()).softmax(-1)
        mixed = apply_attention(self.talk_after(weights), value, self.grid) + self.local(value)
        out: Tensor = self.proj(self.gelu(self.restore(mixed)))
        return out


class DownsampleAttention(nn.Module):
    """Attention whose queries are at half resolution: (B, C, H, W) to (B, out, H / 2, W / 2).

    A query is BN(PW(x + DW(x))) of every second cell x; keys are half as wide as in the blocks.
    """

    def __init__(self, dim: int, out: int, grid: Grid, config: EfficientFormerV2Config) -> None:
        super().__init__()
        key_dim = config.key_dim // 2
        self.heads, self.scale = config.heads, key_dim**-0.5
        self.grid = (grid[0] // 2, grid[1] // 2)
        keys, values = self.heads * key_dim, self.heads * key_dim * config.value_ratio
        self.every_second = nn.AvgPool2d(1, 2)
        self.near = nn.Conv2d(dim, dim, 3, 2, 1, groups=dim)
        self.query = ConvNorm(dim, keys, bias=True)
        self.key = ConvNorm(dim, keys, bias=True)
        self.value = ConvNorm(dim, values, bias=True)
        self.local = ConvNorm(values, values, 3, 2, groups=values, bias=True)
        self.relative_bias = RelativeBias(self.heads, grid, stride=2)
        self.gelu = nn.GELU()
        self.proj = ConvNorm(values, out, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out, H / 2, W / 2)."""
        query = self.query(self.every_second(x) + self.near(x))
        value = self.value(x)
        scores = attention_scores(query, self.key(x), self.heads, self.scale)
        weights = (scores + self.relative_bias()).softmax(-1)
        mixed = apply_attention(weights, value, self.grid) + self.local(value)
        out: Tensor = self.proj(self.gelu(mixed))
        return out


def attention_scores(query: Tensor, key: Tensor, heads: int, scale: float) -> Tensor:
    """Scaled products of maps (B, heads * d, h, w): (B, heads, queries, keys)."""
    return (split_map(query, heads) * scale).transpose(-2, -1) @ split_map(key, heads)


def apply_attention(weights: Tensor, value: Tensor, grid: Grid) -> Tensor:
    """Weights (B, heads, queries, keys) on a map (B, heads * d, h, w): (B, heads * d, *grid)."""
    mixed = split_map(value, weights.shape[1]) @ weights.transpose(-2, -1)
    return mixed.reshape(-1, value.shape[1], *grid)


def split_map(x: Tensor, heads: int) -> Tensor:
    """(B, heads * d, h, w) to (B, heads, d, h * w)."""
    _, channels, height, width = x.shape
    return x.reshape(-1, heads, channels // heads, height * width)


class AttentionDownsample(nn.Module):
    """BN(Conv3 of stride 2) plus attention at half resolution, before stage 4."""

    def __init__(self, dim: int, out: int, grid: Grid, config: EfficientFormerV2Config) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, out, 3, 2, bias=True)
        self.attention = DownsampleAttention(dim, out, grid, config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out, H / 2, W / 2)."""
        out: Tensor = self.attention(x) + self.conv(x)
        return out


def feed_forward(dim: int, expansion: int) -> nn.Sequential:
    """PW C -> expansion · C, DW3, PW back, each with BatchNorm, GELU after the first two."""
    hidden = expansion * dim
    return nn.Sequential(
        ConvNorm(dim, hidden, bias=True, activation=nn.GELU()),
        ConvNorm(hidden, hidden, 3, groups=hidden, bias=True, activation=nn.GELU()),
        ConvNorm(hidden, dim, bias=True),
    )


class Block(nn.Sequential):
    """Attention, where the block has it, and FFN, each with LayerScale and residual."""

    def __init__(self, stage: int, block: int, config: EfficientFormerV2Config) -> None:
        dim, scale = config.widths[stage], config.layer_scale
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if config.has_attention(stage, block):
            parts["attention"] = ScaledResidual(config.attention(stage), dim, scale)
        mlp = feed_forward(dim, config.expansions[stage][block])
        parts["mlp"] = ScaledResidual(mlp, dim, scale)
        super().__init__(parts)


def make_downsample(stage: int, config: EfficientFormerV2Config) -> nn.Module:
    """What lies before a stage."""
    if stage == 0:
        return nn.Identity()
    dim, out = config.widths[stage - 1], config.widths[stage]
    if stage == 3:
        return AttentionDownsample(dim, out, config.grid(stage - 1), config)
    return ConvNorm(dim, out, 3, 2, bias=True)


class Stage(nn.Sequential):
    """What lies before a stage, and its blocks."""

    def __init__(self, stage: int, config: EfficientFormerV2Config) -> None:
        depth = len(config.expansions[stage])
        blocks = nn.Sequential(*(Block(stage, i, config) for i in range(depth)))
        super().__init__(OrderedDict(downsample=make_downsample(stage, config), blocks=blocks))


class EfficientFormerV2(nn.Module):
    """EfficientFormerV2: images (B, in_chans, H, W), multiples of 32, to (B, num_classes)."""

    def __init__(self, config: EfficientFormerV2Config) -> None:
        super().__init__()
        self.config = config
        channels = (config.in_chans, config.widths[0] // 2, config.widths[0])
        self.stem = nn.Sequential(
            *(
                ConvNorm(a, b, 3, 2, bias=True, activation=nn.GELU())
                for a, b in itertools.pairwise(channels)
            )
        )
        self.stages = nn.Sequential(*(Stage(i, config) for i in range(4)))
        self.head = PooledHead(
            config.widths[-1], config.num_classes, distillation=config.distillation
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Raises:
            ShapeError: the images are not of the size that the model was built for.
        """
        check_built_for(self.config.image_size, x)
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A released state dict, or our own of another image size, made to fit this model.

        Names are mapped (:func:`map_keys`), bias tables resized; two heads become one in a model
        with one.
        """
        mapped = fit_tables(self, fit_shapes(self, map_keys(state)))
        return mapped if self.config.distillation else merge_heads_of(mapped)


PART = {"conv": 0, "bn": 1}
MLP = {"fc1": "0.0", "norm1": "0.1", "mid": "1.0", "mid_norm": "1.1", "fc2": "2.0", "norm2": "2.1"}


def _timm_downsample(match: re.Match[str]) -> str:
    inside = ".conv" if match[1] == "3" else ""
    return f"stages.{match[1]}.downsample{inside}.{PART[match[2]]}."


#: The authors' released state dicts (network, q.0) and timm's (stages, q.conv) to our names.
KEY_MAP: tuple[Rule, ...] = (
    WRAPPED,
    (r".*\.attention_bias_idxs$", ""),
    *STAGED,
    (r"^stem\.conv(\d)\.", lambda m: f"stem.{int(m[1]) - 1}."),
    (r"^stages\.(\d)\.downsample\.conv\.(conv|bn)\.", _timm_downsample),
    (r"\.downsample\.(conv|bn)\.(?=\w+$)", lambda m: f".downsample.conv.{PART[m[1]]}."),
    (r"\.downsample\.proj\.", ".downsample.0."),
    (r"\.downsample\.norm\.", ".downsample.1."),
    (r"\.(token_mixer|attn)\.proj\.([12])\.", lambda m: f".{m[1]}.proj.{int(m[2]) - 1}."),
    (r"\.attn\.q\.local\.(?:0\.)?", ".attn.near."),
    (r"\.attn\.q\.proj\.", ".attn.query."),
    (r"\.attn\.", ".attention."),
    (r"\.token_mixer\.", ".attention.inner."),
    (r"\.(?:ls|layer_scale_)1(?:\.gamma)?$", ".attention.scale"),
    (r"\.(?:ls|layer_scale_)2(?:\.gamma)?$", ".mlp.scale"),
    (r"\.q\.", ".query."),
    (r"\.k\.", ".key."),
    (r"\.v\.", ".value."),
    (r"\.v_local\.", ".local."),
    (r"\.stride_conv\.", ".reduce."),
    (r"\.talking_head1\.", ".talk_before."),
    (r"\.talking_head2\.", ".talk_after."),
    (r"\.attention_biases$", ".relative_bias.table"),
    (r"\.mlp\.(fc1|mid|fc2)\.(conv|bn)\.", lambda m: f".mlp.inner.{MLP[m[1]][0]}.{PART[m[2]]}."),
    (r"\.mlp\.(fc1|mid|fc2|norm1|mid_norm|norm2)\.", lambda m: f".mlp.inner.{MLP[m[1]]}."),
    (r"(?<!\.downsample)\.(conv|bn)\.", lambda m: f".{PART[m[1]]}."),
)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the released models, the authors' or timm's, under our names."""
    return rename(state, KEY_MAP)


def _efficientformerv2(options: dict[str, Any], **variant: Any) -> EfficientFormerV2:
    return EfficientFormerV2(make_config(EfficientFormerV2Config, variant | options))


@register_model(
    paper="efficientformerv2",
    published={"params_m": 26.1, "flops_g": 2.56},
    note="EleViT's tables print 25.6 M for it, its count without distillation head and with few "
    "classes (distillation=False)",
)
def efficientformerv2_l(**options: Any) -> EfficientFormerV2:
    """EfficientFormerV2-L."""
    return _efficientformerv2(options)


ELEVIT: dict[str, Any] = {"paper": "elevit", "num_classes": 10, "published": {"params_m": 19.5}}


@register_model(
    **ELEVIT,
    name="efficientformerv2_l+elementwise",
    note="as the text says; the printed count fits neither it (16.6 M) nor stage 4 alone (19.6 M)",
)
def efficientformerv2_l_elementwise(**options: Any) -> EfficientFormerV2:
    """EfficientFormerV2-L with EleViT's attention in stages 3 and 4."""
    return _efficientformerv2(options, mixer="elementwise")


@register_model(
    **ELEVIT,
    name="efficientformerv2_l+elementwise_last",
    note="the reading nearest to the printed count (19.6 M); the text replaces stage 3 as well",
)
def efficientformerv2_l_elementwise_last(**options: Any) -> EfficientFormerV2:
    """EfficientFormerV2-L with EleViT's attention in stage 4 alone."""
    return _efficientformerv2(options, mixer="elementwise", mixer_stages="last")
