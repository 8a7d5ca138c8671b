"""Token mixing of the MLP-Mixer (Tolstikhin et al. 2021): a perceptron along the tokens.

    out = W₂ gelu(W₁ X + b₁) + b₂        X of N x C; the same weights for every channel

The channel half of the Mixer is the backbone's own feed-forward part.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevit.errors import OptionError, ShapeError
from edgevit.zoo.attention.softmax import count_tokens, merge_heads, split_heads
from edgevit.zoo.registry import register_block

__all__ = ["MlpMixing"]


@register_block("mlp_mixer", layout="tokens", paper="vision-xformers")
class MlpMixing(nn.Module):
    """Perceptron along the tokens: (B, N, C) to (B, N, C), for one number of tokens.

    Args:
        dim: width C; no parameter depends on it.
        heads: accepted for the common signature; there are none.
        tokens: height and width of the token map.
        prefix_tokens: tokens before the map's own; mixed with them.
        expansion: hidden width as a multiple of N; 1 in Vision Xformers.

    Raises:
        ShapeError: an input has another number of tokens.
        OptionError: the expansion leaves no hidden unit.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        tokens: tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        expansion: float = 1,
    ) -> None:
        super().__init__()
        self.tokens = count_tokens(tokens, prefix_tokens)
        hidden = int(self.tokens * expansion)
        if hidden < 1:
            raise OptionError("expansion", expected="a positive number", got=expansion)
        # Tokens are the convolution's channels, so neither product needs a transpose.
        self.expand = nn.Conv1d(self.tokens, hidden, 1)
        self.activation = nn.GELU()
        self.reduce = nn.Conv1d(hidden, self.tokens, 1)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The value mixed along its tokens; query and key play no part. Shapes (B, heads, N, d)."""
        return split_heads(self(merge_heads(value)), value.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        if x.shape[-2] != self.tokens:
            raise ShapeError(
                f"this Mixer mixes {self.tokens} tokens, got {x.shape[-2]}",
                hint="its perceptron is sized when it is made: give `tokens`",
            )
        out: Tensor = self.reduce(self.activation(self.expand(x)))
        return out
