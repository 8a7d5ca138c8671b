"""CvT-13 (Wu et al. 2021), and CvT with SimA or another block in place of its softmax.

    image
      │ stage 1       7x7 stride-4 convolution, LayerNorm; 1 block, width 64
      │ stage 2       3x3 stride-2 convolution, LayerNorm; 2 blocks, width 192
      │ stage 3       3x3 stride-2 convolution, LayerNorm, class token; 10 blocks, width 384
      │ head          LayerNorm and Linear on the class token
    logits

A block is x + attention(LN x), then x + MLP(LN x) with x σ(1.702 x) for GELU; there are no
positions. In the attention, query, key and value each pass a depthwise 3x3 convolution with
BatchNorm, of stride 2 for key and value, and a Linear of their own; the class token goes past the
convolutions. So there are about four queries to a key. The softmax is scaled by the whole width,
C^(-1/2). SimA (Koohpayegani and Pirsiavash, Table 1) normalises queries and keys over their own
numbers of tokens.

Blocks that can do with fewer keys than queries take the place of the softmax alone. Any other block
replaces the whole attention, convolutional projections included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.cosformer import cosformer_attention
from edgevit.zoo.attention.efficient import efficient_attention
from edgevit.zoo.attention.elu import elu_attention
from edgevit.zoo.attention.linear import check_order
from edgevit.zoo.attention.sima import sima
from edgevit.zoo.attention.softmax import merge_heads, split_heads
from edgevit.zoo.checkpoints import Rule, rename
from edgevit.zoo.layers import check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.models.deit import Block, check_input, init_weights_
from edgevit.zoo.registry import check_heads, make_config, register_model
from edgevit.zoo.states import WRAPPED

__all__ = ["CvT", "CvTConfig", "map_keys"]

#: Attention cores that take another number of keys than of queries.
CORES: dict[str, Callable[[Tensor, Tensor, Tensor, str], Tensor]] = {
    "sima": sima,
    "elu": elu_attention,
    "efficient": efficient_attention,
    "cosformer": cosformer_attention,
}
KEYS: tuple[Rule, ...] = (
    WRAPPED,
    (r"^stage(\d+)\.", r"stages.\1."),
    (r"\.conv_proj_([qkv])\.conv\.", r".conv_proj_\1.0."),
    (r"\.conv_proj_([qkv])\.bn\.", r".conv_proj_\1.1."),
)


@dataclass(frozen=True)
class CvTConfig:
    """Configuration of :class:`CvT`; the defaults are CvT-13, one entry a stage."""

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    widths: tuple[int, int, int] = (64, 192, 384)
    depths: tuple[int, int, int] = (1, 2, 10)
    heads: tuple[int, int, int] = (1, 3, 6)
    expansion: int = 4
    mixer: str = "softmax"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_multiple(self.image_size, 16, "CvT")

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return check_multiple(self.image_size, 16, "CvT")


class QuickGELU(nn.Module):
    """x σ(1.702 x), element by element."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        return x * (1.702 * x).sigmoid()


class ConvProjectionAttention(nn.Module):
    """Attention with convolutional projections: (B, prefix + N, C) to the like.

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        grid: height and width of the token map, N in all.
        prefix_tokens: class tokens in front, which pass the convolutions by.
        mixer: ``"softmax"`` or one of :data:`CORES`.
        order: of the products, where the mixer leaves a choice.

    Raises:
        ShapeError: the heads do not divide the width.
        OptionError: the order is none.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        grid: tuple[int, int],
        *,
        prefix_tokens: int = 0,
        mixer: str = "softmax",
        order: str = "auto",
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads, self.grid, self.prefix_tokens = heads, grid, prefix_tokens
        self.mixer, self.order = mixer, check_order(order)
        self.conv_proj_q = _depthwise(dim, 1)
        self.conv_proj_k = _depthwise(dim, 2)
        self.conv_proj_v = _depthwise(dim, 2)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, prefix + N, C) to (B, prefix + N, C)."""
        patches = x[:, self.prefix_tokens :] if self.prefix_tokens else x
        image = patches.transpose(1, 2).reshape(-1, x.shape[2], *self.grid)
        query = self.proj_q(self._tokens(x, self.conv_proj_q(image)))
        key = self.proj_k(self._tokens(x, self.conv_proj_k(image)))
        value = self.proj_v(self._tokens(x, self.conv_proj_v(image)))
        mixed = self._core(*(split_heads(part, self.heads) for part in (query, key, value)))
        out: Tensor = self.proj(merge_heads(mixed))
        return out

    def _core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.mixer in CORES:
            return CORES[self.mixer](query, key, value, self.order)
        scale = (self.heads * query.shape[-1]) ** -0.5
        scores = (query * scale) @ key.transpose(-2, -1)
        out: Tensor = scores.softmax(-1) @ value
        return out

    def _tokens(self, x: Tensor, image: Tensor) -> Tensor:
        tokens = image.flatten(2).transpose(1, 2)
        if not self.prefix_tokens:
            return tokens
        return torch.cat([x[:, : self.prefix_tokens], tokens], 1)


