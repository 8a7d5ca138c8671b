"""Learned attention biases by the distance of two cells of a map (LeViT, EfficientViT and others).

    bias[h, i, j] = table[h, |y_i - y_j| * width + |x_i - x_j|]

The table has one entry per distance that can occur, so it belongs to one map size. A table learned
at another size is resized as an image: bicubic, head by head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevit.errors import WeightsError

__all__ = ["RelativeBias", "fit_tables", "resize_table"]


class RelativeBias(nn.Module):
    """Biases of shape (heads, queries, keys), from a table that starts at zero.

    Args:
        heads: number of heads; each has a table of its own.
        grid: height and width of the map that the keys lie on.
        stride: the queries are every ``stride``-th cell of that map, from the first on.
    """

    index: Tensor

    def __init__(self, heads: int, grid: tuple[int, int], *, stride: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        rows, columns = (_distances(side, stride) for side in grid)
        index = rows[:, None, :, None] * grid[1] + columns[None, :, None, :]
        self.queries = index.shape[0] * index.shape[1]
        self.register_buffer("index", index.flatten(), persistent=False)

    def forward(self) -> Tensor:
        """The biases, (heads, queries, keys)."""
        return self.table.index_select(1, self.index).reshape(len(self.table), self.queries, -1)


def _distances(side: int, stride: int) -> Tensor:
    """Along one side, the distance of every query from every key: (queries, keys)."""
    keys = torch.arange(side)
    return (keys[::stride, None] - keys[None, :]).abs()


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table (heads, old height * width) as one of (heads, new height * width), bicubic."""
    image = table.float().reshape(1, -1, *old)
    resized = F.interpolate(image, new, mode="bicubic", align_corners=False)
    return resized[0].flatten(1).to(table.dtype)


def fit_tables(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with every bias table resized to the map that the model has there.

    A table of another length is taken to come from a square map.

    Args:
        model: the model that the state is for.
        state: tensors by the model's own names.

    Raises:
        WeightsError: a table that must be resized has no square number of entries.
    """
    fitted = dict(state)
    for name, module in model.named_modules():
        key = f"{name}.table"
        if isinstance(module, RelativeBias) and key in fitted:
            fitted[key] = _fit(fitted[key], module.grid, key)
    return fitted


def _fit(table: Tensor, grid: tuple[int, int], key: str) -> Tensor:
    entries = table.shape[-1]
    if table.dim() != 2 or entries == grid[0] * grid[1]:
        return table
    side = math.isqrt(entries)
    if side * side != entries:
        raise WeightsError(
            f"{key}: {entries} biases per head come from no square map and cannot be resized to "
            f"{grid[0]} x {grid[1]}",
            hint="load the weights at the image size that they were trained at",
        )
    return resize_table(table, (side, side), grid)
