"""Linear attention with φ(x) = elu(x) + 1 (Katharopoulos et al. 2020), a baseline of SimA.

out = φ(Q) φ(K)ᵀ V / (φ(Q) Σₙ φ(Kₙ))        the denominator at least 1e-6
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from edgevit.zoo.attention.linear import OrderedAttention, normalized_product
from edgevit.zoo.registry import register_block

__all__ = ["EluAttention", "elu_attention"]


def elu_attention(query: Tensor, key: Tensor, value: Tensor, order: str = "auto") -> Tensor:
    """Of (..., Nq, d), (..., Nk, d) and (..., Nk, d): to (..., Nq, d)."""
    return normalized_product(F.elu(query) + 1, F.elu(key) + 1, value, order)


@register_block("elu", layout="tokens")
class EluAttention(OrderedAttention):
    """Linear attention with elu(x) + 1 as feature map: (B, N, C) to (B, N, C)."""

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""
        return elu_attention(query, key, value, self.order)
