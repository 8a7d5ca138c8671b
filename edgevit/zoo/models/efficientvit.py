"""EfficientViT (Liu et al., "EfficientViT: memory efficient vision transformer with cascaded group
attention").

    image
      │ stem          four 3x3 stride-2 convolutions, BatchNorm, ReLU between them: 1/16
      │ stage 1       blocks at 1/16
      │ downsample    DW, FFN; inverted residual without skip; DW, FFN
      │ stage 2       blocks at 1/32
      │ downsample
      │ stage 3       blocks at 1/64
      │ head          mean over the map, BatchNorm, Linear
    logits

A block is a sandwich (section 3.1, equation 1): one attention between two FFNs, each FFN behind a
depthwise convolution, every one of the five with a residual. Attention is cascaded group attention
in windows (7x7); a map that fits into a window is one window. Table 1 holds widths, depths and
heads; the kernels of the query's depthwise convolution are not in the paper, but in its released
configuration. BatchNorm scales at the end of every residual of a block start at zero.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.cascaded_group import check_kernels, zero_scale
from edgevit.zoo.attention.relative_bias import fit_tables
from edgevit.zoo.checkpoints import Rule, rename
from edgevit.zoo.layers import ConvNorm, Residual, as_pair, check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED

__all__ = ["EfficientViT", "EfficientViTConfig", "map_keys"]

Grid = tuple[int, int]
STRIDE = 16


@dataclass(frozen=True)
class EfficientViTConfig:
    """Configuration of :class:`EfficientViT`, stage by stage.

    ``windows`` are the largest sides of an attention window; ``kernels`` belong to the heads.
    ``distillation`` adds the second head of the models trained with a teacher. With ``features``
    there is no head and the model gives the maps of its three stages.
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    widths: tuple[int, int, int] = (64, 128, 192)
    depths: tuple[int, int, int] = (1, 2, 3)
    heads: tuple[int, int, int] = (4, 4, 4)
    windows: tuple[int, int, int] = (7, 7, 7)
    kernels: tuple[int, ...] = (7, 5, 3, 3)
    key_dim: int = 16
    expansion: int = 2
    mixer: str = "cascaded_group"
    distillation: bool = False
    features: bool = False

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_kernels(self.kernels)
        check_multiple(self.image_size, STRIDE, "EfficientViT")
        if len(self.windows) != 3 or not all(isinstance(w, int) and w > 0 for w in self.windows):
            raise OptionError(
                "windows", expected="three positive whole numbers, one a stage", got=self.windows
            )

    @property
    def grids(self) -> tuple[Grid, Grid, Grid]:
        """Height and width of the maps of the three stages."""
        height, width = as_pair(self.image_size)
        first = (height // STRIDE, width // STRIDE)
        second = (-(-first[0] // 2), -(-first[1] // 2))
        return first, second, (-(-second[0] // 2), -(-second[1] // 2))

    def mixer_for(self, stage: int, window: Grid) -> nn.Module:
        """The attention of one block, on maps of that window's size."""
        own: dict[str, Any] = {"key_dim": self.key_dim, "kernels": self.kernels}
        return make_mixer(
            self.mixer,
            dim=self.widths[stage],
            heads=self.heads[stage],
            tokens=window,
            layout="map",
            **(own if self.mixer == "cascaded_group" else {}),
        )


def token_interaction(dim: int, *, zero: bool) -> Residual:
    """x + BN(DW3(x)); the BatchNorm's scale starts at zero or at one."""
    conv = ConvNorm(dim, dim, 3, groups=dim)
    return Residual(zero_scale(conv) if zero else conv)


def feed_forward(dim: int, expansion: int) -> Residual:
    """x + BN(PW(ReLU(BN(PW(x))))); the last BatchNorm's scale starts at zero."""
    hidden = expansion * dim
    expand = ConvNorm(dim, hidden, activation=nn.ReLU())
    return Residual(nn.Sequential(expand, zero_scale(ConvNorm(hidden, dim))))


class SqueezeExcite(nn.Module):
    """x times a gate per channel, found from the means over the map; (B, C, H, W) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, hidden, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(hidden, dim, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        gate = self.expand(self.relu(self.reduce(x.mean((-2, -1), keepdim=True))))
        out: Tensor = x * self.sigmoid(gate)
        return out


class Windowed(nn.Module):
    """A mixer for maps in windows of a larger map: (B, C, H, W) to (B, C, H, W).

    The map is padded with zeros below and on the right to whole windows; the padding takes part in
    the attention like any cell, and is cut off afterwards. No tensor has more than four axes.
    """

    def __init__(self, block: nn.Module, grid: Grid, window: Grid) -> None:
        super().__init__()
        self.block, self.grid, self.window = block, grid, window
        self.counts = (-(-grid[0] // window[0]), -(-grid[1] // window[1]))
        self.padded = (self.counts[0] * window[0], self.counts[1] * window[1])

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        if self.counts == (1, 1):
            return self.block(x)  # type: ignore[no-any-return]
        if self.padded != self.grid:
            x = F.pad(x, (0, self.padded[1] - self.grid[1], 0, self.padded[0] - self.grid[0]))
        x = self.join(self.block(self.split(x)))
        return x[:, :, : self.grid[0], : self.grid[1]] if self.padded != self.grid else x

    def split(self, x: Tensor) -> Tensor:
        """(B, C, padded) to (B * windows, C, window)."""
        channels, (height, width), (down, across) = x.shape[1], self.window, self.counts
        rows = x.reshape(-1, channels, down, height * across * width).transpose(1, 2)
        cells = rows.reshape(-1, channels * height, across, width).transpose(1, 2)
        return cells.reshape(-1, channels, height, width)

    def join(self, x: Tensor) -> Tensor:
        """The reverse of :meth:`split`."""
        channels, (height, width), (down, across) = x.shape[1], self.window, self.counts
        cells = x.reshape(-1, across, channels * height, width).transpose(1, 2)
        rows = cells.reshape(-1, down, channels, height * across * width).transpose(1, 2)
        return rows.reshape(-1, channels, *self.padded)


class SandwichBlock(nn.Sequential):
    """DW, FFN, attention, DW, FFN, each with a residual (equation 1 with one FFN on each side)."""

    def __init__(self, stage: int, grid: Grid, config: EfficientViTConfig) -> None:
        dim, side = config.widths[stage], config.windows[stage]
        window = grid if max(grid) <= side else (side, side)
        mixer = Windowed(config.mixer_for(stage, window), grid, window)
        super().__init__(
            OrderedDict(
                dw0=token_interaction(dim, zero=True),
                ffn0=feed_forward(dim, config.expansion),
                mixer=Residual(mixer),
                dw1=token_interaction(dim, zero=True),
                ffn1=feed_forward(dim, config.expansion),
            )
        )


class Subsample(nn.Sequential):
    """DW and FFN; inverted residual of stride 2; DW and FFN: half the size, ``width`` channels."""

    def __init__(self, dim: int, width: int, expansion: int) -> None:
        hidden = 4 * dim
        inverted = nn.Sequential(
            ConvNorm(dim, hidden, activation=nn.ReLU()),
            ConvNorm(hidden, hidden, 3, stride=2, groups=hidden, activation=nn.ReLU()),
            SqueezeExcite(hidden, dim),
            ConvNorm(hidden, width),
        )
        super().__init__(
            nn.Sequential(token_interaction(dim, zero=False), feed_forward(dim, expansion)),
            inverted,
            nn.Sequential(token_interaction(width, zero=False), feed_forward(width, expansion)),
        )


class Stage(nn.Sequential):
    """What lies before a stage, and its blocks."""

    def __init__(self, stage: int, config: EfficientViTConfig) -> None:
        width, grid = config.widths[stage], config.grids[stage]
        previous = config.widths[stage - 1] if stage else None
        downsample = Subsample(previous, width, config.expansion) if previous else nn.Identity()
        blocks = (SandwichBlock(stage, grid, config) for _ in range(config.depths[stage]))
        super().__init__(OrderedDict(downsample=downsample, blocks=nn.Sequential(*blocks)))


class EfficientViT(nn.Module):
    """EfficientViT: images (B, in_chans, H, W), multiples of 16, to logits (B, num_classes).

    With ``features`` it gives the maps of the three stages instead, at 1/16, 1/32 and 1/64.
    """

    def __init__(self, config: EfficientViTConfig) -> None:
        super().__init__()
        self.config = config
        first = config.widths[0]
        channels = (config.in_chans, first // 8, first // 4, first // 2, first)
        self.stem = nn.Sequential(
            *(
                ConvNorm(a, b, 3, stride=2, activation=nn.ReLU() if b != first else None)
                for a, b in itertools.pairwise(channels)
            )
        )
        self.stages = nn.ModuleList(Stage(i, config) for i in range(3))
        self.head = None if config.features else self._head()
        self.head_dist = self._head() if config.distillation and not config.features else None

    def _head(self) -> nn.Sequential:
        linear = nn.Linear(self.config.widths[-1], self.config.num_classes)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.BatchNorm1d(self.config.widths[-1]), linear)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images (B, in_chans, H, W) to logits (B, num_classes), or to three maps.

        The logits of two heads are averaged, in training too.

        Raises:
            ShapeError: the images are not of the size that the model was built for.
        """
        maps = self.forward_features(x)
        if self.head is None:
            return maps
        pooled = maps[-1].mean((-2, -1))
        logits: Tensor = self.head(pooled)
        return logits if self.head_dist is None else (logits + self.head_dist(pooled)) / 2

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, in_chans, H, W) to the maps of the stages, (B, C_i, H / 16, W / 16) first."""
        check_built_for(self.config.image_size, x)
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A released state dict, or our own of another image size, made to fit this model.

        Names are mapped (:func:`map_keys`), bias tables resized; heads are left out of a model
        without them.
        """
        mapped = map_keys(state)
        if self.head is None:
            mapped = {k: v for k, v in mapped.items() if not k.startswith(("head.", "head_dist."))}
        return fit_tables(self, mapped)


def check_built_for(image_size: int | tuple[int, int], x: Tensor) -> None:
    """Raise ShapeError unless the images (B, C, H, W) have the size that the model was built for.

    Bias tables and windows belong to a size.
    """
    size = as_pair(image_size)
    if tuple(x.shape[-2:]) != size:
        raise ShapeError(
            f"the model was built for images of {size[0]} x {size[1]}, "
            f"got {x.shape[-2]} x {x.shape[-1]}",
            hint="build it with image_size as the images have it",
        )


PARTS = ("res1", "patchmerge", "res2")

#: Microsoft's released state dicts (blocks1, .c., .l.) and timm's (stages, .conv., .linear.) to our
#: names. Of blocks2 and blocks3 the first three entries are the subsample block.
KEY_MAP: tuple[Rule, ...] = (
    WRAPPED,
    (r".*\.attention_bias_idxs$", ""),
    (r"^blocks1\.", "stages.0.blocks."),
    (r"^blocks(\d)\.([012])\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.{m[2]}."),
    (r"^blocks(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 3}."),
    (r"\.downsample\.(res1|patchmerge|res2)\.", lambda m: f".downsample.{PARTS.index(m[1])}."),
    (r"^patch_embed\.(\d)\.", lambda m: f"stem.{int(m[1]) // 2}."),
    (r"^patch_embed\.conv(\d)\.", lambda m: f"stem.{int(m[1]) - 1}."),
    (r"^(head(?:_dist)?)\.bn\.", r"\1.0."),
    (r"^(head(?:_dist)?)\.(?:l|linear)\.", r"\1.1."),
    (r"\.m\.attn\.", ".inner.block."),
    (r"\.m\.", ".inner."),
    (r"\.se\.fc1\.", ".2.reduce."),
    (r"\.se\.fc2\.", ".2.expand."),
    (r"(?<=\.downsample\.1)\.conv([12])\.", lambda m: f".{int(m[1]) - 1}."),
    (r"(?<=\.downsample\.1)\.conv3\.", ".3."),
    (r"\.pw([12])\.", lambda m: f".{int(m[1]) - 1}."),
    (r"\.qkvs\.", ".qkv."),
    (r"\.dws\.", ".local."),
    (r"\.proj\.1\.(?=c\.|conv\.|bn\.)", ".proj."),
    (r"\.attention_biases$", ".relative_bias.table"),
    (r"\.(?:c|conv)\.", ".0."),
    (r"\.bn\.", ".1."),
)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the released models, Microsoft's or timm's, under our names."""
    return rename(state, KEY_MAP)


def _efficientvit(options: dict[str, Any], **variant: Any) -> EfficientViT:
    return EfficientViT(make_config(EfficientViTConfig, variant | options))


def _published(flops_m: int, params_m: float) -> dict[str, Any]:
    return {
        "paper": "efficientvit",
        "table": "Table 2",
        "published": {"flops_m": flops_m, "params_m": params_m},
    }


M0: dict[str, Any] = {"widths": (64, 128, 192), "kernels": (5, 5, 5, 5)}
M1: dict[str, Any] = {"widths": (128, 144, 192), "heads": (2, 3, 3)}
M2: dict[str, Any] = {"widths": (128, 192, 224), "heads": (4, 3, 2)}
M3: dict[str, Any] = {"widths": (128, 240, 320), "heads": (4, 3, 4), "kernels": (5, 5, 5, 5)}
M4: dict[str, Any] = {"widths": (128, 256, 384)}
M5: dict[str, Any] = {"widths": (192, 288, 384), "depths": (1, 3, 4), "heads": (3, 3, 4)}


@register_model(**_published(79, 2.3))
def efficientvit_m0(**options: Any) -> EfficientViT:
    """EfficientViT-M0."""
    return _efficientvit(options, **M0)


@register_model(**_published(167, 3.0))
def efficientvit_m1(**options: Any) -> EfficientViT:
    """EfficientViT-M1."""
    return _efficientvit(options, **M1)


@register_model(**_published(201, 4.2))
def efficientvit_m2(**options: Any) -> EfficientViT:
    """EfficientViT-M2."""
    return _efficientvit(options, **M2)


@register_model(**_published(263, 6.9))
def efficientvit_m3(**options: Any) -> EfficientViT:
    """EfficientViT-M3."""
    return _efficientvit(options, **M3)


@register_model(**_published(299, 8.8))
def efficientvit_m4(**options: Any) -> EfficientViT:
    """EfficientViT-M4."""
    return _efficientvit(options, **M4)


@register_model(
    **_published(522, 12.4),
    note="12.4 M is the count with BatchNorm folded (12.44); unfolded it is 12.47",
)
def efficientvit_m5(**options: Any) -> EfficientViT:
    """EfficientViT-M5."""
    return _efficientvit(options, **M5)


@register_model(
    **_published(1486, 12.4),
    image_size=384,
    note="printed as M4 at 384; its parameters and the text say M5. Windows of 12, half the first "
    "map, are not in the paper; they give the printed MACs",
)
def efficientvit_m5_384(**options: Any) -> EfficientViT:
    """EfficientViT-M5 at 384 px, windows of 12."""
    return _efficientvit(options, **M5, windows=(12, 12, 12))


@register_model(
    **_published(2670, 12.4),
    image_size=512,
    note="the windows are not in the paper; 16, half the first map, gives 1.1 % more MACs than "
    "printed",
)
def efficientvit_m5_512(**options: Any) -> EfficientViT:
    """EfficientViT-M5 at 512 px, windows of 16."""
    return _efficientvit(options, **M5, windows=(16, 16, 16))
