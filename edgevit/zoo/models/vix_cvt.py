"""CvX: the Convolutional vision Transformer, and with other attention (Tables 3 and 4).

    image
      │ 3 stages      3x3 convolution, channel LN, then 1, 1, 2 layers
      │               x + attention(LN(x)), then x + FF(LN(x)), on the map
      │ head          mean over the map, Linear
    logits

All stages have 128 channels; only the first may have a stride. CvT's own attention has four heads
of width 64, the other blocks four of width 32, so their comparison in the paper is not at equal
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.zoo.attention.softmax import merge_heads, split_heads
from edgevit.zoo.layers import ConvNorm
from edgevit.zoo.models.vix_common import (
    CIFAR10,
    KERNEL_NOTE,
    TINY_IMAGENET,
    Backbone,
    ConvFeedForward,
    Settings,
    ToTokens,
    register_tables,
)
from edgevit.zoo.registry import make_config

__all__ = ["ChannelNorm", "CvX", "CvXConfig"]


@dataclass(frozen=True)
class CvXConfig(Settings):
    """Configuration of :class:`CvX`.

    Args:
        mixer: registered name of the attention block; None for CvT's own attention.
        depths: number of layers of each stage.
        head_dim: width of one head of CvT's own attention.
    """

    mixer: str | None = None
    depths: tuple[int, ...] = (1, 1, 2)
    head_dim: int = 64


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map: (B, C, H, W) to (B, C, H, W).

    Divides by the standard deviation plus 1e-5, not by the root of the variance plus 1e-5.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.offset = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        centred = x - x.mean(1, keepdim=True)
        deviation = (centred * centred).mean(1, keepdim=True).sqrt()
        return centred / (deviation + 1e-5) * self.gain + self.offset


class CvTAttention(nn.Module):
    """CvT's attention with stride 1: (B, C, H, W) to (B, C, H, W).

    Query from a depthwise 3x3 convolution, BatchNorm and a pointwise convolution, key and value
    together from another such row; no bias but in the output projection.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.query = nn.Sequential(
            ConvNorm(dim, dim, 3, groups=dim), nn.Conv2d(dim, inner, 1, bias=False), ToTokens()
        )
        self.key_value = nn.Sequential(
            ConvNorm(dim, dim, 3, groups=dim), nn.Conv2d(dim, 2 * inner, 1, bias=False), ToTokens()
        )
        self.proj = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        query = split_heads(self.query(x), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.key_value(x).chunk(2, -1))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        mixed = merge_heads(scores.softmax(-1) @ value).transpose(1, 2)
        out: Tensor = self.proj(mixed.reshape(-1, mixed.shape[1], *x.shape[2:]))
        return out


class Layer(nn.Module):
    """Pre-norm layer on a map: (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, config: CvXConfig) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(config.dim)
        self.mixer = (
            CvTAttention(config.dim, config.heads, config.head_dim)
            if config.mixer is None
            else config.make_mixer(layout="map")
        )
        self.norm2 = ChannelNorm(config.dim)
        self.mlp = ConvFeedForward(config.dim, config.hidden, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        x = x + self.mixer(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class CvX(Backbone):
    """CvX: images (B, in_chans, H, W) of the size it was made for to logits (B, num_classes)."""

    def __init__(self, config: CvXConfig) -> None:
        super().__init__(config)
        self.stages = nn.Sequential()
        for i, depth in enumerate(config.depths):
            channels = config.dim if i else config.in_chans
            stride = 1 if i else config.patch
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(channels, config.dim, 3, stride, 1),
                    ChannelNorm(config.dim),
                    *(Layer(config) for _ in range(depth)),
                )
            )
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Raises:
            ShapeError: the images have another size than the model was made for.
        """
        self.check_image(x)
        logits: Tensor = self.head(self.stages(x).mean((-2, -1)))
        return logits


def _cvx(options: dict[str, Any]) -> CvX:
    return CvX(make_config(CvXConfig, options))


#: Summary, attention block and what is to be said.
VARIANTS = {
    "cvt": (
        "Convolutional vision Transformer of Vision Xformers",
        None,
        "its heads are 64 wide, those of CvP, CvL and CvN 32",
    ),
    "cvp": ("Convolutional vision Performer", "performer", KERNEL_NOTE),
    "cvl": ("Convolutional vision Linformer", "linformer", None),
    "cvn": ("Convolutional vision Nyströmformer", "nystrom", None),
}

#: Parameters, size in MB, top-1 and top-5 accuracy in percent, GPU memory in GB.
TABLE_3 = {
    "cvt": (1_099_786, 173.21, 79.93, 99.02, 12.8),
    "cvp": (827_914, 100.17, 83.19, 99.20, 4.8),
    "cvl": (711_690, 92.73, 72.58, 97.81, 2.6),
    "cvn": (826_906, 100.17, 83.26, 99.14, 4.3),
}
TABLE_4 = {
    "cvt": (1_124_296, 173.34, 40.69, 68.19, 12.3),
    "cvp": (852_424, 100.3, 45.26, 71.21, 4.4),
    "cvl": (736_200, 92.86, 33.95, 61.29, 2.3),
    "cvn": (851_416, 100.3, 45.47, 71.35, 4.0),
}

register_tables(
    _cvx, VARIANTS, {"Table 3": (CIFAR10, TABLE_3), "Table 4": (TINY_IMAGENET, TABLE_4)}
)
