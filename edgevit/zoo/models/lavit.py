"""LaViT (Zhang et al., "You only need less attention at each stage in vision transformers").

PVT (:mod:`edgevit.zoo.models.pvt`), whose later layers have less attention, and the plug-in
variants of ViT, DeiT and PVT (Table 5).

    stage 3, 4    vanilla layers, then less-attention layers, A_l = Ψ(Θ(A_{l-1})ᵀ)ᵀ
    stage 2..4    to the first layer's scores is added LS(Conv1x1(Norm(DWConv(A)))), where A is the
                  last map of the stage before (attention residual)

The paper writes its maps as square, N x N, and halves N between stages; PVT's are N x M, with M
keys from a reduced map, and a quarter of N in the next stage. So two readings are offered:

* the default keeps PVT as it is. Θ is M x M, Ψ is N x N, the convolution of the attention residual
  has kernel and stride (4, 1), by which queries and keys shrink. Into stage 4 a row and a column of
  zeros stand for the class token.
* ``square=True`` has no reduction in stages 3 and 4: maps are square there. The residual's kernel
  is (4, 1) into stage 2 and (4, 4) into stage 4; into stage 3 there is none, for its keys are more.

Neither gives the paper's totals, nor do they with ``less_projection=False``, which leaves the
output Linear of the less-attention layers out: no set of options found gives two of the three
models. Where the paper is silent Θ and Ψ have no bias and one pair serves all heads; the residual's
norm is BatchNorm with the heads as channels, its LayerScale starts at 1e-5.

The diagonality preserving loss wants square maps (:mod:`edgevit.zoo.attention.less_attention`); a
map of N x M has the rows of the queries of each reduced cell averaged for it, which makes it M x M.

Θ and Ψ tie a network to the image size that it is built for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.errors import OptionError
from edgevit.zoo.attention.less_attention import ScoreTransform
from edgevit.zoo.models.deit import (
    ACTIVATIONS,
    DeiT,
    DeiTConfig,
    Mlp,
    check_input,
    init_weights_,
)
from edgevit.zoo.models.less_common import (
    LessConfig,
    LessModel,
    Maps,
    ScoredAttention,
    ScoredBlock,
    ScoredBlocks,
    check_mixer,
    check_starts,
    token_attention,
)
from edgevit.zoo.models.pvt import LAST, OWN_MIXER, PVT, Four, PVTConfig, make_reduction
from edgevit.zoo.registry import make_config, register_model

__all__ = [
    "AttentionResidual",
    "LaViT",
    "LaViTConfig",
    "LessDeiT",
    "LessDeiTConfig",
    "ReducedLessAttention",
]

NORMS = ("batch", "group", "none")


@dataclass(frozen=True)
class LaViTConfig(PVTConfig):
    """PVT's configuration with less attention, one entry a stage; the defaults are LaViT-T.

    ``less_from`` is the first less-attention layer of each stage, counted from 1, and 0 for none
    (Table 1's N_LA); it may be 1 where the attention residual gives a map to start from.
    ``less_projection`` keeps the output Linear in these layers, ``less_bias`` gives Θ and Ψ a bias,
    ``square`` is the second reading. ``residual`` is the attention residual, ``residual_norm`` its
    norm ("batch", "group": one group of all heads, or "none"), ``residual_scale`` where its
    LayerScale starts.
    """

    less_from: Four = (0, 0, 2, 2)
    less_projection: bool = True
    less_bias: bool = False
    square: bool = False
    residual: bool = True
    residual_norm: str = "batch"
    residual_scale: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixer(self.mixer, self.mixer_options, OWN_MIXER, less=True)
        if self.residual_norm not in NORMS:
            raise OptionError("residual_norm", expected=" or ".join(NORMS), got=self.residual_norm)
        firsts = [1 if self.shrinks(stage) else 2 for stage in range(LAST + 1)]
        check_starts(self.less_from, self.depths, firsts)

    def reduction(self, stage: int) -> int:
        """By what the sides of a stage's map are divided for keys and values."""
        return 1 if self.square and stage >= LAST - 1 else super().reduction(stage)

    def keys(self, stage: int) -> int:
        """Number of keys of a stage, without class token."""
        height, width = self.grid(stage)
        keys: int = height * width // self.reduction(stage) ** 2
        return keys

    def shrinks(self, stage: int) -> tuple[int, int] | None:
        """By what the attention residual divides queries and keys; None where there is none."""
        if not self.residual or stage == 0:
            return None
        before, keys = self.keys(stage - 1), self.keys(stage)
        return None if before % keys else (4, before // keys)

    def attention_for(self, stage: int, layer: int) -> nn.Module:
        """The attention of one layer; layers are counted from 1."""
        if not 0 < self.less_from[stage] <= layer:
            return super().attention_for(stage, layer)
        return ReducedLessAttention(
            self.widths[stage],
            self.heads[stage],
            self.grid(stage),
            self.reduction(stage),
            prefix_tokens=self.prefix(stage),
            bias=self.less_bias,
            project=self.less_projection,
        )

    def residual_into(self, stage: int) -> nn.Module | None:
        """What makes a map for the stage's first layer from the last map of the stage before."""
        factors = self.shrinks(stage)
        if factors is None:
            return None
        return AttentionResidual(
            self.heads[stage - 1],
            self.heads[stage],
            factors,
            prefix_tokens=self.prefix(stage),
            norm=self.residual_norm,
            scale=self.residual_scale,
        )


class ReducedLessAttention(ScoredAttention):
    """Less attention with values from a reduced map.

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        grid: height and width of the token map.
        ratio: of the reduction, along each side.
        prefix_tokens: class tokens before the map's own, with a ratio of 1 only.
        bias: of the transforms.
        project: with an output Linear.
    """

    less = True

    def __init__(
        self,
        dim: int,
        heads: int,
        grid: tuple[int, int],
        ratio: int,
        *,
        prefix_tokens: int = 0,
        bias: bool = False,
        project: bool = True,
    ) -> None:
        super().__init__(dim, heads, project=project)
        tokens = grid[0] * grid[1]
        self.grid, self.ratio = grid, ratio
        self.transform = ScoreTransform(
            prefix_tokens + tokens, prefix_tokens + tokens // ratio**2, bias=bias
        )
        self.v = nn.Linear(dim, dim)
        self.reduce = make_reduction(dim, grid, ratio)

    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) and (B, heads, N, M) to the same."""
        scores: Tensor = self.transform(given)
        return self.mix(scores, self.split(self.v(self.reduce(x)))), scores

    def square(self, scores: Tensor) -> Tensor:
        """(B, heads, N, M) to (B, heads, M, M): the mean over the queries of each reduced cell."""
        if self.ratio == 1:
            return scores
        heads, keys = scores.shape[1], scores.shape[3]
        by_key = scores.transpose(-2, -1).reshape(-1, keys, *self.grid)
        cells = F.avg_pool2d(by_key, self.ratio).flatten(2)
        return cells.transpose(-2, -1).reshape(-1, heads, keys, keys)


class AttentionResidual(nn.Module):
    """The last map of one stage as an addition to the first of the next (equations 6 and 7).

    Args:
        before: heads of the stage before.
        heads: heads of the stage.
        factors: by what queries and keys shrink; kernel and stride of the depthwise convolution.
        prefix_tokens: rows and columns of zeros to put in front, for class tokens.
        norm: ``"batch"``, ``"group"`` (one group of all heads) or ``"none"``.
        scale: where the LayerScale starts.
    """

    def __init__(
        self,
        before: int,
        heads: int,
        factors: tuple[int, int],
        *,
        prefix_tokens: int = 0,
        norm: str = "batch",
        scale: float = 1e-5,
    ) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens
        self.depthwise = nn.Conv2d(before, before, factors, factors, groups=before)
        self.norm = _norm(norm, before)
        self.pointwise = nn.Conv2d(before, heads, 1)
        self.gamma = nn.Parameter(torch.full((heads,), scale))

    def forward(self, scores: Tensor) -> Tensor:
        """(B, heads before, N, M) to (B, heads, N / factor, M / factor), class tokens besides."""
        added: Tensor = self.pointwise(self.norm(self.depthwise(scores)))
        added = added * self.gamma.reshape(-1, 1, 1)
        pad = self.prefix_tokens
        return F.pad(added, (pad, 0, pad, 0)) if pad else added


def _norm(kind: str, heads: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(heads)
    return nn.GroupNorm(1, heads) if kind == "group" else nn.Identity()


class LaViT(PVT):
    """LaViT: images (B, in_chans, H, W) of the configured size to logits (B, num_classes).

    With ``features`` to the maps of the four stages, (B, 64, H/4, W/4) to (B, 512, H/32, W/32).
    """

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As PVT's; with ``features`` the transforms lose the class token's rows and columns."""
        adapted, own = super().adapt_state(state), self.state_dict()
        for name, tensor in adapted.items():
            last = name.startswith(f"stages.{LAST}.") and ".transform." in name and name in own
            if last and len(tensor) == len(own[name]) + self.config.features:
                adapted[name] = tensor[(slice(int(self.config.features), None),) * tensor.dim()]
        return adapted


@dataclass(frozen=True)
class LessDeiTConfig(DeiTConfig, LessConfig):
    """DeiT's configuration with less attention."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixer(self.mixer, self.mixer_options, "softmax", less=True)
        check_starts([self.less_from], [self.depth], [2])


class LessDeiT(LessModel, DeiT):
    """DeiT or ViT with less attention: images (B, in_chans, H, W) to logits (B, num_classes)."""

    blocks: ScoredBlocks

    def __init__(self, config: LessDeiTConfig) -> None:
        super().__init__(config)
        self.blocks = ScoredBlocks(*(_layer(config, i) for i in range(1, config.depth + 1)))
        init_weights_(self.blocks)

    def run(self, x: Tensor, maps: Maps | None) -> Tensor:
        """Images to logits; what less-attention layers compute is added to ``maps``."""
        check_input(x, self.config.image, "DeiT")
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        x, _ = self.blocks(x, maps=maps)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits


def _layer(config: LessDeiTConfig, layer: int) -> ScoredBlock:
    dim, tokens = config.width, 1 + config.grid[0] * config.grid[1]
    attention = token_attention(config, layer, dim=dim, heads=config.heads, tokens=tokens)
    mlp = Mlp(dim, config.expansion * dim, ACTIVATIONS[config.activation]())
    return ScoredBlock(dim, attention, mlp)


def _lavit(options: dict[str, Any], **variant: Any) -> LaViT:
    return LaViT(make_config(LaViTConfig, variant | options))


def _pvt_la(options: dict[str, Any], **variant: Any) -> LaViT:
    return _lavit(options, residual=False, **variant)


def _tiny_la(options: dict[str, Any], **variant: Any) -> LessDeiT:
    return LessDeiT(make_config(LessDeiTConfig, {"width": 192, "heads": 3} | variant | options))


def _small_la(options: dict[str, Any], **variant: Any) -> LessDeiT:
    return LessDeiT(make_config(LessDeiTConfig, {"width": 384, "heads": 6} | variant | options))


TABLE2: dict[str, Any] = {"paper": "lavit", "table": "Table 2"}
TABLE5: dict[str, Any] = {"paper": "lavit", "table": "Table 5"}
TOTALS = "the paper's totals could not be reproduced: ours has {} % parameters, {} % FLOPs; {}"
START = "the paper gives no start layer; with ours the FLOPs are {} %"
UNCOUNTED = START + ", and {} G, as printed, without the products with Θ and Ψ"


@register_model(
    **TABLE2,
    published={"params_m": 10.9, "flops_g": 1.6, "top1": 79.2},
    note=TOTALS.format("+15.1", "+18.2", "where less attention starts is inferred"),
)
def lavit_t(**options: Any) -> LaViT:
    """LaViT-T: 2, 2, 2 and 2 layers, less attention in the last of stages 3 and 4."""
    return _lavit(options)


@register_model(
    **TABLE2,
    published={"params_m": 22.4, "flops_g": 3.3, "top1": 82.6},
    note=TOTALS.format("+1.7", "+12.1", "where less attention starts is the paper's"),
)
def lavit_s(**options: Any) -> LaViT:
    """LaViT-S: 3, 4, 6 and 3 layers, less attention from layer 3 of stage 3 and 2 of stage 4."""
    return _lavit(options, depths=(3, 4, 6, 3), less_from=(0, 0, 3, 2))


@register_model(
    **TABLE2,
    published={"params_m": 39.6, "flops_g": 6.1, "top1": 83.1},
    note=TOTALS.format("+4.1", "+4.7", "where less attention starts is the best of its Table 7"),
)
def lavit_b(**options: Any) -> LaViT:
    """LaViT-B: 3, 4, 18 and 3 layers, less attention from layer 4 of stage 3 and 3 of stage 4."""
    return _lavit(options, depths=(3, 4, 18, 3), less_from=(0, 0, 4, 3))


@register_model(
    name="vit_tiny+la",
    **TABLE5,
    published={"flops_g": 1.2, "top1": 73.2},
    note=START.format("+20.4"),
)
def vit_tiny_la(**options: Any) -> LessDeiT:
    """ViT-Ti/16 with less attention from layer 5 on."""
    return _tiny_la(options, less_from=5)


@register_model(
    name="vit_small+la",
    **TABLE5,
    published={"flops_g": 4.0, "top1": 80.0},
    note=UNCOUNTED.format("+18.7", "4.0"),
)
def vit_small_la(**options: Any) -> LessDeiT:
    """ViT-S/16 with less attention from layer 5 on."""
    return _small_la(options, less_from=5)


@register_model(
    name="deit_tiny+la",
    **TABLE5,
    published={"flops_g": 1.2, "top1": 73.4},
    note=START.format("+16.4"),
)
def deit_tiny_la(**options: Any) -> LessDeiT:
    """DeiT-Ti/16 with less attention from layer 7 on."""
    return _tiny_la(options, less_from=7)


@register_model(
    name="deit_small+la",
    **TABLE5,
    published={"flops_g": 4.2, "top1": 80.4},
    note=UNCOUNTED.format("+12.2", "4.2"),
)
def deit_small_la(**options: Any) -> LessDeiT:
    """DeiT-S/16 with less attention from layer 7 on."""
    return _small_la(options, less_from=7)


@register_model(
    name="pvt_tiny+la",
    **TABLE5,
    published={"flops_g": 1.4, "top1": 75.9},
    note=START.format("+35.1"),
)
def pvt_tiny_la(**options: Any) -> LaViT:
    """PVT-Tiny with LaViT-T's less-attention layers, no attention residual."""
    return _pvt_la(options)


@register_model(
    name="pvt_small+la",
    **TABLE5,
    published={"flops_g": 3.2, "top1": 80.4},
    note=START.format("+15.6"),
)
def pvt_small_la(**options: Any) -> LaViT:
    """PVT-Small with LaViT-S's less-attention layers, no attention residual."""
    return _pvt_la(options, depths=(3, 4, 6, 3), less_from=(0, 0, 3, 2))
