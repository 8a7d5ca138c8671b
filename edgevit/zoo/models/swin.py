"""Swin Transformer (Liu et al., ICCV 2021), and with less attention (LaViT, Table 5).

    image
      │ patch_embed   4x4 convolution, stride 4, LayerNorm
      │ stage 1       blocks at 1/4, width C
      │ stage 2..4    2x2 cells joined, LayerNorm, Linear 4C -> 2C; blocks at 1/8, 1/16, 1/32
      │ head          LayerNorm, mean over the tokens, Linear
    logits

A block is x + attention(LN x), x + MLP(LN x). The attention works in windows of 7x7 cells, with a
learned bias by relative position; in every second block the windows are shifted by three cells, and
cells that the shift brought together from opposite edges do not see each other. A map that is no
larger than a window has one window, never shifted; one that windows do not divide is padded with
zeros below and to the right, which the cells do see, as the released code for detection does it.

``features=True`` builds the backbone for dense prediction: no head, but the maps that leave the
stages, not normalised.

LaViT gives no detail of its Swin. Here Θ and Ψ, of 49 x 49, serve all windows of a layer, and the
scores come from the last layer *with the same windows*: two layers before, for the layer before has
other windows, whose scores are those of other cells. The bias is part of the scores that are handed
on, the mask of the shift is not. There is no attention residual, as the number of windows differs
from stage to stage.

No tensor has more than five axes, and the shift is made of slices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.errors import OptionError
from edgevit.zoo.attention.less_attention import ScoreTransform, attention_scores
from edgevit.zoo.attention.relative_bias import resize_table
from edgevit.zoo.checkpoints import Rule, rename
from edgevit.zoo.layers import check_classes, check_multiple
from edgevit.zoo.models.deit import Mlp, check_input, init_weights_
from edgevit.zoo.models.less_common import LessModel, Maps, ScoredAttention, check_starts
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED

__all__ = ["Swin", "SwinConfig", "map_keys"]

Four = tuple[int, int, int, int]
Grid = tuple[int, int]
#: What the mask of a shifted window adds to the scores of cells that must not see each other.
APART = -100.0


@dataclass(frozen=True)
class SwinConfig:
    """Configuration of :class:`Swin`, one entry a stage; the defaults are Swin-T.

    ``less_from`` is the first less-attention layer of each stage, counted from 1, and 0 for none;
    ``less_projection`` keeps the output Linear in them; ``less_bias`` gives Θ and Ψ a bias.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    width: int = 96
    depths: Four = (2, 2, 6, 2)
    heads: Four = (3, 6, 12, 24)
    window: int = 7
    expansion: int = 4
    mixer: str = "window"
    features: bool = False
    less_from: Four = (0, 0, 0, 0)
    less_projection: bool = True
    less_bias: bool = False

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        if self.mixer != "window":
            raise OptionError(
                "mixer",
                expected="window, as other blocks cannot keep a shifted window's cells apart",
                got=self.mixer,
            )
        if self.window < 2:
            raise OptionError("window", expected="a whole number of at least 2", got=self.window)
        check_multiple(self.image_size, 32, "Swin")
        firsts = [3 if any(self.shift(stage)) else 2 for stage in range(4)]
        check_starts(self.less_from, self.depths, firsts)

    @property
    def image(self) -> Grid:
        """Height and width of the image in pixels."""
        return check_multiple(self.image_size, 32, "Swin")

    def dim(self, stage: int) -> int:
        """Width of a stage, stages counted from 0."""
        return self.width << stage

    def grid(self, stage: int) -> Grid:
        """Height and width of a stage's map."""
        height, width = self.image
        return height // (4 << stage), width // (4 << stage)

    def windows(self, stage: int) -> Grid:
        """Height and width of a stage's windows."""
        height, width = self.grid(stage)
        return min(self.window, height), min(self.window, width)

    def shift(self, stage: int) -> Grid:
        """By how many cells the windows of every second layer are shifted."""
        down, across = (self.window // 2 if side > self.window else 0 for side in self.grid(stage))
        return down, across


class Windows(nn.Module):
    """A map (B, H, W, C) in windows, (B * windows, cells, C), and back.

    Args:
        grid: height and width of the map.
        window: height and width of a window.
        shift: by how many cells the windows are shifted down and to the right.
    """

    mask: Tensor | None

    def __init__(self, grid: Grid, window: Grid, shift: Grid) -> None:
        super().__init__()
        self.grid, self.window, self.shift = grid, window, shift
        self.counts = -(-grid[0] // window[0]), -(-grid[1] // window[1])
        self.padded = self.counts[0] * window[0], self.counts[1] * window[1]
        # It depends on the sizes alone, so checkpoints have no place for it.
        mask = self._mask() if any(shift) else None
        self.register_buffer("mask", mask, persistent=False)

    def _mask(self) -> Tensor:
        """(windows, 1, cells, cells): 0 for cells that may see each other."""
        rows, columns = (
            _regions(side, cells, shift)
            for side, cells, shift in zip(self.padded, self.window, self.shift, strict=True)
        )
        region = (rows[:, None] * 3 + columns[None, :])[None, :, :, None]
        cells = self._cut(region)[..., 0]
        return (cells[:, None, :] != cells[:, :, None]).float().mul(APART).unsqueeze(1)

    def split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B * windows, cells, C)."""
        below, right = (p - g for p, g in zip(self.padded, self.grid, strict=True))
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        return self._cut(_rolled(x, self.shift))

    def _cut(self, x: Tensor) -> Tensor:
        (height, width), (_, across), channels = self.window, self.counts, x.shape[3]
        bands = x.reshape(-1, height, across, width * channels).transpose(1, 2)
        return bands.reshape(-1, height * width, channels)

    def join(self, x: Tensor) -> Tensor:
        """(B * windows, cells, C) to (B, H, W, C)."""
        (height, width), (_, across), channels = self.window, self.counts, x.shape[2]
        bands = x.reshape(-1, across, height, width * channels).transpose(1, 2)
        back = self.padded[0] - self.shift[0], self.padded[1] - self.shift[1]
        whole = _rolled(bands.reshape(-1, *self.padded, channels), back)
        return whole[:, : self.grid[0], : self.grid[1]]

    def keep_apart(self, scores: Tensor) -> Tensor:
        """(B * windows, heads, cells, cells), with the mask of the shift added."""
        if self.mask is None:
            return scores
        masked = scores.reshape(-1, len(self.mask), *scores.shape[1:]) + self.mask
        return masked.reshape(-1, *scores.shape[1:])


def _regions(side: int, window: int, shift: int) -> Tensor:
    """Along one side of a shifted map, which of three parts that belong together a cell is in."""
    cell = torch.arange(side)
    return (cell >= side - window).long() + (cell >= side - shift).long()


def _rolled(x: Tensor, shift: Grid) -> Tensor:
    """The map (B, H, W, C) moved up and to the left, what leaves it coming in on the other side."""
    for axis, cells in enumerate(shift, 1):
        if cells % x.shape[axis]:
            size = x.shape[axis]
            x = torch.cat([x.narrow(axis, cells, size - cells), x.narrow(axis, 0, cells)], axis)
    return x


class RelativePositionBias(nn.Module):
    """A learned bias per head by where a key lies from the query: (heads, cells, cells)."""

    index: Tensor

    def __init__(self, heads: int, window: Grid) -> None:
        super().__init__()
        self.window = window
        height, width = window
        self.table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1), heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        rows, columns = (torch.arange(side)[:, None] - torch.arange(side)[None] for side in window)
        down = (rows + height - 1)[:, None, :, None] * (2 * width - 1)
        index = down + (columns + width - 1)[None, :, None, :]
        self.register_buffer("index", index.flatten(), persistent=False)

    def forward(self) -> Tensor:
        """(heads, cells, cells)."""
        cells = self.window[0] * self.window[1]
        return self.table.index_select(0, self.index).transpose(0, 1).reshape(-1, cells, cells)


class WindowAttention(ScoredAttention):
    """Softmax attention in windows, with relative position bias: (B, H, W, C) to (B, H, W, C).

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        windows: how the map is cut.
    """

    def __init__(self, dim: int, heads: int, windows: Windows) -> None:
        super().__init__(dim, heads)
        self.windows = windows
        self.qkv = nn.Linear(dim, 3 * dim)
        self.bias = RelativePositionBias(heads, windows.window)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) to (B, H, W, C) and the scores (B * windows, heads, cells, cells)."""
        parts = self.qkv(self.windows.split(x)).chunk(3, -1)
        query, key, value = (self.split(part) for part in parts)
        scores = attention_scores(query, key, self.bias())
        return self.windows.join(self.mix(self.windows.keep_apart(scores), value)), scores


class LessWindowAttention(ScoredAttention):
    """Less attention in windows, from the scores of the last layer with the same windows.

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        windows: how the map is cut.
        bias: of the transforms.
        project: with an output Linear.
    """

    less = True

    def __init__(
        self, dim: int, heads: int, windows: Windows, *, bias: bool = False, project: bool = True
    ) -> None:
        super().__init__(dim, heads, project=project)
        self.windows = windows
        cells = windows.window[0] * windows.window[1]
        self.transform = ScoreTransform(cells, cells, bias=bias)
        self.v = nn.Linear(dim, dim)

    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) and (B * windows, heads, cells, cells) to the same."""
        scores: Tensor = self.transform(given)
        value = self.split(self.v(self.windows.split(x)))
        return self.windows.join(self.mix(self.windows.keep_apart(scores), value)), scores


def _attention(config: SwinConfig, stage: int, layer: int) -> ScoredAttention:
    """The attention of one layer; layers are counted from 1, the even ones are shifted."""
    shift = (0, 0) if layer % 2 else config.shift(stage)
    windows = Windows(config.grid(stage), config.windows(stage), shift)
    dim, heads = config.dim(stage), config.heads[stage]
    if not 0 < config.less_from[stage] <= layer:
        return WindowAttention(dim, heads, windows)
    return LessWindowAttention(
        dim, heads, windows, bias=config.less_bias, project=config.less_projection
    )


class SwinBlock(nn.Module):
    """x + attention(LN x), then x + MLP(LN x), on maps (B, H, W, C)."""

    attn: WindowAttention | LessWindowAttention

    def __init__(self, config: SwinConfig, stage: int, layer: int) -> None:
        super().__init__()
        dim = config.dim(stage)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _attention(config, stage, layer)  # type: ignore[assignment]
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, config.expansion * dim)

    def forward(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) and perhaps scores to (B, H, W, C) and the block's own scores."""
        mixed, scores = self.attn(self.norm1(x), given)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), scores