def _depthwise(dim: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(dim))


class ConvEmbed(nn.Module):
    """Convolution with bias, LayerNorm over channels: (B, C, H, W) to tokens (B, N, C')."""

    def __init__(self, in_chans: int, dim: int, *, first: bool) -> None:
        super().__init__()
        kernel, stride, padding = (7, 4, 2) if first else (3, 2, 1)
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, C')."""
        out: Tensor = self.norm(self.proj(x).flatten(2).transpose(1, 2))
        return out


class Stage(nn.Module):
    """Embedding and blocks of one resolution: maps (B, C, H, W) to tokens (B, prefix + N, C')."""

    def __init__(self, config: CvTConfig, index: int) -> None:
        super().__init__()
        dim = config.widths[index]
        self.grid = _grid(config, index)
        before = config.widths[index - 1] if index else config.in_chans
        self.patch_embed = ConvEmbed(before, dim, first=index == 0)
        last = index == len(config.widths) - 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if last else None
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    _attention(config, index),
                    hidden=config.expansion * dim,
                    activation=QuickGELU(),
                    eps=1e-5,
                )
                for _ in range(config.depths[index])
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, prefix + N, C')."""
        x = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        out: Tensor = self.blocks(x)
        return out


def _grid(config: CvTConfig, index: int) -> tuple[int, int]:
    height, width = config.image
    stride = 4 * 2**index
    return height // stride, width // stride


def _attention(config: CvTConfig, index: int) -> nn.Module:
    dim, heads, grid = config.widths[index], config.heads[index], _grid(config, index)
    prefix = int(index == len(config.widths) - 1)
    if config.mixer != "softmax" and config.mixer not in CORES:
        return make_mixer(
            config.mixer,
            dim=dim,
            heads=heads,
            tokens=grid,
            prefix_tokens=prefix,
            **config.mixer_options,
        )
    if unknown := sorted(config.mixer_options.keys() - {"order"}):
        raise OptionError("mixer_options", expected="order", got=", ".join(unknown))
    return ConvProjectionAttention(
        dim, heads, grid, prefix_tokens=prefix, mixer=config.mixer, **config.mixer_options
    )


class CvT(nn.Module):
    """CvT: images (B, in_chans, H, W) of the configured size to logits (B, num_classes)."""

    def __init__(self, config: CvTConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, i) for i in range(len(config.widths)))
        self.norm = nn.LayerNorm(config.widths[-1])
        self.head = nn.Linear(config.widths[-1], config.num_classes)
        init_weights_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Raises:
            ShapeError: the image has not the size that the model was built for.
        """
        check_input(x, self.config.image, "CvT")
        x = self.stages[0](x)
        for before, stage in enumerate(self.stages[1:]):
            x = stage(x.transpose(1, 2).reshape(-1, x.shape[2], *_grid(self.config, before)))
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by our names; there are no positions to resize."""
        return map_keys(state)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CvT's own released checkpoint by our names."""
    return rename(state, KEYS)


TABLE1: dict[str, Any] = {"paper": "sima", "table": "Table 1"}


@register_model(**TABLE1, published={"params_m": 20, "flops_g": 4.5, "top1": 81.6})
def cvt_13(**options: Any) -> CvT:
    """CvT-13: 1, 2 and 10 blocks of widths 64, 192 and 384."""
    return CvT(make_config(CvTConfig, options))


@register_model(
    name="cvt_13+sima",
    **TABLE1,
    published={"params_m": 20, "flops_g": 4.5, "top1": 81.4},
    note="the published FLOPs are the softmax baseline's; with SimA there are fewer",
)
def cvt_13_sima(**options: Any) -> CvT:
    """CvT-13 with SimA."""
    return CvT(make_config(CvTConfig, {"mixer": "sima"} | options))
