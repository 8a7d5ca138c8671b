"""Tensors of a checkpoint made to fit: cut, joined, and position tables for another token map."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.errors import WeightsError
from edgevit.zoo.checkpoints import Rule

__all__ = ["WRAPPED", "join_rows", "resize_positions", "split_rows", "with_positions"]

#: What training scripts put before the names of a model that they wrap.
WRAPPED: Rule = (r"^(?:_orig_mod|module|backbone)\.", "")


def split_rows(
    state: Mapping[str, Tensor], pattern: str, replacements: Sequence[str]
) -> dict[str, Tensor]:
    """Every tensor whose name matches, cut along its first axis into as many as there are names.

    Args:
        state: tensors by name.
        pattern: a regular expression for the names of the joint tensors.
        replacements: what the pattern becomes in the name of each part, in order of the rows.
    """
    joint = re.compile(pattern)
    parts: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not joint.search(key):
            parts[key] = tensor
            continue
        for replacement, part in zip(replacements, tensor.chunk(len(replacements)), strict=True):
            parts[joint.sub(replacement, key)] = part
    return parts


def join_rows(
    state: Mapping[str, Tensor], first: str, second: str, whole: str
) -> dict[str, Tensor]:
    """Every pair of tensors ``...first...`` and ``...second...`` as one, along the first axis.

    Args:
        state: tensors by name.
        first: part of a name, such as ``".q."``.
        second: what stands in its place in the other's name, such as ``".kv."``.
        whole: and in the joint one's.
    """
    joined = dict(state)
    for key in state:
        other = key.replace(first, second)
        if other != key and other in joined:
            joined[key.replace(first, whole)] = torch.cat([joined.pop(key), joined.pop(other)])
    return joined


def resize_positions(table: Tensor, grid: tuple[int, int], *, prefix_tokens: int = 0) -> Tensor:
    """A learned position table for another token map, by bicubic interpolation.

    Args:
        table: (1, prefix + h w, C), for a square map unless it has ``grid``'s number of tokens.
        grid: height and width of the wanted map.
        prefix_tokens: rows of the class token, which are kept.

    Returns:
        (1, prefix + grid height * grid width, C).

    Raises:
        WeightsError: the table's map is not square, so its height and width are not known.
    """
    prefix, rows = table[:, :prefix_tokens], table[:, prefix_tokens:]
    if rows.shape[1] == grid[0] * grid[1]:
        return table
    side = math.isqrt(rows.shape[1])
    if side * side != rows.shape[1]:
        raise WeightsError(
            f"a position table of {rows.shape[1]} tokens belongs to no square map and cannot be "
            f"resized to {grid[0]} x {grid[1]}",
            hint="build the model at the image size of the weights",
        )
    image = rows.transpose(1, 2).reshape(-1, rows.shape[2], side, side)
    resized = F.interpolate(image.float(), grid, mode="bicubic", align_corners=False)
    return torch.cat([prefix, resized.to(table.dtype).flatten(2).transpose(1, 2)], 1)


def with_positions(
    state: Mapping[str, Tensor],
    grid: tuple[int, int],
    *,
    prefix_tokens: int = 0,
    name: str = "pos_embed",
) -> dict[str, Tensor]:
    """A state whose position table, if it has one, is resized by :func:`resize_positions`."""
    adapted = dict(state)
    if name in adapted:
        adapted[name] = resize_positions(adapted[name], grid, prefix_tokens=prefix_tokens)
    return adapted
