"""Vanilla softmax attention (Vaswani et al. 2017), what the others are compared with.

    out = softmax(Q Kᵀ / sqrt(d)) V        per head of width d
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevit.zoo.registry import check_heads, register_block

__all__ = ["SoftmaxAttention", "merge_heads", "split_heads"]


@register_block("softmax", layout="tokens")
class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention: (B, N, C) to (B, N, C).

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
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return scores.softmax(-1) @ value

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        out: Tensor = self.proj(merge_heads(self.core(query, key, value)))
        return out


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) to (B, heads, N, d)."""
    batch, tokens, dim = x.shape
    return x.reshape(batch, tokens, heads, dim // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) to (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)
