"""Efficient attention (Shen et al. 2021), a competitor in SimA's Table 2.

out = softmax(Q over channels) softmax(K over tokens)ᵀ V        per head
"""

from __future__ import annotations

from torch import Tensor

from edgevit.zoo.attention.linear import OrderedAttention, product
from edgevit.zoo.registry import register_block

__all__ = ["EfficientAttention", "efficient_attention"]


def efficient_attention(query: Tensor, key: Tensor, value: Tensor, order: str = "auto") -> Tensor:
    """Of (..., Nq, d), (..., Nk, d) and (..., Nk, d): to (..., Nq, d)."""
    return product(query.softmax(-1), key.softmax(-2), value, order)


@register_block("efficient", layout="tokens")
class EfficientAttention(OrderedAttention):
    """Efficient attention, softmax of query and key apart: (B, N, C) to (B, N, C)."""

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""
        return efficient_attention(query, key, value, self.order)
