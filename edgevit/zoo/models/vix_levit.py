"""LeViX: LeViT as Vision Xformers have it, and with other attention (Tables 3 and 4).

    image
      │ embedding     three 3x3 convolutions, nothing between them
      │ 4 layers      x + attention(x), then x + FF(x), on the map
      │ head          mean over the map, Linear
    logits

One stage, no class token, no positions, no positional bias, no pre-norm. LeViT's attention
normalises its projections with BatchNorm; the other blocks do not, so LeViP, LeViL and LeViN have
no normalisation at all. This is not LeViT-128S and its like, which have three stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.softmax import inner_width, merge_heads, split_heads
from edgevit.zoo.layers import ConvNorm
from edgevit.zoo.models.vix_common import (
    CIFAR10,
    KERNEL_NOTE,
    TINY_IMAGENET,
    Backbone,
    ConvEmbedding,
    ConvFeedForward,
    Settings,
    ToTokens,
    register_tables,
)
from edgevit.zoo.registry import make_config

__all__ = ["LeViX", "LeViXConfig"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "hardswish": nn.Hardswish}


@dataclass(frozen=True)
class LeViXConfig(Settings):
    """Configuration of :class:`LeViX`.

    Args:
        mixer: registered name of the attention block; None for LeViT's own attention.
        depth: number of layers.
        activation: of the feed-forward part, ``"gelu"`` or ``"hardswish"``.
    """

    mixer: str | None = None
    depth: int = 4
    activation: str = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            known = " or ".join(ACTIVATIONS)
            raise OptionError("activation", expected=known, got=self.activation)


class LeViTAttention(nn.Module):
    """LeViT's attention without positional bias: (B, C, H, W) to (B, C, H, W).

    Query, key and value are pointwise convolutions with BatchNorm; softmax attention per head;
    GELU; a pointwise convolution with bias and BatchNorm, whose scale starts at 0.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        inner_width(dim, heads, None)
        self.heads = heads
        self.query = nn.Sequential(ConvNorm(dim, dim), ToTokens())
        self.key = nn.Sequential(ConvNorm(dim, dim), ToTokens())
        self.value = nn.Sequential(ConvNorm(dim, dim), ToTokens())
        self.activation = nn.GELU()
        self.proj = nn.Conv2d(dim, dim, 1)
        self.norm = nn.BatchNorm2d(dim)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        query = split_heads(self.query(x), self.heads)
        key, value = split_heads(self.key(x), self.heads), split_heads(self.value(x), self.heads)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        mixed = merge_heads(scores.softmax(-1) @ value).transpose(1, 2)
        mixed = mixed.reshape(-1, *x.shape[1:])
        out: Tensor = self.norm(self.proj(self.activation(mixed)))
        return out


class Layer(nn.Module):
    """Attention and feed-forward part, each with a residual: (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, config: LeViXConfig) -> None:
        super().__init__()
        self.mixer = (
            LeViTAttention(config.dim, config.heads)
            if config.mixer is None
            else config.make_mixer(layout="map")
        )
        activation = ACTIVATIONS[config.activation]()
        self.mlp = ConvFeedForward(config.dim, config.hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        x = x + self.mixer(x)
        out: Tensor = x + self.mlp(x)
        return out


class LeViX(Backbone):
    """LeViX: images (B, in_chans, H, W) of the size it was made for to logits (B, num_classes)."""

    def __init__(self, config: LeViXConfig) -> None:
        super().__init__(config)
        self.embedding = ConvEmbedding(config)
        self.layers = nn.Sequential(*(Layer(config) for _ in range(config.depth)))
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Raises:
            ShapeError: the images have another size than the model was made for.
        """
        self.check_image(x)
        x = self.layers(self.embedding(x))
        logits: Tensor = self.head(x.mean((-2, -1)))
        return logits


def _levix(options: dict[str, Any]) -> LeViX:
    return LeViX(make_config(LeViXConfig, options))


#: Summary, attention block and what is to be said.
VARIANTS = {
    "levit": (
        "LeViT of Vision Xformers, one stage",
        None,
        "whether its feed-forward part has GELU or Hardswish is not known; GELU here",
    ),
    "levip": ("LeViT with Performer attention", "performer", KERNEL_NOTE),
    "levil": ("LeViT with Linformer attention", "linformer", None),
    "levin": ("LeViT with Nyströmformer attention", "nystrom", None),
}

#: Parameters, size in MB, top-1 and top-5 accuracy in percent, GPU memory in GB.
TABLE_3 = {
    "levit": (624_970, 213.15, 77.06, 98.46, 13.9),
    "levip": (662_410, 77.14, 79.50, 98.91, 4.9),
    "levil": (506_186, 69.69, 63.17, 96.13, 2.3),
    "levin": (621_402, 77.13, 77.81, 98.61, 4.3),
}
TABLE_4 = {
    "levit": (649_480, 213.28, 38.29, 65.23, 14.0),
    "levip": (646_920, 77.27, 41.49, 68.39, 4.9),
    "levil": (530_696, 69.89, 26.52, 51.85, 3.3),
    "levin": (645_912, 77.26, 38.28, 64.94, 4.3),
}
MISPRINT = (
    "662,410 is a misprint: the architecture has 622,410, with which its Tiny ImageNet row agrees"
)

register_tables(
    _levix,
    VARIANTS,
    {"Table 3": (CIFAR10, TABLE_3), "Table 4": (TINY_IMAGENET, TABLE_4)},
    notes={("levip", CIFAR10): MISPRINT},
)
