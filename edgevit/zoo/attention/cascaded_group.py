"""Cascaded group attention (EfficientViT, section 3.1, equations 2 and 3).

The channels are split among the heads, and each head also gets what the head before it found:

    X'_1 = X_1,   X'_j = X_j + out_{j-1}                       X_j the j-th chunk of the channels
    Q_j, K_j, V_j = BN(PW(X'_j)),   Q_j <- BN(DW(Q_j))         widths 16, 16, C / heads
    out_j = V_j · softmax(Q_jᵀ K_j / sqrt(16) + bias_j)ᵀ
    X     = BN(PW(ReLU(concat_j out_j)))

bias_j is looked up by the distance of two cells in a learned table. The kernel of the depthwise
convolution differs from head to head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.relative_bias import RelativeBias
from edgevit.zoo.layers import ConvNorm
from edgevit.zoo.registry import check_heads, register_block

__all__ = ["CascadedGroupAttention", "check_kernels", "zero_scale"]


@register_block("cascaded_group", layout="map", paper="efficientvit")
class CascadedGroupAttention(nn.Module):
    """Cascaded group attention on a map, all cells with all: (B, C, H, W) to (B, C, H, W).

    The map is one window; EfficientViT cuts larger maps into windows before it comes here.

    Args:
        dim: channels C.
        heads: number of heads; must divide ``dim``.
        tokens: height and width of the map; the bias tables have one entry per cell.
        prefix_tokens: must be 0: a class token has no place on a map.
        key_dim: width of query and key in one head.
        kernels: depthwise kernel on the query, head by head; the last one serves further heads.

    Raises:
        ShapeError: the heads do not divide the width, or there is a class token.
        OptionError: ``key_dim`` or a kernel is not possible.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int],
        prefix_tokens: int = 0,
        key_dim: int = 16,
        kernels: Sequence[int] = (7, 5, 3, 3),
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        check_kernels(kernels)
        if not isinstance(key_dim, int) or key_dim < 1:
            raise OptionError("key_dim", expected="a whole number of at least 1", got=key_dim)
        if prefix_tokens:
            raise ShapeError("cascaded group attention works on a map, which has no class token")
        self.heads, self.tokens = heads, tokens
        self.scale = key_dim**-0.5
        value_dim = dim // heads
        self.widths = [key_dim, key_dim, value_dim]
        sizes = [kernels[min(head, len(kernels) - 1)] for head in range(heads)]
        self.qkv = nn.ModuleList(ConvNorm(value_dim, sum(self.widths)) for _ in sizes)
        self.local = nn.ModuleList(ConvNorm(key_dim, key_dim, k, groups=key_dim) for k in sizes)
        self.relative_bias = RelativeBias(heads, tokens)
        self.relu = nn.ReLU()
        self.proj = zero_scale(ConvNorm(dim, dim))

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Refused: each head projects the output of the head before it, so there is no core.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            "projections",
            expected="True for cascaded_group, where a head projects the output of the one before",
            got=False,
            hint="measure the whole block, with projections",
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W).

        Raises:
            ShapeError: the map is not of the size that the bias tables are for.
        """
        if tuple(x.shape[-2:]) != self.tokens:
            raise ShapeError(
                f"this attention was built for maps of {self.tokens[0]} x {self.tokens[1]}, "
                f"got {x.shape[-2]} x {x.shape[-1]}"
            )
        chunks = x.chunk(self.heads, 1)
        biases = self.relative_bias()
        outputs = [self.attend(0, chunks[0], biases[0])]
        for head in range(1, self.heads):
            outputs.append(self.attend(head, chunks[head] + outputs[-1], biases[head]))
        out: Tensor = self.proj(self.relu(torch.cat(outputs, 1)))
        return out

    def attend(self, head: int, x: Tensor, bias: Tensor) -> Tensor:
        """One head: (B, C / heads, H, W) to the same, with its bias (N, N)."""
        query, key, value = torch.split(self.qkv[head](x), self.widths, 1)
        query = self.local[head](query).flatten(2).transpose(-2, -1)
        scores = (query * self.scale) @ key.flatten(2) + bias
        out: Tensor = value.flatten(2) @ scores.softmax(-1).transpose(-2, -1)
        return out.reshape(-1, self.widths[2], *self.tokens)


def zero_scale(conv: ConvNorm) -> ConvNorm:
    """The same layer with its BatchNorm's scale at zero: at first its branch adds nothing."""
    norm = conv[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    return conv


def check_kernels(kernels: Sequence[int]) -> None:
    """Raise OptionError unless there are kernel sizes and all are odd and positive."""
    if not kernels or not all(isinstance(k, int) and k > 0 and k % 2 for k in kernels):
        raise OptionError("kernels", expected="odd, positive kernel sizes", got=kernels)
