"""What backbones with less-attention layers share (LaViT): layers that hand their scores on.

A block gives its scores beside its tokens. A less-attention block takes those of the block before;
a vanilla block takes none, but the first of a stage may have a map added to its own (the attention
residual, equation 7).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.less_attention import ScoreTransform, attention_scores, diagonality_loss
from edgevit.zoo.attention.softmax import merge_heads, split_heads
from edgevit.zoo.registry import check_heads

__all__ = [
    "LessConfig",
    "LessModel",
    "Maps",
    "ScoredAttention",
    "ScoredBlock",
    "ScoredBlocks",
    "TransformedAttention",
    "VanillaAttention",
    "check_mixer",
    "check_starts",
    "token_attention",
]

LOSS_MAPS = ("scores", "weights")


@dataclass(frozen=True)
class LessConfig:
    """Less attention in a backbone of one stage.

    ``less_from`` is the first less-attention layer, counted from 1, and 0 for none;
    ``less_projection`` keeps the output Linear in them; ``less_bias`` gives Θ and Ψ a bias.
    """

    less_from: int = 0
    less_projection: bool = True
    less_bias: bool = False


class ScoredAttention(nn.Module):
    """Base of the attentions that hand their scores on.

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        project: with an output Linear.
        weigh: from scores to weights; the softmax over the keys by default.
    """

    #: Whether the scores come from the layer before.
    less = False

    def __init__(
        self, dim: int, heads: int, *, project: bool = True, weigh: nn.Module | None = None
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.weigh = weigh if weigh is not None else nn.Softmax(-1)
        self.proj = nn.Linear(dim, dim) if project else nn.Identity()

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, d)."""
        return split_heads(x, self.heads)

    def mix(self, scores: Tensor, value: Tensor) -> Tensor:
        """(B, heads, N, M) and (B, heads, M, d) to (B, N, C)."""
        out: Tensor = self.proj(merge_heads(self.weigh(scores) @ value))
        return out

    def square(self, scores: Tensor) -> Tensor:
        """The map (B, heads, N, M) as one of M x M, for the loss."""
        return scores


class VanillaAttention(ScoredAttention):
    """Softmax attention over all tokens that gives its scores too; what is given is added to them.

    The arguments are those of :class:`ScoredAttention`.
    """

    def __init__(self, dim: int, heads: int, **options: Any) -> None:
        super().__init__(dim, heads, **options)
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, C) and perhaps (B, heads, N, N) to (B, N, C) and (B, heads, N, N)."""
        query, key, value = (self.split(part) for part in self.qkv(x).chunk(3, -1))
        scores = attention_scores(query, key, given)
        return self.mix(scores, value), scores


class TransformedAttention(ScoredAttention):
    """Less attention over all tokens: the value is its only projection besides the output's.

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        tokens: number of tokens N, class token included.
        bias: of the transforms.
        **options: those of :class:`ScoredAttention`.
    """

    less = True

    def __init__(
        self, dim: int, heads: int, tokens: int, *, bias: bool = False, **options: Any
    ) -> None:
        super().__init__(dim, heads, **options)
        self.transform = ScoreTransform(tokens, tokens, bias=bias)
        self.v = nn.Linear(dim, dim)

    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) and (B, heads, N, N) to the same."""
        scores: Tensor = self.transform(given)
        return self.mix(scores, self.split(self.v(x))), scores


def token_attention(
    config: LessConfig,
    layer: int,
    *,
    dim: int,
    heads: int,
    tokens: int,
    weigh: nn.Module | None = None,
) -> ScoredAttention:
    """The attention of one layer, counted from 1, over all tokens."""
    if config.less_from and layer >= config.less_from:
        return TransformedAttention(
            dim,
            heads,
            tokens,
            bias=config.less_bias,
            project=config.less_projection,
            weigh=weigh,
        )
    return VanillaAttention(dim, heads, weigh=weigh)


def check_mixer(
    mixer: str, options: Mapping[str, Any], own: str, *, less: bool, takes_options: bool = False
) -> None:
    """Raise OptionError for a mixer, or options of it, that a backbone cannot have.

    Args:
        mixer: the name that was asked for.
        options: the options that were given for it.
        own: the backbone's own mixer, the one whose scores can be handed on.
        less: whether scores are needed.
        takes_options: whether the own mixer has options when no scores are needed.
    """
    if less and mixer != own:
        raise OptionError("mixer", expected=f"{own}, whose scores are kept", got=mixer)
    if options and mixer == own and (less or not takes_options):
        raise OptionError("mixer_options", expected=f"nothing with {own} here", got=dict(options))


