"""Nyströmformer (Xiong et al. 2021): softmax attention through m landmarks.

    Q̃, K̃  = means over N/m consecutive rows of Q, K          Q already divided by sqrt(d)
    out    = softmax(Q K̃ᵀ) · pinv(softmax(Q̃ K̃ᵀ)) · softmax(Q̃ Kᵀ) V + conv(V)

conv is depthwise along the sequence, one filter of 33 taps per head. pinv is six steps of

    Z ← Z (13 I - P (15 I - P (7 I - P))) / 4,     P = A Z,     Z₀ = Aᵀ / (max column sum of A)

(rows of A, a softmax, sum to one), multiplied out so that no identity matrix is needed. The maximum
is taken over the heads of one image; the published code takes it over the whole batch, so there an
image's result depends on its neighbours. For a batch of one both are the same.

If m does not divide N, zero rows are put before the block's input, as in the code of Vision
Xformers: without bias they become zero queries, keys and values, which take part in landmarks and
softmax (there is no mask), and their outputs are dropped.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.rope import RotaryEmbedding
from edgevit.zoo.attention.softmax import count_tokens, inner_width, merge_heads, split_heads
from edgevit.zoo.registry import register_block

__all__ = ["NystromAttention"]


@register_block("nystrom", layout="tokens", paper="vision-xformers")
class NystromAttention(nn.Module):
    """Nyström attention: (B, N, C) to (B, N, C).

    Args:
        dim: width C.
        heads: number of heads.
        tokens: height and width of the token map; needed for ``rope`` only.
        prefix_tokens: tokens before the map's own; likewise.
        landmarks: number m of landmarks.
        iterations: steps of the pseudo-inverse.
        taps: length of the residual convolution's filter, odd; 0 for none.
        qkv_bias: whether the projection to query, key and value has a bias.
        head_dim: width d of one head; C / heads by default.
        rope: rotate query and key by their position in the padded sequence.

    Raises:
        ShapeError: the heads do not divide the width.
        OptionError: landmarks or iterations below 1, or an even number of taps.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        landmarks: int = 64,
        iterations: int = 6,
        taps: int = 33,
        qkv_bias: bool = False,
        head_dim: int | None = None,
        rope: bool = False,
    ) -> None:
        super().__init__()
        inner = inner_width(dim, heads, head_dim)
        for option, number in (("landmarks", landmarks), ("iterations", iterations)):
            if number < 1:
                raise OptionError(option, expected="a whole number of at least 1", got=number)
        if taps < 0 or (taps and taps % 2 == 0):
            raise OptionError("taps", expected="an odd number, or 0 for no convolution", got=taps)
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.proj = nn.Linear(inner, dim)
        self.residual = None
        if taps:
            self.residual = nn.Conv2d(
                heads, heads, (taps, 1), padding=(taps // 2, 0), groups=heads, bias=False
            )
        self.rope = None
        if rope:
            count = count_tokens(tokens, prefix_tokens)
            self.rope = RotaryEmbedding(count + self.padding(count), inner // heads)

    def padding(self, tokens: int) -> int:
        """Zero rows that make the number of tokens a multiple of the landmarks."""
        return -tokens % self.landmarks

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""
        padding = self.padding(query.shape[-2])
        query, key, value = (pad_rows(x, padding) for x in (query, key, value))
        query = query * query.shape[-1] ** -0.5
        few_queries, few_keys = self.reduce(query), self.reduce(key).transpose(-2, -1)
        to_landmarks = (query @ few_keys).softmax(-1)
        between = (few_queries @ few_keys).softmax(-1)
        from_landmarks = (few_queries @ key.transpose(-2, -1)).softmax(-1)
        out = (to_landmarks @ self.invert(between)) @ (from_landmarks @ value)
        if self.residual is not None:
            out = out + self.residual(value)
        return out[..., padding:, :] if padding else out

    def reduce(self, x: Tensor) -> Tensor:
        """Means over consecutive tokens: (B, heads, N, d) to (B, heads, m, d)."""
        group = x.shape[2] // self.landmarks
        return x.reshape(-1, x.shape[1], self.landmarks, group, x.shape[3]).mean(3)

    def invert(self, matrix: Tensor) -> Tensor:
        """Iterative pseudo-inverse of maps (B, heads, m, m) whose rows sum to one."""
        inverse = matrix.transpose(-2, -1) / matrix.sum(-2, keepdim=True).amax((1, 3), keepdim=True)
        for _ in range(self.iterations):
            product = matrix @ inverse
            inner = 15 * product - product @ (7 * product - product @ product)
            inverse = 0.25 * (13 * inverse - inverse @ inner)
        return inverse

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        padding = self.padding(x.shape[-2])
        projected = self.qkv(pad_rows(x, padding))
        query, key, value = (split_heads(part, self.heads) for part in projected.chunk(3, -1))
        if self.rope is not None:
            query, key = self.rope(query), self.rope(key)
        out: Tensor = self.proj(merge_heads(self.core(query, key, value)))
        return out[:, padding:] if padding else out


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Zero rows before the tokens: (..., N, C) to (..., rows + N, C)."""
    return F.pad(x, (0, 0, rows, 0)) if rows else x