class PatchMerging(nn.Module):
    """2x2 cells as one of twice the width: (B, H, W, C) to (B, H/2, W/2, 2C)."""

    def __init__(self, dim: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H/2, W/2, 2C)."""
        (height, width), channels = self.grid, x.shape[3]
        # Channels in the released order: upper left, lower left, upper right, lower right.
        pairs = x.reshape(-1, 2, width, channels).transpose(1, 2)
        cells = pairs.reshape(-1, height // 2, width // 2, 4 * channels)
        out: Tensor = self.reduction(self.norm(cells))
        return out


class Stage(nn.Module):
    """Patch merging and blocks of one resolution, on maps (B, H, W, C)."""

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        self.downsample = (
            PatchMerging(config.dim(stage - 1), config.grid(stage - 1)) if stage else nn.Identity()
        )
        layers = range(1, config.depths[stage] + 1)
        self.blocks = nn.ModuleList(SwinBlock(config, stage, layer) for layer in layers)

    def forward(self, x: Tensor, maps: Maps | None) -> Tensor:
        """The map of the stage before to the map of this one."""
        x = self.downsample(x)
        last: dict[Grid, Tensor] = {}
        block: Any
        for block in self.blocks:
            shift: Grid = block.attn.windows.shift
            x, last[shift] = block(x, last.get(shift))
            if maps is not None and block.attn.less:
                maps.append((block.attn, last[shift]))
        return x


class PatchEmbed(nn.Module):
    """Convolution of kernel and stride 4, LayerNorm: images to maps (B, H/4, W/4, C)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, H/4, W/4, C)."""
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out


class Swin(LessModel):
    """Swin: images (B, in_chans, H, W) of the configured size to logits (B, num_classes).

    With ``features`` to the maps of the four stages, (B, C, H/4, W/4) to (B, 8C, H/32, W/32).
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.in_chans, config.width)
        self.stages = nn.ModuleList(Stage(config, i) for i in range(4))
        self.norm = None if config.features else nn.LayerNorm(config.dim(3))
        self.head = None if config.features else nn.Linear(config.dim(3), config.num_classes)
        init_weights_(self)

    def run(self, x: Tensor, maps: Maps | None) -> Tensor | tuple[Tensor, ...]:
        """Images to the output; what less-attention layers compute is added to ``maps``."""
        check_input(x, self.config.image, "Swin")
        x = self.patch_embed(x)
        outs = []
        for stage in self.stages:
            x = stage(x, maps)
            outs.append(x)
        if self.head is None or self.norm is None:
            return tuple(out.permute(0, 3, 1, 2) for out in outs)
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by our names, bias tables resized to this model's windows.

        A model with ``features`` leaves norm and head out.
        """
        adapted = map_keys(state)
        if self.config.features:
            adapted = {k: v for k, v in adapted.items() if not k.startswith(("norm.", "head."))}
        for name, module in self.named_modules():
            key = f"{name}.table"
            if isinstance(module, RelativePositionBias) and key in adapted:
                adapted[key] = _resized(adapted[key], module.window)
        return adapted


def _resized(table: Tensor, window: Grid) -> Tensor:
    """A bias table (entries, heads) for this window; another's is taken for a square one's."""
    wanted = 2 * window[0] - 1, 2 * window[1] - 1
    side = math.isqrt(len(table))
    if len(table) == wanted[0] * wanted[1] or side * side != len(table):
        return table
    return resize_table(table.transpose(0, 1), (side, side), wanted).transpose(0, 1)


KEYS: tuple[Rule, ...] = (
    WRAPPED,
    (r".*\.(?:relative_position_index|attn_mask)$", ""),
    (r"^layers\.", "stages."),
    (r"\.relative_position_bias_table$", ".bias.table"),
    (r"^head\.fc\.", "head."),
)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released checkpoint (Microsoft's own, timm's) by our names."""
    mapped = rename(state, KEYS)
    if not any(name.startswith("stages.0.downsample.") for name in mapped):
        return mapped
    # Microsoft's stages end with the patch merging that ours begin with.
    begins = (r"^stages\.(\d)\.downsample\.", _next_stage)
    return rename(mapped, (begins,))


