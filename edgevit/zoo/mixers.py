"""Putting any attention block into any backbone: ``backbone+block``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgevit.errors import ShapeError
from edgevit.zoo.registry import block_info, build_block

__all__ = ["make_mixer"]


class MapMixerOnTokens(nn.Module):
    """A block for maps (B, C, H, W) in a backbone of tokens (B, H*W, C)."""

    def __init__(self, block: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.block, self.grid = block, grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, H*W, C) to (B, H*W, C)."""
        height, width = self.grid
        out: Tensor = self.block(x.transpose(1, 2).reshape(-1, x.shape[2], height, width))
        return out.flatten(2).transpose(1, 2)


class TokenMixerOnMap(nn.Module):
    """A block for tokens (B, H*W, C) in a backbone of maps (B, C, H, W)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        out: Tensor = self.block(x.flatten(2).transpose(1, 2))
        return out.transpose(1, 2).reshape(-1, *x.shape[1:])


def make_mixer(
    name: str,
    *,
    dim: int,
    heads: int,
    tokens: tuple[int, int],
    prefix_tokens: int = 0,
    layout: str = "tokens",
    **options: Any,
) -> nn.Module:
    """An attention block that takes and gives the backbone's layout.

    Args:
        name: the block's registered name.
        dim: total width C.
        heads: number of heads; must divide ``dim``.
        tokens: height and width of the token map.
        prefix_tokens: tokens (class token) before the map's own.
        layout: the backbone's: ``"tokens"`` (B, N, C) or ``"map"`` (B, C, H, W).
        **options: the block's own options.

    Raises:
        UnknownNameError: no block has that name.
        ShapeError: the block does not fit this backbone; the message says why.
    """
    info = block_info(name)
    if info.layout == "map" and layout == "tokens" and prefix_tokens:
        raise ShapeError(
            f"block {info.name} works on maps and this backbone has a class token among its tokens",
            hint="choose a backbone without class token, or a block on tokens",
        )
    block = build_block(
        name, dim=dim, heads=heads, tokens=tokens, prefix_tokens=prefix_tokens, **options
    )
    if info.layout == layout:
        return block
    return MapMixerOnTokens(block, tokens) if layout == "tokens" else TokenMixerOnMap(block)
