"""Linformer (Wang et al. 2020): keys and values projected along the sequence to a fixed length.

    out = softmax(Q (Eᵀ K)ᵀ / sqrt(d)) (Eᵀ V)       E of N x r, learned, one for K and V

Vision Xformers use one head of width d as both K and V for all query heads (their counts say so;
the text says "the same projection for keys and values"); ``kv_heads`` and ``share_kv`` give the
other readings. With one key head the queries of all heads are rows of one matrix, and no transpose
is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.rope import RotaryEmbedding
from edgevit.zoo.attention.softmax import count_tokens, inner_width, merge_heads, split_heads
from edgevit.zoo.registry import register_block

__all__ = ["LinformerAttention"]


@register_block("linformer", layout="tokens", paper="vision-xformers")
class LinformerAttention(nn.Module):
    """Linformer attention: (B, N, C) to (B, N, C), for one number of tokens.

    Args:
        dim: width C.
        heads: number of query heads.
        tokens: height and width of the token map.
        prefix_tokens: tokens before the map's own.
        rank: length r that the sequence is projected to.
        kv_heads: heads of key and value: 1 (all queries share it) or ``heads``; 1 by default, and
            ``heads`` with ``rope``, which rotates per head.
        share_kv: the key's projection serves as the value too.
        qkv_bias: whether the projections to query, key and value have a bias.
        head_dim: width d of one head; C / heads by default.
        rope: rotate query and key by their position; the value is not rotated.

    Raises:
        ShapeError: the heads do not divide the width, or an input has another number of tokens.
        OptionError: the rank is below 1, or ``kv_heads`` is neither 1 nor ``heads``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        rank: int = 64,
        kv_heads: int | None = None,
        share_kv: bool = True,
        qkv_bias: bool = False,
        head_dim: int | None = None,
        rope: bool = False,
    ) -> None:
        super().__init__()
        inner = inner_width(dim, heads, head_dim)
        width = inner // heads
        if kv_heads is None:
            kv_heads = heads if rope else 1
        if kv_heads not in (1, heads):
            raise OptionError("kv_heads", expected=f"1 or {heads}", got=kv_heads)
        if rank < 1:
            raise OptionError("rank", expected="a whole number of at least 1", got=rank)
        self.heads, self.kv_heads = heads, kv_heads
        self.tokens = count_tokens(tokens, prefix_tokens)
        self.query = nn.Linear(dim, inner, bias=qkv_bias)
        self.key = nn.Linear(dim, kv_heads * width, bias=qkv_bias)
        self.value = None if share_kv else nn.Linear(dim, kv_heads * width, bias=qkv_bias)
        self.sequence = nn.Parameter(torch.empty(self.tokens, rank).uniform_(-1, 1) * rank**-0.5)
        self.proj = nn.Linear(inner, dim)
        self.rope = RotaryEmbedding(self.tokens, width) if rope else None

    def project(self, x: Tensor) -> Tensor:
        """Eᵀ x: keys or values (..., N, d) to (..., r, d)."""
        self._check_tokens(x)
        return self.sequence.transpose(0, 1) @ x

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; (B, heads, N, d), key and value heads may be 1."""
        projected_key = self.project(key)
        projected_value = projected_key if value is key else self.project(value)
        scores = (query * query.shape[-1] ** -0.5) @ projected_key.transpose(-2, -1)
        out: Tensor = scores.softmax(-1) @ projected_value
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        self._check_tokens(x)
        query, key = self.query(x), self.key(x)
        value = key if self.value is None else self.value(x)
        if self.kv_heads == 1 and self.rope is None:
            mixed = self._one_key_head(query, key, value)
        else:
            mixed = self._key_heads(query, key, value)
        out: Tensor = self.proj(mixed)
        return out

    def _check_tokens(self, x: Tensor) -> None:
        if x.shape[-2] != self.tokens:
            raise ShapeError(
                f"this Linformer projects {self.tokens} tokens, got {x.shape[-2]}",
                hint="its sequence projection is sized when it is made: give `tokens`",
            )

    def _one_key_head(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = query.reshape(-1, self.tokens * self.heads, key.shape[2])
        return self.core(rows, key, value).reshape(-1, self.tokens, query.shape[2])

    def _key_heads(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shared = value is key
        query, key = split_heads(query, self.heads), split_heads(key, self.kv_heads)
        value = key if shared else split_heads(value, self.kv_heads)
        if self.rope is not None:
            query, key = self.rope(query), self.rope(key)
        return merge_heads(self.core(query, key, value))
