"""Performer (Choromanski et al. 2021): the softmax kernel by positive random features, non-causal.

    φ(x) = exp(W x' - |x'|²/2 - s) + 1e-4       x' = x / d^¼, W of m x d, s a stabiliser
    out  = φ(Q) (φ(K)ᵀ V) / (φ(Q) · Σₙ φ(Kₙ))

A factor 1/sqrt(m) of φ cancels in the quotient and is left out. s is each query's own maximum of W
x'; for keys it is the maximum over the heads, tokens and features of one image. The published code
takes the keys' maximum over the whole batch, so an image's result there depends on its neighbours
(because of the 1e-4); for a batch of one both are the same.

``kernel="relu"`` is the other reading of Vision Xformers, whose text says ReLU while its code
leaves that switch off: φ(x) = relu(W x') + 1e-3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.rope import RotaryEmbedding
from edgevit.zoo.attention.softmax import count_tokens, inner_width, merge_heads, split_heads
from edgevit.zoo.registry import register_block

__all__ = ["PerformerAttention", "orthogonal_features"]

KERNELS = ("exp", "relu")


@register_block("performer", layout="tokens", paper="vision-xformers")
class PerformerAttention(nn.Module):
    """Performer attention: (B, N, C) to (B, N, C).

    The random matrix W is drawn once, from torch's generator, and is a buffer of the state dict:
    shared by the heads, never redrawn.

    Args:
        dim: width C.
        heads: number of heads.
        tokens: height and width of the token map; needed for ``rope`` only.
        prefix_tokens: tokens before the map's own; likewise.
        features: number m of random features; floor(d ln d) by default, 110 for d = 32.
        kernel: ``"exp"``, an estimate of the softmax kernel, or ``"relu"``.
        qkv_bias: whether the projections to query, key and value have a bias.
        head_dim: width d of one head; C / heads by default.
        rope: rotate query and key by their position.

    Raises:
        ShapeError: the heads do not divide the width.
        OptionError: the kernel is not known, or there are no features.
    """

    features: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        features: int | None = None,
        kernel: str = "exp",
        qkv_bias: bool = True,
        head_dim: int | None = None,
        rope: bool = False,
    ) -> None:
        super().__init__()
        inner = inner_width(dim, heads, head_dim)
        width = inner // heads
        count = max(1, int(width * math.log(width))) if features is None else features
        if kernel not in KERNELS:
            raise OptionError("kernel", expected=" or ".join(KERNELS), got=kernel)
        if count < 1:
            raise OptionError("features", expected="a whole number of at least 1", got=features)
        self.heads, self.kernel = heads, kernel
        self.query = nn.Linear(dim, inner, bias=qkv_bias)
        self.key = nn.Linear(dim, inner, bias=qkv_bias)
        self.value = nn.Linear(dim, inner, bias=qkv_bias)
        self.proj = nn.Linear(inner, dim)
        self.register_buffer("features", orthogonal_features(count, width))
        self.rope = None
        if rope:
            self.rope = RotaryEmbedding(count_tokens(tokens, prefix_tokens), width)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""
        query, key = self.feature_map(query, (-1,)), self.feature_map(key, (1, 2, 3))
        total = key.sum(-2).unsqueeze(-1)
        return query @ (key.transpose(-2, -1) @ value) / (query @ total)

    def feature_map(self, x: Tensor, stabilise: tuple[int, ...]) -> Tensor:
        """φ of queries or keys: (B, heads, N, d) to (B, heads, N, m).

        Args:
            x: queries or keys.
            stabilise: the axes over which the subtracted maximum is taken.
        """
        x = x * x.shape[-1] ** -0.25
        projected = x @ self.features.transpose(0, 1)
        if self.kernel == "relu":
            return projected.relu() + 1e-3
        half_square = (x * x).sum(-1, keepdim=True) * 0.5
        return (projected - half_square - projected.amax(stabilise, keepdim=True)).exp() + 1e-4

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        query, key = split_heads(self.query(x), self.heads), split_heads(self.key(x), self.heads)
        value = split_heads(self.value(x), self.heads)
        if self.rope is not None:
            query, key = self.rope(query), self.rope(key)
        out: Tensor = self.proj(merge_heads(self.core(query, key, value)))
        return out


def orthogonal_features(features: int, dim: int) -> Tensor:
    """Random rows (features, dim): orthonormal in blocks of ``dim``, as long as Gaussian rows."""
    blocks = [torch.linalg.qr(torch.randn(dim, dim))[0].T for _ in range(-(-features // dim))]
    lengths = torch.randn(features, dim).square().sum(1, keepdim=True).sqrt()
    return torch.cat(blocks)[:features] * lengths
