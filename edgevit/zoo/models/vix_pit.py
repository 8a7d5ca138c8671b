"""PiX: the Pooling-based vision Transformer, and with other attention (Table 5).

    image
      │ embedding     Linear on pixels, or three 3x3 convolutions (the hybrid models)
      │ positions     class token in front, learned positions added
      │ 2 layers      of width 128, 1024 tokens and the class token
      │ pooling       the map: depthwise 3x3 with stride 2 to 256 channels, pointwise 256 to 256
      │               the class token: Linear to 256
      │ 2 layers      of width 256, 256 tokens and the class token
      │ head          LN and Linear on the class token
    logits

The second half keeps four heads of width 32 (a block that has no ``head_dim`` takes 64) and a
feed-forward part of 256.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.zoo.models.vix_common import (
    CIFAR10,
    KERNEL_NOTE,
    Backbone,
    ConvEmbedding,
    PatchEmbedding,
    Positions,
    Settings,
    ToTokens,
    register_row,
)
from edgevit.zoo.models.vix_vit import Layer
from edgevit.zoo.registry import make_config

__all__ = ["PiX", "PiXConfig"]


@dataclass(frozen=True)
class PiXConfig(Settings):
    """Configuration of :class:`PiX`.

    Args:
        depths: number of layers before and after the pooling.
        hybrid: embed by three convolutions in place of a Linear on pixels.
    """

    depths: tuple[int, int] = (2, 2)
    hybrid: bool = False


class Pooling(nn.Module):
    """Halve the map and double the width: (B, 1 + H*W, C) to (B, 1 + ceil(H/2)*ceil(W/2), 2C)."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 3, 2, 1, groups=dim), nn.Conv2d(2 * dim, 2 * dim, 1), ToTokens()
        )
        self.class_token = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + H*W, C) to (B, 1 + ceil(H/2)*ceil(W/2), 2C)."""
        tokens = self.spatial(x[:, 1:].transpose(1, 2).reshape(-1, x.shape[2], *self.grid))
        return torch.cat((self.class_token(x[:, :1]), tokens), 1)


class PiX(Backbone):
    """PiX: images (B, in_chans, H, W) of the size it was made for to logits (B, num_classes)."""

    def __init__(self, config: PiXConfig) -> None:
        super().__init__(config)
        dim, (height, width) = config.dim, config.grid
        self.embedding = (
            nn.Sequential(ConvEmbedding(config), ToTokens())
            if config.hybrid
            else PatchEmbedding(config)
        )
        self.positions = Positions(dim, config.grid, class_token=True, learned=True)
        self.layers = nn.Sequential(
            *_layers(config, config.depths[0], dim, config.grid),
            Pooling(dim, config.grid),
            *_layers(config, config.depths[1], 2 * dim, (-(-height // 2), -(-width // 2))),
        )
        self.norm = nn.LayerNorm(2 * dim)
        self.head = nn.Linear(2 * dim, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Raises:
            ShapeError: the images have another size than the model was made for.
        """
        self.check_image(x)
        x = self.layers(self.positions(self.embedding(x)))
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits


def _layers(config: PiXConfig, depth: int, dim: int, grid: tuple[int, int]) -> Iterator[Layer]:
    heads = {"head_dim": config.dim // config.heads}
    for _ in range(depth):
        mixer = config.make_mixer(dim=dim, tokens=grid, prefix_tokens=1, preferences=heads)
        yield Layer(mixer, dim, config.hidden)


def _pix(options: dict[str, Any]) -> PiX:
    return PiX(make_config(PiXConfig, options))


#: Summary, attention block and what is to be said.
VARIANTS = {
    "pit": ("Pooling-based vision Transformer of Vision Xformers", "softmax", None),
    "pin": ("Pooling-based vision Nyströmformer", "nystrom", None),
    "pip": ("Pooling-based vision Performer", "performer", KERNEL_NOTE),
}

#: Parameters, size in MB, top-1 and top-5 accuracy in percent, GPU memory in GB.
TABLE_5 = {
    "pit": (897_034, 129.74, 63.49, 96.95, 14.7),
    "pin": (897_562, 65.81, 69.41, 97.68, 5.7),
    "pip": (898_570, 64.09, 65.83, 97.28, 5.2),
    "hybrid_pit": (989_770, 131.80, 73.34, 98.11, 14.8),
    "hybrid_pin": (990_298, 67.87, 74.00, 98.03, 5.7),
    "hybrid_pip": (991_306, 66.15, 71.37, 97.88, 5.2),
}

for _name, _figures in TABLE_5.items():
    _plain = _name.removeprefix("hybrid_")
    _summary, _mixer, _note = VARIANTS[_plain]
    register_row(
        _pix,
        _name,
        f"{'Hybrid ' * (_plain != _name)}{_summary}",
        dataset=CIFAR10,
        table="Table 5",
        figures=_figures,
        note=_note,
        mixer=_mixer,
        hybrid=_plain != _name,
    )
