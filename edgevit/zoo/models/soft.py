"""The SOFT backbone (Lu et al. 2021), in which SimA's Table 2 compares linear attentions.

    image
      │ stage 1       three 3x3 convolutions to 1/4; width 64, 2 heads
      │ stage 2       3x3 stride-2 convolution; width 128, 4 heads
      │ stage 3       3x3 stride-2 convolution; width 320, 10 heads
      │ stage 4       3x3 stride-2 convolution, class token; width 512, 16 heads, softmax
      │ head          LayerNorm and Linear on the class token
    logits

Every convolution has a bias, BatchNorm and ReLU after it, every stage learned positions. The layers
of stages 1 to 3 normalise after the residual, x = LN(x + attention(x)); x = LN(x + MLP(x)) with
GELU in its tanh form; those of stage 4 are ordinary pre-norm ones. The mixer is that of stages 1
to 3.

The paper quotes the figures of Linformer, Performer and Nyströmformer in this backbone without
their ranks; the choices here, 49 projected tokens, 110 features and 49 landmarks, are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.zoo.checkpoints import Rule, rename
from edgevit.zoo.layers import ConvNorm, check_classes, check_multiple
from edgevit.zoo.mixers import make_mixer
from edgevit.zoo.models.deit import Block, Mlp, check_input, init_weights_
from edgevit.zoo.registry import make_config, register_model
from edgevit.zoo.states import WRAPPED, join_rows, resize_positions

__all__ = ["Soft", "SoftConfig", "map_keys"]

STEM = 32
LAST = 3


@dataclass(frozen=True)
class SoftConfig:
    """Configuration of :class:`Soft`; the defaults are SOFT-Tiny, one entry a stage."""

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    in_chans: int = 3
    widths: tuple[int, int, int, int] = (64, 128, 320, 512)
    depths: tuple[int, int, int, int] = (1, 2, 3, 2)
    heads: tuple[int, int, int, int] = (2, 4, 10, 16)
    expansion: int = 4
    mixer: str = "soft"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        check_multiple(self.image_size, 32, "SOFT")

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return check_multiple(self.image_size, 32, "SOFT")

    def grid(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's token map, stages counted from 0."""
        height, width = self.image
        return height // (4 << stage), width // (4 << stage)


def _mixer_options(config: SoftConfig, stage: int) -> dict[str, Any]:
    """The options of the paper's blocks where they are not the block's own defaults."""
    heads = config.heads[stage]
    paper: dict[str, dict[str, Any]] = {
        "soft": {"ratio": (8, 4, 2)[stage], "kernel": (9, 5, 3)[stage]},
        "linformer": {"rank": 49, "kv_heads": heads, "share_kv": False, "qkv_bias": True},
        "performer": {"features": 110},
        "nystrom": {"landmarks": 49, "iterations": 6, "taps": 33, "qkv_bias": True},
    }
    return paper.get(config.mixer, {}) | dict(config.mixer_options)


