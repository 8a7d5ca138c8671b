"""Cross-covariance attention of XCiT (El-Nouby et al. 2021), the baseline of SimA's XCiT rows.

Channels attend to channels: per head, with Q and K divided by their l2 norms over the tokens and
one learned temperature τ,

    out = V softmax(τ Q̂ᵀ K̂)ᵀ        the softmax runs over the channels that are mixed

The map is d x d, so there is one order of the products only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevit.zoo.attention.linear import ProjectedAttention
from edgevit.zoo.registry import register_block

__all__ = ["CrossCovarianceAttention", "l2_normalize"]


def l2_normalize(x: Tensor, floor: float = 1e-12) -> Tensor:
    """Every channel of (..., N, d) divided by its l2 norm over the N tokens, at least ``floor``."""
    # The floor stands under the root, whose slope at zero is infinite.
    return x / x.square().sum(-2, keepdim=True).clamp(min=floor**2).sqrt()


@register_block("xca", layout="tokens")
class CrossCovarianceAttention(ProjectedAttention):
    """Cross-covariance attention of XCiT, channels to channels: (B, N, C) to (B, N, C).

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        tokens: accepted for the common signature.
        prefix_tokens: likewise.
        qkv_bias: whether the projection to query, key and value has a bias.

    Raises:
        ShapeError: the heads do not divide the width.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, heads, tokens=tokens, prefix_tokens=prefix_tokens, qkv_bias=qkv_bias)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""
        scores = l2_normalize(query).transpose(-2, -1) @ l2_normalize(key)
        weights = (scores * self.temperature).softmax(-1)
        return value @ weights.transpose(-2, -1)
