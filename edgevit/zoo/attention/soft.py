"""SOFT, softmax-free attention with a Gaussian kernel (Lu et al. 2021), a competitor of SimA.

K is Q, both divided by d^(1/4). L landmarks come from a convolution over the map, one for all
heads; with g(a, b) = exp(-|a - b|² / 2) and L̃ = GELU(LayerNorm(conv(Q))),

    k₁ = g(Q, L̃)                        N x L
    k₂ = g(L̃, L̃)                        L x L
    out = k₁ k₂⁻¹ k₁ᵀ V + dwconv(V)      the convolution has one filter a head

The inverse is 20 Newton steps Z <- 2Z - Z P Z with P = k₂ + I/100, from Z = 1.8 P / r², r the
largest row sum of k₂ in the head. The squared distance is taken apart,
|a - b|² = |a|² + |b|² - 2 a·b.

``core`` is another, shorter thing, the form in which SimA's Table 3 times this attention: the
Gaussian kernel of all queries and keys and no inverse,

    "nn"    g(Q, K) V              tokens x tokens
    "dd"    V g(Qᵀ, Kᵀ)ᵀ           channels x channels

These two are not equal: the order chooses what is timed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.linear import check_order
from edgevit.zoo.attention.softmax import merge_heads, split_heads
from edgevit.zoo.registry import check_heads, register_block

__all__ = ["SoftAttention", "gaussian_kernel", "newton_inverse"]

#: Landmarks of the published models: 7 x 7 at 224 pixels, in every stage.
LANDMARKS = 49
RIDGE = 0.01


def gaussian_kernel(a: Tensor, b: Tensor) -> Tensor:
    """exp(-|aᵢ - bⱼ|² / 2) of (..., N, d) and (..., M, d): (..., N, M)."""
    half_a = a.square().sum(-1, keepdim=True) * 0.5
    half_b = b.square().sum(-1, keepdim=True) * 0.5
    return (a @ b.transpose(-2, -1) - half_a - half_b.transpose(-2, -1)).exp()


def newton_inverse(kernel: Tensor, ridge: Tensor, iterations: int) -> Tensor:
    """The inverse of (..., L, L) plus the (L, L) ridge, after so many Newton steps."""
    p = kernel + ridge
    largest = kernel.sum(-1, keepdim=True).amax(-2, keepdim=True)
    z = 1.8 * p / largest.square()
    for _ in range(iterations):
        z = 2 * z - z @ p @ z
    return z


def _default_ratio(grid: tuple[int, int]) -> int:
    """The common divisor of height and width that gives the number of landmarks nearest to 49."""
    divisor = math.gcd(*grid)
    tokens = grid[0] * grid[1]
    return min(
        (r for r in range(1, divisor + 1) if divisor % r == 0),
        key=lambda r: abs(tokens // r**2 - LANDMARKS),
    )


@register_block("soft", layout="tokens")
class SoftAttention(nn.Module):
    """SOFT, Gaussian-kernel attention through landmarks: (B, N, C) to (B, N, C).

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        tokens: height and width of the token map.
        prefix_tokens: tokens before the map's own; they have no landmarks, and pass the residual
            convolution by.
        ratio: kernel and stride of the landmark convolution, a divisor of height and width; without
            it the one whose number of landmarks is nearest to 49.
        kernel: size of the residual convolution on V, odd; 0 for none.
        iterations: Newton steps.
        order: of :meth:`core`, ``"nn"`` or ``"dd"``.

    Raises:
        ShapeError: the heads do not divide the width, or the ratio the map.
        OptionError: an option has a value that it cannot have.
    """

    ridge: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int],
        prefix_tokens: int = 0,
        ratio: int | None = None,
        kernel: int = 3,
        iterations: int = 20,
        order: str = "nn",
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        ratio = _default_ratio(tokens) if ratio is None else ratio
        _check_options(tokens, ratio, kernel, iterations)
        self.heads, self.grid, self.prefix_tokens = heads, tokens, prefix_tokens
        self.iterations, self.order = iterations, check_order(order, ("nn", "dd"))
        width = dim // heads
        self.query = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.landmarks = nn.Conv2d(width, width, ratio, ratio, bias=False)
        self.norm = nn.LayerNorm(width)
        self.residual = (
            nn.Conv2d(heads, heads, kernel, padding=kernel // 2, groups=heads, bias=False)
            if kernel
            else None
        )
        landmarks = (tokens[0] // ratio) * (tokens[1] // ratio)
        self.register_buffer("ridge", RIDGE * torch.eye(landmarks), persistent=False)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The timing form without landmarks and inverse; all shapes are (B, heads, N, d)."""
        if self.order == "nn":
            return gaussian_kernel(_scaled(query), _scaled(key)) @ value
        query, key = query.transpose(-2, -1), key.transpose(-2, -1)
        return value @ gaussian_kernel(_scaled(query), _scaled(key)).transpose(-2, -1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        q, v = self.query(x), self.value(x)
        query, value = _scaled(split_heads(q, self.heads)), split_heads(v, self.heads)
        landmarks = self._landmarks(q)
        to_landmarks = gaussian_kernel(query, landmarks)
        inverse = newton_inverse(gaussian_kernel(landmarks, landmarks), self.ridge, self.iterations)
        mixed = (to_landmarks @ inverse) @ (to_landmarks.transpose(-2, -1) @ value)
        merged = merge_heads(mixed)
        if self.residual is not None:
            merged = merged + self._convolve(v, self.residual)
        out: Tensor = self.proj(merged)
        return out

    def _landmarks(self, query: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, L, d): every head's map through the same convolution."""
        width = query.shape[-1] // self.heads
        # Heads go with the batch: they share the convolution.
        image = self._image(query).reshape(-1, width, *self.grid) * width**-0.25
        rows: Tensor = self.landmarks(image).flatten(2).transpose(1, 2)
        return F.gelu(self.norm(rows.reshape(-1, self.heads, rows.shape[1], width)))

    def _convolve(self, value: Tensor, filters: nn.Conv2d) -> Tensor:
        """(B, N, C) to (B, N, C): the heads' filters, each on all channels of its head."""
        dim = value.shape[-1]
        # One filter a channel makes it a plain depthwise convolution, which every runtime has.
        weight = filters.weight.expand(-1, dim // self.heads, -1, -1).flatten(0, 1).unsqueeze(1)
        padding = filters.kernel_size[0] // 2
        image = F.conv2d(self._image(value), weight, padding=padding, groups=dim)
        tokens = image.flatten(2).transpose(1, 2)
        if not self.prefix_tokens:
            return tokens
        return torch.cat([value[:, : self.prefix_tokens], tokens], 1)

    def _image(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, C, H, W), without the prefix tokens."""
        tokens = x[:, self.prefix_tokens :] if self.prefix_tokens else x
        return tokens.transpose(1, 2).reshape(-1, x.shape[2], *self.grid)


def _scaled(x: Tensor) -> Tensor:
    scale: float = x.shape[-1] ** -0.25
    return x * scale


def _check_options(tokens: tuple[int, int], ratio: int, kernel: int, iterations: int) -> None:
    if ratio < 1:
        raise OptionError("ratio", expected="a whole number of at least 1", got=ratio)
    if kernel < 0 or (kernel and kernel % 2 == 0):
        raise OptionError("kernel", expected="an odd number, or 0 for none", got=kernel)
    if iterations < 0:
        raise OptionError("iterations", expected="a whole number of at least 0", got=iterations)
    if tokens[0] % ratio or tokens[1] % ratio:
        raise ShapeError(
            f"a landmark ratio of {ratio} does not divide a map of {tokens[0]} x {tokens[1]}",
            hint="choose an image size whose token map is a multiple of the ratio",
        )