def check_starts(starts: Sequence[int], depths: Sequence[int], firsts: Sequence[int]) -> None:
    """Raise OptionError unless each start is 0 (never) or a layer that can have its scores given.

    Args:
        starts: per stage the first less-attention layer, counted from 1.
        depths: per stage the number of layers.
        firsts: per stage the first layer that has a map before it.
    """
    pairs = list(zip(firsts, depths, strict=True))
    right = len(starts) == len(pairs) and all(
        start == 0 or first <= start <= depth
        for start, (first, depth) in zip(starts, pairs, strict=True)
    )
    if not right:
        ranges = ", ".join(
            f"{first} to {depth}" if first <= depth else "0" for first, depth in pairs
        )
        raise OptionError(
            "less_from",
            expected=f"0 (never) or the first less-attention layer of each stage: {ranges}",
            got=tuple(starts),
            hint="a less-attention layer needs the scores of a layer before it",
        )


class ScoredBlock(nn.Module):
    """x + attention(LN x), then x + MLP(LN x), handing the scores on.

    The attention is a :class:`ScoredAttention`, or any block (B, N, C) to (B, N, C) that has none.
    """

    def __init__(
        self, dim: int, attention: nn.Module, mlp: nn.Module, *, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = mlp

    @property
    def less(self) -> bool:
        """Whether the scores come from the layer before."""
        return isinstance(self.attn, ScoredAttention) and self.attn.less

    def attend(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The attention of the normalised tokens, and its scores if it has any."""
        if isinstance(self.attn, ScoredAttention):
            out: tuple[Tensor, Tensor] = self.attn(x, given)
            return out
        return self.attn(x), None

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) and perhaps a map to (B, N, C) and the block's own map."""
        mixed, scores = self.attend(self.norm1(x), given)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), scores


#: Less-attention layers with the maps that they computed.
Maps = list[tuple[ScoredAttention, Tensor]]


class ScoredBlocks(nn.Sequential):
    """The blocks of a stage: each less-attention layer has its scores from the block before."""

    def forward(
        self, x: Tensor, residual: Tensor | None = None, maps: Maps | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens to tokens and the last map.

        Args:
            x: (B, N, C).
            residual: a map for the first block, added to its scores or, if it is a less-attention
                layer, in place of them.
            maps: what the less-attention layers compute is added to this list.
        """
        scores: Tensor | None = None
        given = residual
        block: Any
        for block in self:
            x, scores = block(x, scores if block.less and scores is not None else given)
            given = None
            if maps is not None and block.less:
                maps.append((block.attn, scores))
        return x, scores


class LessModel(nn.Module, ABC):
    """A backbone that can have less-attention layers."""

    @abstractmethod
    def run(self, x: Tensor, maps: Maps | None) -> Any:
        """Images to the model's output; the less-attention layers' maps are added to ``maps``."""

    def forward(self, x: Tensor) -> Any:
        """Images (B, in_chans, H, W) to logits (B, num_classes), or to maps with ``features``.

        Raises:
            ShapeError: the image has not the size that the model was built for.
        """
        return self.run(x, None)

    def forward_with_loss(
        self, x: Tensor, *, loss_sign: str = "purpose", loss_map: str = "scores"
    ) -> tuple[Any, Tensor]:
        """The output, and what training adds to the cross-entropy (equation 10).

        That is the diagonality preserving loss of every less-attention layer, unweighted, mean over
        the batch. Neither sign bounds it from below on the scores.

        Args:
            x: images (B, in_chans, H, W).
            loss_sign: ``"purpose"`` or ``"printed"``; see :func:`diagonality_loss`.
            loss_map: ``"scores"`` before the softmax, as A stands in equation 5, or ``"weights"``
                after it, as in equation 1.

        Raises:
            OptionError: there is no such sign or map.
        """
        if loss_map not in LOSS_MAPS:
            raise OptionError("loss_map", expected=" or ".join(LOSS_MAPS), got=loss_map)
        maps: Maps = []
        out = self.run(x, maps)
        loss = x.new_zeros(())
        for attention, scores in maps:
            values = scores.softmax(-1) if loss_map == "weights" else scores
            loss = loss + diagonality_loss(attention.square(values), loss_sign)
        return out, loss
