"""XCiT (El-Nouby et al. 2021), and XCiT with SimA or another block in place of its attention.

    image
      │ patch_embed       3x3 stride-2 convolutions with BatchNorm, GELU between: 1/16 or 1/8
      │ positions         a fixed sine and cosine map through a learned 1x1 convolution, added once
      │ blocks            x + γ₁ attention(LN x); x + γ₃ LPI(LN x); x + γ₂ MLP(LN x)
      │ class token       from here on
      │ cls_attn_blocks   2 class-attention blocks
      │ head              LayerNorm and Linear on the class token
    logits

A class-attention block with class token t and patch tokens p, as released:

    t <- t + γ₁ CA(LN t, LN p)        p <- p + γ₁ LN p
    t <- LN t                         p <- LN p
    t <- t + γ₂ MLP(t)                p <- p + p

The doubling of the patch tokens is a quirk of the released code, which the next block sees. Class
attention follows the mixer: SimA's own with SimA, the softmax otherwise.

``features=True`` builds the backbone for dense prediction instead: no class token and head, but
maps at 1/4, 1/8, 1/16 and 1/32 of the image, taken after a third, a half, two thirds and all of the
blocks (4, 6, 8 and 12 of 12, SimA section 4.2) and brought to their sizes by transposed
convolutions and max-pooling.

The names of the parameters are those of the released checkpoints, but for the class attention's
three projections, which are apart here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.class_attention import ClassAttention
from edgevit.zoo.checkpoints import Rule, rename
from edgevit.zoo.layers import ConvNorm, check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.models.deit import Mlp, check_input, init_weights_
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED, split_rows

__all__ = ["XCiT", "XCiTConfig", "fourier_positions", "map_keys"]

#: Fractions of the width that the patch embedding passes through.
STEMS = {16: (8, 4, 2, 1), 8: (4, 2, 1)}
#: Channels of the position map per axis, sines and cosines together.
FOURIER = 32
KEYS: tuple[Rule, ...] = (WRAPPED, (r"^pos_embeder\.", "pos_embed."))


@dataclass(frozen=True)
class XCiTConfig:
    """Configuration of :class:`XCiT`; the defaults are XCiT-S12/16.

    ``class_attention`` is ``"softmax"`` or ``"sima"``, by default what goes with the mixer;
    ``tokens_norm`` says whether the class blocks' second norm takes the patch tokens too.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 8
    expansion: int = 4
    class_depth: int = 2
    layer_scale: float = 1.0
    tokens_norm: bool = True
    mixer: str = "xca"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    class_attention: str | None = None
    features: bool = False

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        if self.patch_size not in STEMS:
            raise OptionError("patch_size", expected="8 or 16", got=self.patch_size)
        if self.width % 8:
            raise OptionError("width", expected="a multiple of 8", got=self.width)
        # The coarsest feature map is at 1/32.
        multiple = max(self.patch_size, 32) if self.features else self.patch_size
        check_multiple(self.image_size, multiple, "XCiT")

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return check_multiple(self.image_size, self.patch_size, "XCiT")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token map."""
        return self.image[0] // self.patch_size, self.image[1] // self.patch_size

    @property
    def class_mixer(self) -> str:
        """The mixer of the class attention."""
        return self.class_attention or ("sima" if self.mixer == "sima" else "softmax")

    @property
    def feature_blocks(self) -> tuple[int, ...]:
        """After how many blocks each feature map is taken, finest first."""
        return tuple(max(1, self.depth * part // 6) for part in (2, 3, 4, 6))


class PatchEmbed(nn.Module):
    """Convolutions to 1/patch: (B, in_chans, H, W) to (B, C, H/patch, W/patch)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = in_chans
        for part in STEMS[patch_size]:
            if layers:
                layers.append(nn.GELU())
            layers.append(ConvNorm(previous, dim // part, 3, stride=2))
            previous = dim // part
        self.proj = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, C, H/patch, W/patch)."""
        out: Tensor = self.proj(x)
        return out


def fourier_positions(grid: tuple[int, int], channels: int = FOURIER) -> Tensor:
    """The fixed position map (1, 2 * channels, h, w): y half first, sine and cosine alternating.

    Coordinates run from 1 and end at 2π; frequencies fall geometrically to 1/10000.
    """
    exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    halves = []
    for axis, size in enumerate(grid):
        coordinates = torch.arange(1, size + 1, dtype=torch.float64) * (2 * math.pi / size)
        angles = coordinates[:, None] / 10000.0**exponents
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(1).T
        halves.append(waves.unsqueeze(2 - axis).expand(-1, *grid))
    return torch.cat(halves).unsqueeze(0).float()


class Positions(nn.Module):
    """The position map projected to the width: (1, C, h, w), the same for every image."""

    table: Tensor

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * FOURIER, dim, 1)
        # It depends on the grid alone, so checkpoints have no place for it.
        self.register_buffer("table", fourier_positions(grid), persistent=False)

    def forward(self) -> Tensor:
        """(1, C, h, w)."""
        out: Tensor = self.token_projection(self.table)
        return out


class LocalPatchInteraction(nn.Module):
    """DW3, GELU, BatchNorm, DW3 on the token map: (B, N, C) to (B, N, C)."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        image = x.transpose(1, 2).reshape(-1, x.shape[2], *self.grid)
        out: Tensor = self.conv2(self.bn(self.act(self.conv1(image))))
        return out.flatten(2).transpose(1, 2)


class XCiTBlock(nn.Module):
    """Attention, local patch interaction and MLP, each with LayerScale; (B, N, C) to (B, N, C)."""

    def __init__(self, config: XCiTConfig) -> None:
        super().__init__()
        dim = config.width
        self.norm1 = nn.LayerNorm(dim, 1e-6)
        self.attn = make_mixer(
            config.mixer,
            dim=dim,
            heads=config.heads,
            tokens=config.grid,
            **config.mixer_options,
        )
        self.norm3 = nn.LayerNorm(dim, 1e-6)
        self.local_mp = LocalPatchInteraction(dim, config.grid)
        self.norm2 = nn.LayerNorm(dim, 1e-6)
        self.mlp = Mlp(dim, config.expansion * dim)
        self.gamma1 = _layer_scale(config)
        self.gamma3 = _layer_scale(config)
        self.gamma2 = _layer_scale(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = x + self.gamma1 * self.attn(self.norm1(x))
        x = x + self.gamma3 * self.local_mp(self.norm3(x))
        out: Tensor = x + self.gamma2 * self.mlp(self.norm2(x))
        return out


class ClassAttentionBlock(nn.Module):
    """Class attention and MLP: class token (B, 1, C) and patch tokens (B, N, C) to the like."""

    def __init__(self, config: XCiTConfig) -> None:
        super().__init__()
        dim = config.width
        self.tokens_norm = config.tokens_norm
        self.norm1 = nn.LayerNorm(dim, 1e-6)
        self.attn = ClassAttention(dim, config.heads, mixer=config.class_mixer)
        self.norm2 = nn.LayerNorm(dim, 1e-6)
        self.mlp = Mlp(dim, config.expansion * dim)
        self.gamma1 = _layer_scale(config)
        self.gamma2 = _layer_scale(config)

    def forward(self, token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, C) and (B, N, C) to the like; see the module's docstring."""
        token_norm, patches_norm = self.norm1(token), self.norm1(patches)
        token = self.norm2(token + self.gamma1 * self.attn(token_norm, patches_norm))
        patches = patches + self.gamma1 * patches_norm
        if self.tokens_norm:
            patches = self.norm2(patches)
        return token + self.gamma2 * self.mlp(token), patches + patches


def _layer_scale(config: XCiTConfig) -> nn.Parameter:
    return nn.Parameter(torch.full((config.width,), config.layer_scale))


def _pyramid(dim: int, patch_size: int) -> list[nn.Module]:
    """From maps at 1/patch to maps at 1/4, 1/8, 1/16 and 1/32, as XCiT's detection backbone."""

    def up() -> nn.Module:
        return nn.ConvTranspose2d(dim, dim, 2, 2)

    if patch_size == 8:
        return [nn.Sequential(up()), nn.Identity(), nn.MaxPool2d(2), nn.MaxPool2d(4)]
    first = nn.Sequential(up(), nn.BatchNorm2d(dim), nn.GELU(), up())
    return [first, nn.Sequential(up()), nn.Identity(), nn.MaxPool2d(2)]


class XCiT(nn.Module):
    """XCiT: images (B, in_chans, H, W) of the configured size to logits or four feature maps."""

    def __init__(self, config: XCiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.width
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        self.pos_embed = Positions(dim, config.grid)
        self.blocks = nn.ModuleList(XCiTBlock(config) for _ in range(config.depth))
        if config.features:
            for i, scale in enumerate(_pyramid(dim, config.patch_size), 1):
                self.add_module(f"fpn{i}", scale)
        else:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.cls_attn_blocks = nn.ModuleList(
                ClassAttentionBlock(config) for _ in range(config.class_depth)
            )
            self.norm = nn.LayerNorm(dim, 1e-6)
            self.head = nn.Linear(dim, config.num_classes)
        init_weights_(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        With ``features`` to four maps (B, C, H/4, W/4), ... (B, C, H/32, W/32).

        Raises:
            ShapeError: the image has not the size that the model was built for.
        """
        check_input(x, self.config.image, "XCiT")
        x = self.patch_embed(x) + self.pos_embed()
        x = x.flatten(2).transpose(1, 2)
        return self._features(x) if self.config.features else self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        token = self.cls_token.expand(x.shape[0], -1, -1)
        for block in self.cls_attn_blocks:
            token, x = block(token, x)
        logits: Tensor = self.head(self.norm(token[:, 0]))
        return logits

    def _features(self, x: Tensor) -> tuple[Tensor, ...]:
        after = []
        for block in self.blocks:
            x = block(x)
            after.append(x)
        maps = []
        for i, count in enumerate(self.config.feature_blocks, 1):
            image = after[count - 1].transpose(1, 2).reshape(-1, x.shape[2], *self.config.grid)
            maps.append(self.get_submodule(f"fpn{i}")(image))
        return tuple(maps)

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by our names; positions come from the grid and need no resizing."""
        return map_keys(state)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released checkpoint (XCiT's own, SimA's, timm's) by our names."""
    joint = r"^(cls_attn_blocks\.\d+\.attn\.)qkv\."
    parts = (r"\1q.", r"\1k.", r"\1v.")
    return split_rows(rename(state, KEYS), joint, parts)


def _xcit(options: dict[str, Any], **variant: Any) -> XCiT:
    return XCiT(make_config(XCiTConfig, variant | options))


def _tiny(options: dict[str, Any], **variant: Any) -> XCiT:
    return _xcit(options, **({"width": 192, "heads": 4} | variant))


TABLE1: dict[str, Any] = {"paper": "sima", "table": "Table 1"}
TABLE2: dict[str, Any] = {"paper": "sima", "table": "Table 2"}
SMALL = "Table 2 prints 22M for XCiT-S12/16, Table 1 prints 26M, which is what it has"


@register_model(**TABLE1, published={"params_m": 26, "flops_g": 4.8, "top1": 82.0})
def xcit_small_12_p16(**options: Any) -> XCiT:
    """XCiT-S12/16: 12 layers, width 384, 8 heads, patches of 16."""
    return _xcit(options)


@register_model(
    name="xcit_small_12_p16+sima",
    aliases=("sima_small_12_p16",),
    **TABLE1,
    published={"params_m": 26, "flops_g": 4.8, "top1": 82.1},
)
def xcit_small_12_p16_sima(**options: Any) -> XCiT:
    """XCiT-S12/16 with SimA."""
    return _xcit(options, mixer="sima")


@register_model(
    name="xcit_small_12_p16+efficient",
    **TABLE2,
    published={"params_m": 22, "flops_g": 4.8, "top1": 80.9},
    note=SMALL,
)
def xcit_small_12_p16_efficient(**options: Any) -> XCiT:
    """XCiT-S12/16 with efficient attention."""
    return _xcit(options, mixer="efficient")


@register_model(
    name="xcit_small_12_p16+cosformer",
    **TABLE2,
    published={"params_m": 22, "flops_g": 4.8, "top1": 76.1},
    note=SMALL,
)
def xcit_small_12_p16_cosformer(**options: Any) -> XCiT:
    """XCiT-S12/16 with CosFormer's attention without re-weighting."""
    return _xcit(options, mixer="cosformer")


@register_model(**TABLE1, published={"params_m": 7, "flops_g": 4.8, "top1": 79.7})
def xcit_tiny_12_p8(**options: Any) -> XCiT:
    """XCiT-T12/8: 12 layers, width 192, 4 heads, patches of 8."""
    return _tiny(options, patch_size=8)


@register_model(
    name="xcit_tiny_12_p8+sima",
    aliases=("sima_tiny_12_p8",),
    **TABLE1,
    published={"params_m": 7, "flops_g": 4.8, "top1": 79.4},
)
def xcit_tiny_12_p8_sima(**options: Any) -> XCiT:
    """XCiT-T12/8 with SimA."""
    return _tiny(options, patch_size=8, mixer="sima")


@register_model(**TABLE1, published={"params_m": 12, "flops_g": 2.3, "top1": 79.4})
def xcit_tiny_24_p16(**options: Any) -> XCiT:
    """XCiT-T24/16: 24 layers, width 192, 4 heads, patches of 16."""
    return _tiny(options, depth=24, layer_scale=1e-5)


@register_model(
    name="xcit_tiny_24_p16+sima",
    aliases=("sima_tiny_24_p16",),
    **TABLE1,
    published={"params_m": 12, "flops_g": 2.3, "top1": 79.8},
)
def xcit_tiny_24_p16_sima(**options: Any) -> XCiT:
    """XCiT-T24/16 with SimA."""
    return _tiny(options, depth=24, layer_scale=1e-5, mixer="sima")


@register_model()
def xcit_tiny_20_p16(**options: Any) -> XCiT:
    """XCiT-T20/16: 20 layers, width 192, 4 heads, patches of 16."""
    return _tiny(options, depth=20, layer_scale=1e-5)


@register_model(
    name="xcit_tiny_20_p16+sima",
    **TABLE2,
    published={"params_m": 12, "flops_g": 1.9, "top1": 79.2},
    note="the published 12M fits 24 layers, the published 1.9B fits 20; ours has 20",
)
def xcit_tiny_20_p16_sima(**options: Any) -> XCiT:
    """XCiT-T20/16 with SimA."""
    return _tiny(options, depth=20, layer_scale=1e-5, mixer="sima")
