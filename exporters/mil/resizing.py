"""MIL ops that resize the last two axes; each says where in the input its output points lie."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from exporters.base import CannotVerifyError
from exporters.mil.registry import implements

__all__: list[str] = []

Sampling = Literal[
    "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"
]


@implements("upsample_nearest_neighbor")
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0
) -> Tensor:
    """Larger by factors, each point taking the value of the one it lies on."""
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        size, wanted = x.shape[axis], _scaled(x.shape[axis], factor)
        x = x.index_select(axis, torch.arange(wanted) * size // wanted)
    return x


@implements("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Larger by factors; the spacing follows from the two sizes, not from the factor."""
    if half_pixel_centers is not None and half_pixel_centers == align_corners:
        raise CannotVerifyError(
            f"op upsample_bilinear with align_corners and half_pixel_centers both {align_corners}"
        )
    sampling: Sampling = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS"
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        x = _linear(x, axis, _scaled(x.shape[axis], factor), sampling)
    return x


@implements("resize_bilinear")
def resize_bilinear(
    x: Tensor,
    target_size_height: int = 1,
    target_size_width: int = 1,
    sampling_mode: Sampling = "DEFAULT",
) -> Tensor:
    """To given sizes, interpolating linearly."""
    x = _linear(x, -2, target_size_height, sampling_mode)
    return _linear(x, -1, target_size_width, sampling_mode)


@implements("resize")
def resize(
    x: Tensor,
    shape: list[int],
    resized_dims: int,
    interpolation_mode: Literal["LINEAR"] = "LINEAR",
    sampling_mode: Sampling = "DEFAULT",
) -> Tensor:
    """The last axes to given sizes, where 0 keeps a size.

    How the nearest point is chosen in each sampling mode is not documented.
    """
    for axis in range(-resized_dims, 0):
        x = _linear(x, axis, shape[axis] or x.shape[axis], sampling_mode)
    return x


def _scaled(size: int, factor: float) -> int:
    """size * factor rounded down, in fp32, in which the file states the factor."""
    return int(torch.floor(torch.tensor(factor) * size))


def _linear(x: Tensor, axis: int, size: int, sampling: Sampling) -> Tensor:
    points = _points(x.shape[axis], size, sampling).clamp(0, x.shape[axis] - 1)
    below = points.floor().long()
    above = (below + 1).clamp(max=x.shape[axis] - 1)
    share = (points - below).float().reshape([-1] + [1] * (-1 - axis))
    low, high = x.index_select(axis, below), x.index_select(axis, above)
    return low * (1 - share) + high * share


def _points(size: int, wanted: int, sampling: Sampling) -> Tensor:
    """Where the output's points lie on the input's axis, before they are held inside it."""
    index = torch.arange(wanted, dtype=torch.float64)
    gaps = max(wanted - 1, 1)
    if sampling == "UNALIGN_CORNERS":
        return (index + 0.5) * size / wanted - 0.5
    if sampling == "OFFSET_CORNERS":
        return (index + 0.5) * max(1, size - 1) / wanted
    if sampling == "DEFAULT":
        return index * (size - size / wanted) / gaps
    if sampling == "ALIGN_CORNERS" and wanted == 1:
        return torch.full((1,), (size - 1) / 2, dtype=torch.float64)
    return index * (size - 1) / gaps
