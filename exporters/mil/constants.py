"""MIL ops that unpack compressed weights (``constexpr_*``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporters.base import CannotVerifyError
from exporters.mil.registry import implements

__all__: list[str] = []


@implements("constexpr_cast")
def constexpr_cast(source_val: Tensor, output_dtype: Literal["fp32"]) -> Tensor:
    """Half precision to single, which they are here anyway."""
    return source_val


@implements("constexpr_affine_dequantize")
def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int
) -> Tensor:
    """scale (data - zero point), either per tensor or along one axis."""
    along = [-1 if i == axis % quantized_data.dim() else 1 for i in range(quantized_data.dim())]
    zero_point, scale = (v.reshape(along if v.dim() else ()) for v in (zero_point, scale))
    return scale * (quantized_data - zero_point).float()


@implements("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(
    data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> Tensor:
    """scale (data - offset), with one scale and offset per block of the data."""
    shifted = data.float() if offset is None else data.float() - _spread(offset, data.shape)
    return _spread(scale, data.shape) * shifted


@implements("constexpr_lut_to_dense")
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: list[int] | None = None, vector_axis: int | None = None
) -> Tensor:
    """Weights as indices into a table.

    Up to iOS 17 the indices are packed, the lowest bits of a byte first, and a shape is given. From
    iOS 18 on they have the weight's shape, and there may be a table for each block of it.
    """
    if shape is not None:
        width = int(lut.numel()).bit_length() - 1
        places = _bits(indices)[: int(np.prod(shape)) * width].reshape(-1, width)
        return lut[torch.tensor(places @ (1 << np.arange(width)))].reshape(shape)
    if lut.shape[-1] != 1:
        raise CannotVerifyError("op constexpr_lut_to_dense with a table of vectors")
    tables = _spread(lut[..., 0], (*indices.shape, lut.shape[-2]))
    return torch.take_along_dim(tables, indices[..., None], -1)[..., 0]


@implements("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(
    nonzero_data: Tensor, mask: Tensor, shape: list[int] | None = None
) -> Tensor:
    """Weights that are not zero, and a bit for each place that says where they go.

    Up to iOS 17 the bits are packed and a shape is given; from iOS 18 on they have that shape.
    """
    where = mask.bool()
    if shape is not None:
        where = torch.tensor(_bits(mask)[: int(np.prod(shape))].astype(bool)).reshape(shape)
    return torch.zeros(where.shape).masked_scatter(where, nonzero_data)


def _bits(packed: Tensor) -> NDArray[np.uint8]:
    return np.unpackbits(packed.numpy().astype(np.uint8), bitorder="little")


def _spread(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Each value repeated for its block of a larger shape."""
    for axis, (few, many) in enumerate(zip(values.shape, shape, strict=True)):
        values = values.repeat_interleave(many // few, axis)
    return values
