"""Class attention (CaiT, XCiT): the class token alone attends to all tokens.

    "softmax"    out = softmax(q Kᵀ / sqrt(d)) V      q the class token's query
    "sima"       out = q̂ K̂ᵀ V                         Q and K divided by their l1 norms over all
                                                      N + 1 tokens, at least 1e-6

SimA needs the query of every token for that norm; with a softmax only the class token's is
computed, which leaves the result as it is and saves N C² multiply-accumulates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.sima import l1_normalize
from edgevit.zoo.attention.softmax import merge_heads, split_heads
from edgevit.zoo.registry import check_heads

__all__ = ["ClassAttention"]

MIXERS = ("softmax", "sima")


class ClassAttention(nn.Module):
    """Attention of one class token: (B, 1, C) and (B, N, C) to (B, 1, C).

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        mixer: ``"softmax"`` or ``"sima"``.

    Raises:
        ShapeError: the heads do not divide the width.
        OptionError: there is no such mixer.
    """

    def __init__(self, dim: int, heads: int, *, mixer: str = "softmax") -> None:
        super().__init__()
        check_heads(dim, heads)
        if mixer not in MIXERS:
            raise OptionError("class_attention", expected=" or ".join(MIXERS), got=mixer)
        self.heads, self.mixer = heads, mixer
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        """(B, 1, C) and (B, N, C) to (B, 1, C)."""
        x = torch.cat([token, patches], 1)
        query = split_heads(self.q(x if self.mixer == "sima" else token), self.heads)
        key, value = split_heads(self.k(x), self.heads), split_heads(self.v(x), self.heads)
        out: Tensor = self.proj(merge_heads(self._weights(query, key) @ value))
        return out

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        if self.mixer == "sima":
            query, key = l1_normalize(query, 1e-6)[:, :, :1], l1_normalize(key, 1e-6)
            return query @ key.transpose(-2, -1)
        scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return scores.softmax(-1)
