"""CCX: the Compact Convolutional Transformer, and with other attention (Tables 3 and 4).

    image
      │ tokenizer     three times 3x3 convolution, ReLU, 3x3 max-pooling with stride 1
      │ positions     learned, no class token
      │ 4 layers      y = x + attention(LN(x)); z = LN(y); z + MLP(z)
      │ head          LN, sequence pooling, Linear
    logits

The second residual of a layer starts from the normalised tensor. Sequence pooling is a weighted
mean over the tokens, weights softmax(Linear(x)). The feed-forward part is four times as wide as the
model, not 256 as the paper's text has it: only that gives the published counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgevit.zoo.models.vix_common import (
    CIFAR10,
    KERNEL_NOTE,
    TINY_IMAGENET,
    Backbone,
    FeedForward,
    Positions,
    Settings,
    ToTokens,
    register_tables,
)
from edgevit.zoo.registry import make_config

__all__ = ["CCX", "CCXConfig"]


@dataclass(frozen=True)
class CCXConfig(Settings):
    """Configuration of :class:`CCX`; ``depth`` is the number of layers."""

    hidden: int = 512
    depth: int = 4


class Tokenizer(nn.Sequential):
    """Convolutions without bias, ReLU and max-pooling: (B, in_chans, H, W) to (B, N, C)."""

    def __init__(self, config: CCXConfig) -> None:
        channels = (config.in_chans, config.dim // 2, config.dim // 2, config.dim)
        layers: list[nn.Module] = []
        for i in range(3):
            stride = config.patch if i == 0 else 1
            layers += [
                nn.Conv2d(channels[i], channels[i + 1], 3, stride, 1, bias=False),
                nn.ReLU(),
                nn.MaxPool2d(3, 1, 1),
            ]
        super().__init__(*layers, ToTokens())


class Layer(nn.Module):
    """Layer of the compact transformer: (B, N, C) to (B, N, C)."""

    def __init__(self, config: CCXConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.mixer = config.make_mixer()
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = FeedForward(config.dim, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = self.norm2(x + self.mixer(self.norm1(x)))
        out: Tensor = x + self.mlp(x)
        return out


class SequencePooling(nn.Module):
    """Mean over the tokens with learned weights: (B, N, C) to (B, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, C)."""
        weights: Tensor = self.score(x).softmax(1)
        return (weights.transpose(1, 2) @ x).flatten(1)


class CCX(Backbone):
    """CCX: images (B, in_chans, H, W) of the size it was made for to logits (B, num_classes)."""

    def __init__(self, config: CCXConfig) -> None:
        super().__init__(config)
        self.embedding = Tokenizer(config)
        self.positions = Positions(config.dim, config.grid, class_token=False, learned=True)
        self.layers = nn.Sequential(*(Layer(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.dim)
        self.pool = SequencePooling(config.dim)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Raises:
            ShapeError: the images have another size than the model was made for.
        """
        self.check_image(x)
        x = self.layers(self.positions(self.embedding(x)))
        logits: Tensor = self.head(self.pool(self.norm(x)))
        return logits


def _ccx(options: dict[str, Any]) -> CCX:
    return CCX(make_config(CCXConfig, options))


#: Summary, attention block and what is to be said.
VARIANTS = {
    "cct": ("Compact Convolutional Transformer", "softmax", None),
    "ccp": ("Compact Convolutional Performer", "performer", KERNEL_NOTE),
    "ccl": ("Compact Convolutional Linformer", "linformer", None),
    "ccn": ("Compact Convolutional Nyströmformer", "nystrom", None),
}

#: Parameters, size in MB, top-1 and top-5 accuracy in percent, GPU memory in GB.
TABLE_3 = {
    "cct": (905_547, 225.47, 82.23, 99.04, 14.7),
    "ccp": (907_083, 101.48, 82.48, 99.06, 4.3),
    "ccl": (790_859, 94.04, 80.05, 98.92, 3.5),
    "ccn": (906_075, 101.48, 83.36, 99.07, 4.2),
}
TABLE_4 = {
    "cct": (930_057, 225.61, 39.05, 65.74, 14.2),
    "ccp": (931_593, 101.61, 40.11, 66.93, 4.1),
    "ccl": (815_369, 94.17, 37.24, 62.97, 2.3),
    "ccn": (930_585, 101.61, 40.80, 67.81, 3.9),
}

register_tables(
    _ccx, VARIANTS, {"Table 3": (CIFAR10, TABLE_3), "Table 4": (TINY_IMAGENET, TABLE_4)}
)
