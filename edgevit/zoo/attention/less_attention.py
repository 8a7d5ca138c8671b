"""Less attention (LaViT; Zhang et al., "You only need less attention at each stage in vision
transformers").

A vanilla layer computes its scores, a less-attention layer has them from the layer before:

    vanilla    A_l = Q Kᵀ / sqrt(d)            equation 4
    less       A_l = Ψ(Θ(A_{l-1})ᵀ)ᵀ           equation 5
    both       out = softmax(A_l) V

A holds the scores before the softmax, a map of queries x keys per head. Θ is linear along the keys,
Ψ along the queries, so a less-attention layer belongs to one number of tokens; it has no query and
no key. The paper gives Θ and Ψ as N x N and no more: one pair serves all heads here, without bias,
and starts near the identity, because a random map would destroy the scores.

Applying them costs h N M (N + M) multiply-accumulates for N queries and M keys, against h N M d for
the product that they replace: a layer is cheaper by the query and key projections that it lacks,
and dearer by this where N + M is far above d.

The diagonality preserving loss (equation 9) of a map of N x N is

    Σ_ij |A_ij - A_ji|  +  Σ_i ((N - 1) A_ii - Σ_{j≠i} A_ij)

As printed, minimising its second half pushes the diagonal down, while the text wants it up
(equation 8, A_ii > A_ij). ``"printed"`` is the formula, ``"purpose"`` has a minus before that half.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.softmax import count_tokens, merge_heads, split_heads
from edgevit.zoo.registry import check_heads, register_block

__all__ = ["LessAttention", "ScoreTransform", "attention_scores", "diagonality_loss"]

LOSS_SIGNS = ("printed", "purpose")
#: Deviation of what is added to the identity, for one row of length 1.
NOISE = 0.02


def attention_scores(query: Tensor, key: Tensor, given: Tensor | None = None) -> Tensor:
    """Q Kᵀ / sqrt(d) (equation 4), plus what is given: (B, heads, N, d) to (B, heads, N, M)."""
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return scores if given is None else scores + given


class ScoreTransform(nn.Module):
    """Ψ(Θ(A)ᵀ)ᵀ: scores (B, heads, N, M) to scores (B, heads, N, M) (equation 5)."""

    def __init__(self, queries: int, keys: int, *, bias: bool = False) -> None:
        super().__init__()
        self.theta = nn.Parameter(_near_identity(keys))
        self.psi = nn.Parameter(_near_identity(queries))
        self.theta_bias = nn.Parameter(torch.zeros(keys)) if bias else None
        self.psi_bias = nn.Parameter(torch.zeros(queries)) if bias else None

    def forward(self, scores: Tensor) -> Tensor:
        """(B, heads, N, M) to (B, heads, N, M).

        Raises:
            ShapeError: the map is of another size than the layer was built for.
        """
        queries, keys = len(self.psi), len(self.theta)
        if tuple(scores.shape[-2:]) != (queries, keys):
            raise ShapeError(
                f"this less-attention layer transforms maps of {queries} x {keys}, "
                f"got {scores.shape[-2]} x {scores.shape[-1]}",
                hint="its transforms are sized when it is made: build it for this image size",
            )
        by_key = F.linear(scores, self.theta, self.theta_bias).transpose(-2, -1)
        return F.linear(by_key, self.psi, self.psi_bias).transpose(-2, -1)


def _near_identity(size: int) -> Tensor:
    noise = nn.init.trunc_normal_(torch.empty(size, size), std=NOISE * size**-0.5)
    return torch.eye(size) + noise


@register_block("less_attention", layout="tokens", paper="lavit")
class LessAttention(nn.Module):
    """Vanilla scores and one transform of them, as a block of its own: (B, N, C) to (B, N, C).

    In LaViT a less-attention layer has its scores from the layer before. A block that stands alone
    has no layer before it, so this one computes a vanilla map of its own input and transforms that:
    a vanilla layer's scores and a less-attention layer's output, and the cost of both.

    Args:
        dim: width C.
        heads: number of heads; must divide ``dim``.
        tokens: height and width of the token map.
        prefix_tokens: tokens before the map's own.
        transform_bias: whether Θ and Ψ have a bias.

    Raises:
        ShapeError: the heads do not divide the width, or an input has another number of tokens.
        OptionError: the token map is not given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        transform_bias: bool = False,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        count = count_tokens(tokens, prefix_tokens)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.transform = ScoreTransform(count, count, bias=transform_bias)
        self.proj = nn.Linear(dim, dim)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(Ψ(Θ(Q Kᵀ / sqrt(d))ᵀ)ᵀ) V; all shapes are (B, heads, N, d)."""
        scores: Tensor = self.transform(attention_scores(query, key))
        return scores.softmax(-1) @ value

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        out: Tensor = self.proj(merge_heads(self.core(query, key, value)))
        return out


def diagonality_loss(scores: Tensor, sign: str = "purpose") -> Tensor:
    """Equation 9, summed over the heads, mean over the first axis.

    Args:
        scores: (B, heads, N, N).
        sign: ``"printed"``, or ``"purpose"``, which raises the diagonal instead of lowering it.

    Raises:
        OptionError: there is no such sign.
        ShapeError: the map is not square.
    """
    if sign not in LOSS_SIGNS:
        raise OptionError("loss_sign", expected=" or ".join(LOSS_SIGNS), got=sign)
    queries, keys = scores.shape[-2:]
    if queries != keys:
        raise ShapeError(f"the loss is one of square maps, got {queries} x {keys}")
    asymmetry = (scores - scores.transpose(-2, -1)).abs().sum((-2, -1))
    diagonal = scores.diagonal(dim1=-2, dim2=-1).sum(-1)
    # (N - 1) A_ii less the rest of the row is N A_ii less the whole row.
    dominance = keys * diagonal - scores.sum((-2, -1))
    loss: Tensor = asymmetry + (dominance if sign == "printed" else -dominance)
    return loss.sum(1).mean()
