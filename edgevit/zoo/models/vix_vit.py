"""Vision Xformers (ViX), FNet and the MLP-Mixer: one body, a token mixer each (Tables 1, 2 and 6).

    image
      │ embedding     Linear on patches, or three 3x3 convolutions (the hybrid models)
      │ positions     class token in front, learned positions added; the Mixer has neither
      │ 4 layers      x + mix(LN(x)), then x + MLP(LN(x))
      │ head          LN and Linear on the class token; the Mixer's on the mean over tokens
    logits

With ``rope`` the learned positions are left out and query and key rotated instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.models.vix_common import (
    CIFAR10,
    KERNEL_NOTE,
    TINY_IMAGENET,
    Backbone,
    ConvEmbedding,
    Dataset,
    FeedForward,
    PatchEmbedding,
    Positions,
    Settings,
    ToTokens,
    register_row,
)
from edgevit.zoo.registry import make_config

__all__ = ["ViX", "ViXConfig"]


@dataclass(frozen=True)
class ViXConfig(Settings):
    """Configuration of :class:`ViX`.

    Args:
        depth: number of layers.
        hybrid: embed by three convolutions in place of a Linear on patches.
        pool: ``"class"`` for a class token and learned positions, ``"mean"`` for neither.
        rope: rotary position embedding in place of learned positions.
    """

    depth: int = 4
    hybrid: bool = False
    pool: str = "class"
    rope: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in ("class", "mean"):
            raise OptionError("pool", expected="class or mean", got=self.pool)


class Layer(nn.Module):
    """Pre-norm layer: (B, N, C) to (B, N, C)."""

    def __init__(self, mixer: nn.Module, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = x + self.mixer(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ViX(Backbone):
    """ViX: images (B, in_chans, H, W) of the size it was made for to logits (B, num_classes)."""

    def __init__(self, config: ViXConfig) -> None:
        super().__init__(config)
        class_token = config.pool == "class"
        self.class_token = class_token
        self.embedding = (
            nn.Sequential(ConvEmbedding(config), ToTokens())
            if config.hybrid
            else PatchEmbedding(config)
        )
        self.positions = Positions(
            config.dim,
            config.grid,
            class_token=class_token,
            learned=class_token and not config.rope,
        )
        options = {"rope": True} if config.rope else {}
        self.layers = nn.Sequential(
            *(
                Layer(
                    config.make_mixer(prefix_tokens=int(class_token), options=options),
                    config.dim,
                    config.hidden,
                )
                for _ in range(config.depth)
            )
        )
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Raises:
            ShapeError: the images have another size than the model was made for.
        """
        self.check_image(x)
        x = self.layers(self.positions(self.embedding(x)))
        x = self.norm(x[:, 0]) if self.class_token else self.norm(x).mean(1)
        logits: Tensor = self.head(x)
        return logits


def _vix(options: dict[str, Any]) -> ViX:
    return ViX(make_config(ViXConfig, options))


#: Name, summary and what makes it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("Vision Transformer", {"mixer": "softmax"}),
    "vip": ("Vision Performer", {"mixer": "performer"}),
    "vil": ("Vision Linformer", {"mixer": "linformer"}),
    "vin": ("Vision Nyströmformer", {"mixer": "nystrom"}),
    "fnet": ("FNet", {"mixer": "fourier"}),
    "mixer": ("MLP-Mixer", {"mixer": "mlp_mixer", "hidden": 128, "pool": "mean"}),
}

#: Parameters, size in MB, top-1 and top-5 accuracy in percent, GPU memory in GB.
TABLE_1 = {
    "vit": (530_442, 209.39, 56.81, 94.82, 14.1),
    "vip": (531_978, 85.15, 58.23, 94.89, 5.0),
    "vil": (415_754, 77.70, 57.45, 95.11, 2.2),
    "vin": (530_970, 86.62, 65.06, 96.42, 4.8),
    "fnet": (267_786, 60.12, 50.87, 93.22, 1.5),
    "mixer": (8_533_002, 90.59, 60.33, 95.79, 1.4),
    "hybrid_vit": (623_178, 211.47, 73.94, 98.08, 14.1),
    "hybrid_vip": (624_714, 87.23, 74.98, 98.41, 5.0),
    "hybrid_vil": (508_490, 79.78, 63.17, 95.75, 2.2),
    "hybrid_vin": (623_706, 88.70, 75.26, 98.39, 4.8),
    "hybrid_fnet": (360_522, 62.20, 64.34, 96.95, 1.6),
    "hybrid_mixer": (8_625_738, 92.67, 61.58, 96.26, 1.4),
}
TABLE_2 = {
    "vit": (556_104, 209.59, 26.43, 51.82, 14.1),
    "vip": (557_640, 85.35, 28.17, 53.93, 4.4),
    "vil": (441_416, 77.90, 24.38, 49.31, 2.0),
    "vin": (556_632, 86.82, 30.17, 55.97, 3.6),
    "fnet": (293_448, 60.32, 22.75, 49.85, 1.5),
    "mixer": (8_558_664, 90.79, 18.47, 42.16, 1.2),
    "hybrid_vit": (647_688, 211.60, 34.48, 60.79, 14.1),
    "hybrid_vip": (649_224, 87.36, 34.13, 60.42, 4.4),
    "hybrid_vil": (533_000, 79.91, 26.90, 52.88, 2.2),
    "hybrid_vin": (648_216, 88.83, 34.05, 60.80, 3.6),
    "hybrid_fnet": (385_032, 62.33, 26.39, 51.86, 1.6),
    "hybrid_mixer": (8_650_248, 92.80, 22.76, 47.33, 1.2),
}
#: Top-1 and top-5 accuracy in percent, GPU memory in GB.
TABLE_6 = {
    "rope_vit": (69.32, 97.68, 14.4),
    "rope_vip": (60.74, 95.62, 5.2),
    "rope_vil": (55.88, 94.61, 2.7),
    "rope_vin": (68.36, 97.28, 5.2),
    "hybrid_rope_vit": (76.90, 98.60, 14.5),
    "hybrid_rope_vip": (76.86, 98.37, 5.2),
    "hybrid_rope_vil": (64.40, 96.63, 2.7),
    "hybrid_rope_vin": (74.38, 97.64, 5.2),
}
NOTES = {
    "vip": KERNEL_NOTE,
    "fnet": "the transform runs as matrix products here, 302.5 M MACs a layer at 1025 tokens; "
    "counters take a fast transform for nothing",
    "rope_vil": "the key has full width, because it is rotated per head, so there are more "
    "parameters than without; the paper says that rotary positions leave the count unchanged",
}


def _register(table: str, dataset: Dataset, rows: Mapping[str, tuple[float, ...]]) -> None:
    for name, figures in rows.items():
        plain = name.removeprefix("hybrid_")
        summary, variant = VARIANTS[plain.removeprefix("rope_")]
        hybrid, rope = plain != name, plain.startswith("rope_")
        register_row(
            _vix,
            name,
            f"{'Hybrid ' * hybrid}{summary}{' with rotary positions' * rope}",
            dataset=dataset,
            table=table,
            figures=figures,
            note=NOTES.get(plain),
            **{**variant, "hybrid": hybrid, "rope": rope},
        )


_register("Table 1", CIFAR10, TABLE_1)
_register("Table 2", TINY_IMAGENET, TABLE_2)
_register("Table 6", CIFAR10, TABLE_6)
