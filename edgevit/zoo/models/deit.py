"""ViT (Dosovitskiy et al. 2021), DeiT without distillation (Touvron et al. 2021), and with SimA.

    image
      │ patch_embed   16x16 convolution, stride 16, with bias
      │ class token in front, learned positions
      │ blocks        12 times: x + attention(LN x); x + MLP(LN x)
      │ norm          LayerNorm of the class token
      │ head          Linear
    logits

ViT and DeiT are one architecture here, they differ in training. SimA (Koohpayegani and Pirsiavash,
Table 1) replaces the attention; its further rows have one head, or ReLU in place of GELU. The names
of the parameters are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.checkpoints import Rule, rename
from edgevit.zoo.layers import check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED, with_positions

__all__ = ["Block", "DeiT", "DeiTConfig", "Mlp", "check_input", "init_weights_", "map_keys"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
KEYS: tuple[Rule, ...] = (WRAPPED,)


@dataclass(frozen=True)
class DeiTConfig:
    """Configuration of :class:`DeiT`; ``mixer`` names a block, ``mixer_options`` go to it."""

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    expansion: int = 4
    activation: str = "gelu"
    mixer: str = "softmax"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_multiple(self.image_size, self.patch_size, "DeiT")
        if self.activation not in ACTIVATIONS:
            raise OptionError("activation", expected=" or ".join(ACTIVATIONS), got=self.activation)

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return check_multiple(self.image_size, self.patch_size, "DeiT")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token map."""
        return self.image[0] // self.patch_size, self.image[1] // self.patch_size


class Mlp(nn.Module):
    """Linear, activation, Linear on the last axis; shape is kept."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = activation if activation is not None else nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """x + attention(LN x), then x + MLP(LN x); (B, N, C) to (B, N, C)."""

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        *,
        hidden: int,
        activation: nn.Module | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """Patches through one convolution: (B, in_chans, H, W) to (B, N, C)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, N, C), row by row."""
        out: Tensor = self.proj(x)
        return out.flatten(2).transpose(1, 2)


class DeiT(nn.Module):
    """DeiT or ViT: images (B, in_chans, H, W) of the configured size to logits (B, num_classes)."""

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, (height, width) = config.width, config.grid
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width, dim))
        self.blocks = nn.Sequential(*(_block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, config.num_classes)
        init_weights_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Raises:
            ShapeError: the image has not the size that the model was built for.
        """
        check_input(x, self.config.image, "DeiT")
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        x = self.blocks(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by our names, positions resized to this model's token map."""
        return with_positions(map_keys(state), self.config.grid, prefix_tokens=1)


def _block(config: DeiTConfig) -> Block:
    attention = make_mixer(
        config.mixer,
        dim=config.width,
        heads=config.heads,
        tokens=config.grid,
        prefix_tokens=1,
        **config.mixer_options,
    )
    return Block(
        config.width,
        attention,
        hidden=config.expansion * config.width,
        activation=ACTIVATIONS[config.activation](),
    )


def init_weights_(model: nn.Module) -> None:
    """Linear weights normal with deviation fan_in^-1/2, class tokens and positions with 0.02.

    The customary 0.02 for all of them makes a fresh model all but deaf to its image, and comparing
    two forms of such a model proves little. Biases are zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in {"cls_token", "pos_embed"}:
            nn.init.trunc_normal_(parameter, std=0.02)


def check_input(x: Tensor, size: tuple[int, int], who: str) -> None:
    """Raise ShapeError unless the images (B, C, H, W) have that height and width."""
    height, width = x.shape[-2:]
    if (height, width) != size:
        raise ShapeError(
            f"this {who} was built for images of {size[0]} x {size[1]}, got {height} x {width}",
            hint=f"build it with image_size=({height}, {width})",
        )


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released checkpoint (DeiT's own, timm's vit and deit, DINO's) by our names."""
    return rename(state, KEYS)


def _tiny(options: dict[str, Any], **variant: Any) -> DeiT:
    return DeiT(make_config(DeiTConfig, {"width": 192, "heads": 3} | variant | options))


def _small(options: dict[str, Any], **variant: Any) -> DeiT:
    return DeiT(make_config(DeiTConfig, {"width": 384, "heads": 6} | variant | options))


TABLE1: dict[str, Any] = {"paper": "sima", "table": "Table 1"}
COUNT = "the paper's FLOPs are those of the N x N product order; ours takes the cheaper order"


@register_model()
def vit_tiny(**options: Any) -> DeiT:
    """ViT-Ti/16: 12 layers, width 192, 3 heads."""
    return _tiny(options)


@register_model()
def vit_small(**options: Any) -> DeiT:
    """ViT-S/16: 12 layers, width 384, 6 heads."""
    return _small(options)


@register_model()
def deit_tiny(**options: Any) -> DeiT:
    """DeiT-Ti/16 without distillation: 12 layers, width 192, 3 heads."""
    return _tiny(options)


@register_model(name="deit_tiny+sima")
def deit_tiny_sima(**options: Any) -> DeiT:
    """DeiT-Ti/16 with SimA."""
    return _tiny(options, mixer="sima")


@register_model(**TABLE1, published={"params_m": 22, "flops_g": 4.6, "top1": 79.8})
def deit_small(**options: Any) -> DeiT:
    """DeiT-S/16 without distillation: 12 layers, width 384, 6 heads."""
    return _small(options)


@register_model(paper="sima", table="Table 6", published={"top1": 77.0})
def deit_small_1head(**options: Any) -> DeiT:
    """DeiT-S/16 with a single head."""
    return _small(options, heads=1)


@register_model(
    name="deit_small+sima",
    **TABLE1,
    published={"params_m": 22, "flops_g": 4.6, "top1": 79.8},
    note=COUNT,
)
def deit_small_sima(**options: Any) -> DeiT:
    """DeiT-S/16 with SimA."""
    return _small(options, mixer="sima")


@register_model(
    name="deit_small+sima_1head",
    **TABLE1,
    published={"params_m": 22, "flops_g": 4.6, "top1": 79.4},
)
def deit_small_sima_1head(**options: Any) -> DeiT:
    """DeiT-S/16 with SimA and a single head."""
    return _small(options, mixer="sima", heads=1)


@register_model(
    name="deit_small+sima_relu",
    **TABLE1,
    published={"params_m": 22, "flops_g": 4.6, "top1": 79.6},
    note=COUNT,
)
def deit_small_sima_relu(**options: Any) -> DeiT:
    """DeiT-S/16 with SimA and ReLU in place of GELU: no exponential anywhere."""
    return _small(options, mixer="sima", activation="relu")
