"""The same models with their attention written as it usually is, for what others' files cost.

The zoo's own modules avoid five-dimensional permutations, so the naive export of them is already a
good one. Most published code is not written like that. Here query, key and value come of one
reshape and one permutation:

    q, k, v = qkv(x).reshape(B, N, 3, heads, d).permute(2, 0, 3, 1, 4)

attention is ``scaled_dot_product_attention``, norms are taken with ``normalize``, windows are cut
and joined by six-dimensional permutations and shifted by ``roll``. Weights are the model's own, and
so are the results.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.source import Source
from edgevit.zoo.attention.sima import SimAAttention
from edgevit.zoo.attention.softmax import SoftmaxAttention
from edgevit.zoo.attention.xca import CrossCovarianceAttention
from edgevit.zoo.models.pvt import SpatialReductionAttention
from edgevit.zoo.models.swin import WindowAttention

__all__ = ["textbook"]


def textbook(source: Source) -> Source | None:
    """The source with a model written the usual way; None if nothing in it is written otherwise."""
    module, count = copy.deepcopy(source.module), 0
    for part in module.modules():
        forward = FORWARDS.get(type(part))
        if forward is None or getattr(part, "rope", None) is not None:
            continue
        part.forward = forward.__get__(part)
        count += 1
    return dataclasses.replace(source, module=module) if count else None


def parts(x: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, count * heads * d) to ``count`` tensors (B, heads, N, d)."""
    batch, tokens, width = x.shape
    laid_out = x.reshape(batch, tokens, count, heads, width // (count * heads))
    return laid_out.permute(2, 0, 3, 1, 4).unbind(0)


def joined(x: Tensor) -> Tensor:
    """(B, heads, N, d) to (B, N, heads * d)."""
    batch, heads, tokens, width = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * width)


def softmax_attention(self: SoftmaxAttention, x: Tensor) -> Tensor:
    query, key, value = parts(self.qkv(x), 3, self.heads)
    out: Tensor = self.proj(joined(F.scaled_dot_product_attention(query, key, value)))
    return out


def cross_covariance(self: CrossCovarianceAttention, x: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    query, key, value = (p.transpose(-2, -1) for p in parts(self.qkv(x), 3, self.heads))
    scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
    mixed = (scores * self.temperature).softmax(-1) @ value
    out: Tensor = self.proj(mixed.permute(0, 3, 1, 2).reshape(batch, tokens, width))
    return out


def l1_attention(self: SimAAttention, x: Tensor) -> Tensor:
    query, key, value = parts(self.qkv(x), 3, self.heads)
    query, key = (F.normalize(part, p=1.0, dim=-2) for part in (query, key))
    if query.shape[-2] > query.shape[-1]:
        mixed = query @ (key.transpose(-2, -1) @ value)
    else:
        mixed = (query @ key.transpose(-2, -1)) @ value
    out: Tensor = self.proj(joined(mixed))
    return out


def spatial_reduction(
    self: SpatialReductionAttention, x: Tensor, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    batch, tokens, width = x.shape
    query = self.q(x).reshape(batch, tokens, self.heads, width // self.heads).permute(0, 2, 1, 3)
    key, value = parts(self.kv(self.reduce(x)), 2, self.heads)
    scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    if given is not None:
        scores = scores + given
    return self.proj(joined(scores.softmax(-1) @ value)), scores


def window_attention(
    self: WindowAttention, x: Tensor, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    windows = self.windows
    (height, width), (down, across) = windows.window, windows.counts
    batch, channels = x.shape[0], x.shape[3]
    below, right = (p - g for p, g in zip(windows.padded, windows.grid, strict=True))
    x = F.pad(x, (0, 0, 0, right, 0, below))
    if any(windows.shift):
        x = torch.roll(x, (-windows.shift[0], -windows.shift[1]), (1, 2))
    cut = x.reshape(batch, down, height, across, width, channels).permute(0, 1, 3, 2, 4, 5)
    query, key, value = parts(self.qkv(cut.reshape(-1, height * width, channels)), 3, self.heads)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1) + self.bias()
    apart = windows.keep_apart(scores)
    out = self.proj(joined(apart.softmax(-1) @ value))
    whole = out.reshape(batch, down, across, height, width, channels).permute(0, 1, 3, 2, 4, 5)
    whole = whole.reshape(batch, *windows.padded, channels)
    if any(windows.shift):
        whole = torch.roll(whole, windows.shift, (1, 2))
    return whole[:, : windows.grid[0], : windows.grid[1]], scores


FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    SoftmaxAttention: softmax_attention,
    CrossCovarianceAttention: cross_covariance,
    SimAAttention: l1_attention,
    SpatialReductionAttention: spatial_reduction,
    WindowAttention: window_attention,
}