def _next_stage(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) + 1}.downsample."


def _swin(options: dict[str, Any], **variant: Any) -> Swin:
    return Swin(make_config(SwinConfig, variant | options))


TABLE2: dict[str, Any] = {"paper": "lavit", "table": "Table 2"}
TABLE5: dict[str, Any] = {"paper": "lavit", "table": "Table 5"}
LESS = (
    "the paper gives no detail of it: where less attention starts ({}) and whose scores it has "
    "(those of the last layer with the same windows) are ours; the FLOPs are {} %"
)


@register_model(**TABLE2, published={"params_m": 28.3, "flops_g": 4.5, "top1": 81.2})
def swin_tiny(**options: Any) -> Swin:
    """Swin-T: 2, 2, 6 and 2 layers of widths 96 to 768, windows of 7."""
    return _swin(options)


@register_model(**TABLE2, published={"params_m": 49.6, "flops_g": 8.7, "top1": 83.1})
def swin_small(**options: Any) -> Swin:
    """Swin-S: 2, 2, 18 and 2 layers of widths 96 to 768, windows of 7."""
    return _swin(options, depths=(2, 2, 18, 2))


@register_model(
    name="swin_tiny+la",
    **TABLE5,
    published={"flops_g": 4.0, "top1": 81.7},
    note=LESS.format("as in LaViT-S", "+5.9"),
)
def swin_tiny_la(**options: Any) -> Swin:
    """Swin-T with less attention from layer 3 of stage 3 and 2 of stage 4."""
    return _swin(options, less_from=(0, 0, 3, 2))


@register_model(
    name="swin_small+la",
    **TABLE5,
    published={"flops_g": 7.8, "top1": 83.5},
    note=LESS.format("stage 3 as in LaViT-B", "+1.7"),
)
def swin_small_la(**options: Any) -> Swin:
    """Swin-S with less attention from layer 4 of stage 3 and 2 of stage 4."""
    return _swin(options, depths=(2, 2, 18, 2), less_from=(0, 0, 4, 2))
