"""FNet's mixing (Lee-Thorp et al. 2021): a Fourier transform over channels and tokens, real part.

Unnormalised, without parameters. With the matrices of the transforms over N tokens and C channels
written as F = cos - i sin,

    Re(Fₙ X F_c) = cosₙ X cos_c - sinₙ X sin_c

which is how it runs here: a product with [cos_c | sin_c] and two with cosₙ and sinₙ, because no
exporter takes complex numbers. Per layer that is 2 N C (N + C) MACs, where counters take a fast
transform for nothing. The angles 2π jk / N are reduced modulo N before the cosine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgevit.errors import ShapeError
from edgevit.zoo.attention.softmax import count_tokens, merge_heads, split_heads
from edgevit.zoo.registry import register_block

__all__ = ["FourierMixing", "dft_matrices"]


@register_block("fourier", layout="tokens", paper="vision-xformers")
class FourierMixing(nn.Module):
    """Real part of the Fourier transform: (B, N, C) to (B, N, C), for one number of tokens.

    Args:
        dim: width C.
        heads: accepted for the common signature; there are none.
        tokens: height and width of the token map; transformed as one raster sequence.
        prefix_tokens: tokens before the map's own; transformed with them.

    Raises:
        ShapeError: an input has another number of tokens.
    """

    channels: Tensor
    token_cos: Tensor
    token_sin: Tensor

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.tokens = count_tokens(tokens, prefix_tokens)
        token_cos, token_sin = dft_matrices(self.tokens)
        self.register_buffer("channels", torch.cat(dft_matrices(dim), 1), persistent=False)
        self.register_buffer("token_cos", token_cos, persistent=False)
        self.register_buffer("token_sin", token_sin, persistent=False)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The value transformed over tokens and all channels; query and key play no part.

        All shapes are (B, heads, N, d); the heads' channels are taken as one row of C.
        """
        return split_heads(self(merge_heads(value)), value.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        if x.shape[-2] != self.tokens:
            raise ShapeError(
                f"this Fourier mixing transforms {self.tokens} tokens, got {x.shape[-2]}",
                hint="its matrices are sized when it is made: give `tokens`",
            )
        cosine, sine = (x @ self.channels).chunk(2, -1)
        return self.token_cos @ cosine - self.token_sin @ sine


def dft_matrices(size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2π jk / size, each (size, size); computed in float64."""
    index = torch.arange(size)
    angles = (index.outer(index) % size).double() * (2 * math.pi / size)
    return angles.cos().float(), angles.sin().float()
