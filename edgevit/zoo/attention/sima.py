"""SimA, simple softmax-free attention (Koohpayegani and Pirsiavash, section 2.2).

Per head, every channel of Q and K is divided by its l1 norm over the tokens; there is no softmax,
scale or temperature:

    Q̂ᶜ = Qᶜ / Σₙ |Qₙᶜ|        K̂ᶜ = Kᶜ / Σₙ |Kₙᶜ|
    out = Q̂ K̂ᵀ V              in either order

A class token is among the N tokens. The entries of Q̂ and K̂ are about 1/N, so the products of
``"nn"`` lie near the smallest normal fp16 number; ``"dd"`` is the safer order there.
"""

from __future__ import annotations

from torch import Tensor

from edgevit.zoo.attention.linear import OrderedAttention, product
from edgevit.zoo.registry import register_block

__all__ = ["SimAAttention", "l1_normalize", "sima"]


def l1_normalize(x: Tensor, floor: float = 1e-12) -> Tensor:
    """Every channel of (..., N, d) divided by its l1 norm over the N tokens, at least ``floor``."""
    return x / x.abs().sum(-2, keepdim=True).clamp(min=floor)


def sima(query: Tensor, key: Tensor, value: Tensor, order: str = "auto") -> Tensor:
    """SimA of (..., Nq, d), (..., Nk, d) and (..., Nk, d): to (..., Nq, d)."""
    return product(l1_normalize(query), l1_normalize(key), value, order)


@register_block("sima", layout="tokens", paper="sima")
class SimAAttention(OrderedAttention):
    """SimA, l1-normalised attention without softmax: (B, N, C) to (B, N, C)."""

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""
        return sima(query, key, value, self.order)
