"""What the attention blocks whose products may change their order share: projections and order.

A product of three matrices may be taken in two orders; without a softmax between them the result
is the same up to rounding. Multiply-accumulates of one head:

    "nn"    (Q Kᵀ) V    through a map of tokens x tokens        2 Nq Nk d
    "dd"    Q (Kᵀ V)    through a map of channels x channels    (Nq + Nk) d²

``"auto"`` takes the cheaper one from the shapes, which are known when a graph is captured, so no
branch is left in an exported file. For Nq = Nk = N that is ``"nn"`` where N < d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from edgevit.errors import OptionError
from edgevit.zoo.attention.softmax import merge_heads, split_heads
from edgevit.zoo.registry import check_heads

__all__ = [
    "ORDERS",
    "OrderedAttention",
    "ProjectedAttention",
    "check_order",
    "normalized_product",
    "product",
]

ORDERS = ("auto", "nn", "dd")


def check_order(order: str, known: tuple[str, ...] = ORDERS) -> str:
    """The order itself.

    Raises:
        OptionError: it is none of ``known``.
    """
    if order not in known:
        raise OptionError("order", expected=" or ".join(known), got=order)
    return order


def product(query: Tensor, key: Tensor, value: Tensor, order: str = "auto") -> Tensor:
    """Q Kᵀ V in the given order: (..., Nq, d), (..., Nk, d) and (..., Nk, d) to (..., Nq, d)."""
    queries, keys, width = query.shape[-2], key.shape[-2], query.shape[-1]
    if order == "auto":
        order = "nn" if 2 * queries * keys < (queries + keys) * width else "dd"
    if order == "nn":
        return (query @ key.transpose(-2, -1)) @ value
    return query @ (key.transpose(-2, -1) @ value)


def normalized_product(
    query: Tensor, key: Tensor, value: Tensor, order: str = "auto", *, floor: float = 1e-6
) -> Tensor:
    """Q Kᵀ V with every row divided by Q Σ K, its sum of weights, which is at least ``floor``.

    Shapes as :func:`product`; query and key are not negative.
    """
    total = query @ key.sum(-2, keepdim=True).transpose(-2, -1)
    return product(query, key, value, order) / total.clamp(min=floor)


class ProjectedAttention(nn.Module, ABC):
    """Projections to query, key and value, the block's ``core``, heads merged, output projection.

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        tokens: accepted for the common signature.
        prefix_tokens: likewise; a class token is a token like any other.
        qkv_bias: whether the projection to query, key and value has a bias.

    Raises:
        ShapeError: the heads do not divide the width.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    @abstractmethod
    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention without its projections; all shapes are (B, heads, N, d)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        out: Tensor = self.proj(merge_heads(self.core(query, key, value)))
        return out


class OrderedAttention(ProjectedAttention, ABC):
    """A :class:`ProjectedAttention` whose product may be taken in either order.

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        tokens: accepted for the common signature.
        prefix_tokens: likewise.
        qkv_bias: whether the projection to query, key and value has a bias.
        order: ``"nn"``, ``"dd"``, or ``"auto"`` for the cheaper one at the shapes that come.

    Raises:
        ShapeError: the heads do not divide the width.
        OptionError: the order is none of these.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        qkv_bias: bool = True,
        order: str = "auto",
    ) -> None:
        super().__init__(dim, heads, tokens=tokens, prefix_tokens=prefix_tokens, qkv_bias=qkv_bias)
        self.order = check_order(order)
