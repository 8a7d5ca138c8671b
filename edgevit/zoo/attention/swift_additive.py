"""Efficient additive attention (SwiftFormer, Shaker et al. 2023).

One query for the whole image, found by a learned weighting of the tokens, meets every key:

    q̂ = q / |q|,  k̂ = k / |k|                      per token
    a  = q̂ w / sqrt(d),  â = a / |a|               w learned (d x 1); the norm is over the tokens
    g  = Σ_n â_n q̂_n                               one global query
    out_n = g ⊙ k̂_n

There is no product of tokens with tokens and no value: the projection behind takes its place, and
the block adds the queries to it, y = Linear(Linear(out) + q̂).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.errors import ShapeError
from edgevit.zoo.attention.softmax import merge_heads, split_heads
from edgevit.zoo.registry import check_heads, register_block

__all__ = ["SwiftAdditiveAttention"]


@register_block("swift_additive", layout="tokens", paper="swiftformer")
class SwiftAdditiveAttention(nn.Module):
    """Efficient additive attention: (B, N, C) to (B, N, C).

    Args:
        dim: width C.
        heads: number of heads, each with norms and a global query of its own; SwiftFormer has one.
        tokens: accepted for the common signature.
        prefix_tokens: likewise.

    Raises:
        ShapeError: the heads do not divide the width.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.weight = nn.Parameter(torch.randn(heads, dim // heads, 1))
        self.proj = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d).

        The value is not used: this attention has none.

        Raises:
            ShapeError: the value has not the key's shape.
        """
        if value.shape != key.shape:
            raise ShapeError(f"value {tuple(value.shape)} and key {tuple(key.shape)} differ")
        return self.mix(F.normalize(query, dim=-1), F.normalize(key, dim=-1))

    def mix(self, query: Tensor, key: Tensor) -> Tensor:
        """The global query times every key; both have unit norm, (B, heads, N, d)."""
        weights = F.normalize(query @ self.weight * self.scale, dim=-2)
        return (weights * query).sum(-2, keepdim=True) * key

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        query, key = (
            F.normalize(split_heads(project(x), self.heads), dim=-1)
            for project in (self.query, self.key)
        )
        mixed = self.proj(merge_heads(self.mix(query, key))) + merge_heads(query)
        out: Tensor = self.out(mixed)
        return out
