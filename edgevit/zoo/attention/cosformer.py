"""CosFormer without its cosine re-weighting (Qin et al. 2022), as SimA's Table 2 compares it.

out = relu(Q) relu(K)ᵀ V / (relu(Q) Σₙ relu(Kₙ))        the denominator at least 1e-6
"""

from __future__ import annotations

from torch import Tensor

from edgevit.zoo.attention.linear import OrderedAttention, normalized_product
from edgevit.zoo.registry import register_block

__all__ = ["CosformerAttention", "cosformer_attention"]


def cosformer_attention(query: Tensor, key: Tensor, value: Tensor, order: str = "auto") -> Tensor:
    """Of (..., Nq, d), (..., Nk, d) and (..., Nk, d): to (..., Nq, d)."""
    return normalized_product(query.relu(), key.relu(), value, order)


@register_block("cosformer", layout="tokens")
class CosformerAttention(OrderedAttention):
    """CosFormer without re-weighting, ReLU as feature map: (B, N, C) to (B, N, C)."""

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""
        return cosformer_attention(query, key, value, self.order)
