"""Vanilla softmax attention (Vaswani et al. 2017), what the others are compared with.

    out = softmax(Q Kᵀ / sqrt(d)) V

per head of width d, the softmax over the keys.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.rope import RotaryEmbedding
from edgevit.zoo.registry import check_heads, register_block

__all__ = ["SoftmaxAttention", "count_tokens", "inner_width", "merge_heads", "split_heads"]


@register_block("softmax", layout="tokens")
class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention: (B, N, C) to (B, N, C).

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        tokens: height and width of the token map; needed for ``rope`` only.
        prefix_tokens: tokens before the map's own; likewise.
        qkv_bias: whether the projection to query, key and value has a bias.
        head_dim: width d of one head; C / heads by default.
        rope: rotate query and key by their position (Su et al. 2021).

    Raises:
        ShapeError: the heads do not divide the width.
        OptionError: ``rope`` without ``tokens``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        qkv_bias: bool = True,
        head_dim: int | None = None,
        rope: bool = False,
    ) -> None:
        super().__init__()
        inner = inner_width(dim, heads, head_dim)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.proj = nn.Linear(inner, dim)
        self.rope = None
        if rope:
            self.rope = RotaryEmbedding(count_tokens(tokens, prefix_tokens), inner // heads)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        out: Tensor = scores.softmax(-1) @ value
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        if self.rope is not None:
            query, key = self.rope(query), self.rope(key)
        out: Tensor = self.proj(merge_heads(self.core(query, key, value)))
        return out


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) to (B, heads, N, d)."""
    return x.reshape(-1, x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) to (B, N, heads * d)."""
    return x.transpose(1, 2).reshape(-1, x.shape[2], x.shape[1] * x.shape[3])


def inner_width(dim: int, heads: int, head_dim: int | None) -> int:
    """Width of all heads together: ``dim`` unless ``head_dim`` says otherwise.

    Raises:
        ShapeError: the heads do not divide the width, or there is no head or no width.
    """
    if head_dim is None:
        check_heads(dim, heads)
        return dim
    if heads < 1 or head_dim < 1:
        raise ShapeError(f"a block needs at least one head and channel, got {heads} x {head_dim}")
    return heads * head_dim


def count_tokens(tokens: tuple[int, int] | None, prefix_tokens: int) -> int:
    """Number of tokens N, those before the map's own included.

    Raises:
        OptionError: the token map is not known, and the block's tables are sized by it.
    """
    if tokens is None:
        raise OptionError("tokens", expected="height and width of the token map", got=tokens)
    return tokens[0] * tokens[1] + prefix_tokens
