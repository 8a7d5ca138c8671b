"""Rotary position embedding (Su et al., "RoFormer", 2021; Vision Xformers, Table 6), in real form.

Channels 2i and 2i + 1 of a head of width d are the plane i, rotated by an angle that grows with the
token's position p (raster order; a class token stands at 0):

    θ = p · base^(-2i/d)        x'₂ᵢ   = x₂ᵢ cos θ - x₂ᵢ₊₁ sin θ
                                x'₂ᵢ₊₁ = x₂ᵢ sin θ + x₂ᵢ₊₁ cos θ

The product of a rotated query and a rotated key depends on the difference of their positions alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevit.errors import ShapeError

__all__ = ["RotaryEmbedding"]


class RotaryEmbedding(nn.Module):
    """Rotate queries or keys by their position: (B, heads, N, d) to the same shape.

    Args:
        tokens: number of tokens N.
        head_dim: width d of one head, even.
        base: of the geometric row of frequencies.

    Raises:
        ShapeError: the width is odd, so its channels make no pairs.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, tokens: int, head_dim: int, *, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ShapeError(
                f"rotary embedding turns pairs of channels: a head's width is even, got {head_dim}"
            )
        frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.arange(tokens, dtype=torch.float64).outer(frequencies)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, heads, N, d) to (B, heads, N, d)."""
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = (even * self.cos - odd * self.sin, even * self.sin + odd * self.cos)
        return torch.stack(turned, -1).reshape(-1, *x.shape[1:])