class PostNormLayer(nn.Module):
    """LN(x + attention(x)), then LN(x + MLP(x)); (B, N, C) to (B, N, C)."""

    def __init__(self, dim: int, attention: nn.Module, hidden: int) -> None:
        super().__init__()
        self.attn = attention
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, nn.GELU(approximate="tanh"))
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = self.norm1(x + self.attn(x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


def _layer(config: SoftConfig, stage: int) -> nn.Module:
    dim, hidden = config.widths[stage], config.expansion * config.widths[stage]
    last = stage == LAST
    attention = make_mixer(
        "softmax" if last else config.mixer,
        dim=dim,
        heads=config.heads[stage],
        tokens=config.grid(stage),
        prefix_tokens=int(last),
        **({} if last else _mixer_options(config, stage)),
    )
    if last:
        return Block(dim, attention, hidden=hidden)
    return PostNormLayer(dim, attention, hidden)


def _embedding(config: SoftConfig, stage: int) -> nn.Sequential:
    dim = config.widths[stage]
    before = config.widths[stage - 1]
    steps = [(before, dim, 2)]
    if stage == 0:
        steps = [(config.in_chans, STEM, 2), (STEM, STEM, 1), (STEM, dim, 2)]
    return nn.Sequential(
        *(ConvNorm(a, b, 3, stride, bias=True, activation=nn.ReLU()) for a, b, stride in steps)
    )


class Stage(nn.Module):
    """Embedding, positions and layers of one resolution: maps (B, C, H, W) to tokens."""

    def __init__(self, config: SoftConfig, stage: int) -> None:
        super().__init__()
        dim, (height, width) = config.widths[stage], config.grid(stage)
        prefix = int(stage == LAST)
        self.patch_embed = _embedding(config, stage)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if prefix else None
        self.pos_embed = nn.Parameter(torch.zeros(1, prefix + height * width, dim))
        self.blocks = nn.Sequential(*(_layer(config, stage) for _ in range(config.depths[stage])))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, prefix + N, C')."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        out: Tensor = self.blocks(x + self.pos_embed)
        return out


class Soft(nn.Module):
    """SOFT: images (B, in_chans, H, W) of the configured size to logits (B, num_classes)."""

    def __init__(self, config: SoftConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, i) for i in range(LAST + 1))
        self.norm = nn.LayerNorm(config.widths[LAST], 1e-6)
        self.head = nn.Linear(config.widths[LAST], config.num_classes)
        init_weights_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Raises:
            ShapeError: the image has not the size that the model was built for.
        """
        check_input(x, self.config.image, "SOFT")
        x = self.stages[0](x)
        for before, stage in enumerate(self.stages[1:]):
            x = stage(x.transpose(1, 2).reshape(-1, x.shape[2], *self.config.grid(before)))
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by our names, positions resized to this model's token maps."""
        adapted = map_keys(state)
        for stage in range(LAST + 1):
            name = f"stages.{stage}.pos_embed"
            if name in adapted:
                adapted[name] = resize_positions(
                    adapted[name], self.config.grid(stage), prefix_tokens=int(stage == LAST)
                )
        return adapted


def _stage_name(match: re.Match[str]) -> str:
    return f"stages.{int(match[2]) - 1}.{'blocks' if match[1] == 'block' else match[1]}"


def _embedding_name(match: re.Match[str]) -> str:
    layer, part = divmod(int(match[1]), 3)
    return f"patch_embed.{layer}.{part}."


KEYS: tuple[Rule, ...] = (
    WRAPPED,
    (r"^(block|pos_embed|patch_embed)(\d)", _stage_name),
    (r"^cls_token$", f"stages.{LAST}.cls_token"),
    (r"patch_embed\.proj\.(\d)\.", _embedding_name),
    (r"\.att\.(?=norm)", "."),
    (r"\.att\.ff([12])\.", r".mlp.fc\1."),
    (r"\.att\.mha\.W_q\.", ".attn.query."),
    (r"\.att\.mha\.W_v\.", ".attn.value."),
    (r"\.att\.mha\.ff\.", ".attn.proj."),
    (r"\.att\.mha\.attn\.Qlandmark_op\.", ".attn.landmarks."),
    (r"\.att\.mha\.attn\.Qnorm_act\.0\.", ".attn.norm."),
    (r"\.att\.mha\.attn\.conv\.", ".attn.residual."),
)


def map_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SOFT's own released checkpoint by our names."""
    return join_rows(rename(state, KEYS), ".attn.q.", ".attn.kv.", ".attn.qkv.")


def _soft(options: dict[str, Any], **variant: Any) -> Soft:
    return Soft(make_config(SoftConfig, variant | options))


TABLE2: dict[str, Any] = {"paper": "sima", "table": "Table 2"}
RANK = "the paper gives no {}; {} is our choice"


@register_model(
    aliases=("soft_tiny+soft",),
    **TABLE2,
    published={"params_m": 13, "flops_g": 1.9, "top1": 79.3},
    note="the published FLOPs leave the products of the Newton inverse out",
)
def soft_tiny(**options: Any) -> Soft:
    """SOFT-Tiny: 1, 2, 3 and 2 layers of widths 64, 128, 320 and 512."""
    return _soft(options)


@register_model(
    paper="sima",
    table="Table 1",
    published={"params_m": 24, "flops_g": 3.3, "top1": 82.2},
    note="the published FLOPs leave the products of the Newton inverse out",
)
def soft_small(**options: Any) -> Soft:
    """SOFT-Small: 1, 3, 7 and 4 layers of widths 64, 128, 320 and 512."""
    return _soft(options, depths=(1, 3, 7, 4))


@register_model(
    name="soft_tiny+softmax",
    **TABLE2,
    published={"params_m": 13, "flops_g": 3.9, "top1": 79.1},
    note="the published FLOPs could not be reproduced",
)
def soft_tiny_softmax(**options: Any) -> Soft:
    """SOFT-Tiny with softmax attention in all stages."""
    return _soft(options, mixer="softmax")


@register_model(
    name="soft_tiny+linformer",
    **TABLE2,
    published={"params_m": 13, "flops_g": 1.9, "top1": 78.2},
    note=RANK.format("rank", "49 projected tokens"),
)
def soft_tiny_linformer(**options: Any) -> Soft:
    """SOFT-Tiny with Linformer attention in the first three stages."""
    return _soft(options, mixer="linformer")


@register_model(
    name="soft_tiny+performer",
    **TABLE2,
    published={"params_m": 13, "flops_g": 2.2, "top1": 76.1},
    note=RANK.format("number of features", "110"),
)
def soft_tiny_performer(**options: Any) -> Soft:
    """SOFT-Tiny with Performer attention in the first three stages."""
    return _soft(options, mixer="performer")


@register_model(
    name="soft_tiny+nystrom",
    **TABLE2,
    published={"params_m": 13, "flops_g": 2.0, "top1": 78.6},
    note=RANK.format("number of landmarks", "49"),
)
def soft_tiny_nystrom(**options: Any) -> Soft:
    """SOFT-Tiny with Nyströmformer attention in the first three stages."""
    return _soft(options, mixer="nystrom")
