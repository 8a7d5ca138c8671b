"""Element-wise attention (EleViT, section 3.1, equations 1 and 2).

On a map of C channels, each channel a head of its own:

    S = Q ⊙ Kᵀ / sqrt(C)        Kᵀ swaps height and width, so the map is square
    F = α · softmax(S)          α one learned scalar, the focusing factor
    X = F ⊙ V

The paper's ablation (Table 2) exchanges either product for the matrix product per channel and drops
α; all eight combinations have the same shapes. The axis of the softmax is not stated; the last one
(width) is the default, ``"space"`` (all positions) and ``"channel"`` are the other readings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.layers import ConvNorm
from edgevit.zoo.registry import register_block

__all__ = ["ElementwiseAttention"]

PRODUCTS = ("element", "dot")
SOFTMAX_AXES = ("width", "space", "channel")


@register_block("elementwise", layout="map", paper="elevit")
class ElementwiseAttention(nn.Module):
    """Element-wise attention on a square map: (B, C, H, H) to (B, C, H, H), without the residual.

    Args:
        dim: channels C; every channel is a head.
        heads: accepted for the common signature; channels act as heads here.
        tokens: height and width of the map, equal.
        prefix_tokens: must be 0: a class token has no place on a map.
        qk: product of query and key, ``"element"`` or ``"dot"``.
        fv: product of attention map and value, ``"element"`` or ``"dot"``.
        focus: whether there is a focusing factor α.
        softmax_axis: ``"width"``, ``"space"`` or ``"channel"``.

    Raises:
        ShapeError: the map is not square, or there is a class token.
        OptionError: an option has a value that it does not know.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        qk: str = "element",
        fv: str = "element",
        focus: bool = True,
        softmax_axis: str = "width",
    ) -> None:
        super().__init__()
        check_options(qk=qk, fv=fv, softmax_axis=softmax_axis)
        if prefix_tokens:
            raise ShapeError("element-wise attention works on a map, which has no class token")
        if tokens is not None and tokens[0] != tokens[1]:
            raise ShapeError(
                f"element-wise attention transposes the map, so it must be square; got "
                f"{tokens[0]} x {tokens[1]}"
            )
        self.qk, self.fv, self.softmax_axis = qk, fv, softmax_axis
        self.scale = dim**-0.5
        self.query = ConvNorm(dim, dim, 3, groups=dim, bias=True)
        self.key = ConvNorm(dim, dim, 3, groups=dim, bias=True)
        self.value = ConvNorm(dim, dim, 3, groups=dim, bias=True)
        self.alpha = nn.Parameter(torch.ones(())) if focus else None

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, C, H, H)."""
        weights = self.attention_map(query, key)
        return weights * value if self.fv == "element" else weights @ value

    def attention_map(self, query: Tensor, key: Tensor) -> Tensor:
        """F of equation 1, (B, C, H, H)."""
        transposed = key.transpose(-2, -1)
        scores = query * transposed if self.qk == "element" else query @ transposed
        weights = self._softmax(scores * self.scale)
        return weights if self.alpha is None else self.alpha * weights

    def _softmax(self, scores: Tensor) -> Tensor:
        if self.softmax_axis == "width":
            return scores.softmax(-1)
        if self.softmax_axis == "channel":
            return scores.softmax(1)
        return scores.flatten(2).softmax(-1).view_as(scores)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) to (B, C, H, H)."""
        return self.core(self.query(x), self.key(x), self.value(x))


def check_options(*, qk: str, fv: str, softmax_axis: str) -> None:
    """Raise OptionError for a product or an axis that does not exist."""
    for option, value, known in (
        ("qk", qk, PRODUCTS),
        ("fv", fv, PRODUCTS),
        ("softmax_axis", softmax_axis, SOFTMAX_AXES),
    ):
        if value not in known:
            raise OptionError(option, expected=" or ".join(known), got=value)
