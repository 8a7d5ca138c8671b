"""MIL ops that pick elements by where they are: slices, gathers, scatters, sorting."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.mil.registry import Tensors, implements

__all__: list[str] = []


@implements("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """x[begin:end:stride] per axis; a mask opens a bound, the squeeze mask takes one index."""
    for axis in reversed(range(x.dim())):
        if squeeze_mask is not None and squeeze_mask[axis]:
            x = x.select(axis, begin[axis])
        else:
            x = x.index_select(axis, _indices(x, axis, begin, end, stride, begin_mask, end_mask))
    return x


@implements("slice_update")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """x with a slice, taken as slice_by_index does, replaced."""
    if squeeze_mask is not None:
        for axis in (i for i, squeezed in enumerate(squeeze_mask) if squeezed):
            begin, end = list(begin), list(end)
            begin[axis] %= x.shape[axis]
            end[axis] = begin[axis] + 1
            update = update.unsqueeze(axis)
    places = [
        _indices(x, axis, begin, end, stride, begin_mask, end_mask).reshape(
            [-1 if other == axis else 1 for other in range(x.dim())]
        )
        for axis in range(x.dim())
    ]
    return x.index_put(tuple(places), update)


def _indices(
    x: Tensor,
    axis: int,
    begin: list[int],
    end: list[int],
    stride: list[int] | None,
    begin_mask: list[bool] | None,
    end_mask: list[bool] | None,
) -> Tensor:
    bounds = slice(
        None if begin_mask is not None and begin_mask[axis] else begin[axis],
        None if end_mask is not None and end_mask[axis] else end[axis],
        1 if stride is None else stride[axis],
    )
    return torch.arange(x.shape[axis])[_forward(bounds, x.shape[axis])]


def _forward(bounds: slice, size: int) -> Tensor:
    # torch slices take no negative step.
    return torch.tensor(range(*bounds.indices(size)), dtype=torch.long)


@implements("slice_by_size")
def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    """So many elements of each axis from its begin; -1 takes the rest."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first %= max(x.shape[axis], 1)
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@implements("crop")
def crop(x: Tensor, crop_height: list[int], crop_width: list[int]) -> Tensor:
    """The last two axes without so many elements at either end."""
    for axis, (before, after) in ((-2, crop_height), (-1, crop_width)):
        x = x.narrow(axis, before, x.shape[axis] - before - after)
    return x


@implements("gather")
def gather(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """The slices of an axis that the indices name, after axes that both sides share."""
    axis %= x.dim()
    if batch_dims:
        parts = [
            gather(one, which, axis - 1, batch_dims - 1)
            for one, which in zip(x, indices, strict=True)
        ]
        return torch.stack(parts)
    chosen = x.index_select(axis, _counted_from_front(indices, x.shape[axis]).reshape(-1))
    return chosen.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@implements("gather_along_axis")
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """Along one axis the element that the index in the same place names."""
    return torch.take_along_dim(x, _counted_from_front(indices, x.shape[axis]), axis)


@implements("gather_nd")
def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """The slices that rows of indices name, one index for each of the first axes."""
    if batch_dims:
        parts = [gather_nd(a, b, batch_dims - 1) for a, b in zip(x, indices, strict=True)]
        return torch.stack(parts)
    return x[tuple(indices.unbind(-1))]


@implements("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: Literal["add", "update"] = "add",
    validate_indices: bool = False,
) -> Tensor:
    """data with the slices of an axis that the indices name replaced, or added to."""
    places = _counted_from_front(indices, data.shape[axis])
    if mode == "add":
        return data.index_add(axis, places, updates)
    return data.index_copy(axis, places, updates)


@implements("scatter_nd")
def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: Literal["add", "update"] = "add",
    validate_indices: bool = False,
) -> Tensor:
    """data with the slices that rows of indices name replaced, or added to."""
    places = tuple(indices.unbind(-1))
    return data.index_put(places, updates, accumulate=mode == "add")


def _counted_from_front(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


@implements("one_hot")
def one_hot(
    indices: Tensor, one_hot_vector_size: int, on_value: Tensor, off_value: Tensor, axis: int = -1
) -> Tensor:
    """A new axis with the on value at the index and the off value elsewhere."""
    hot = F.one_hot(indices, one_hot_vector_size).movedim(-1, axis)
    return torch.where(hot.bool(), on_value.reshape(()), off_value.reshape(()))


@implements("argsort")
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """The order of the elements along an axis."""
    return x.argsort(axis, descending=not ascending)


@implements("topk")
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensors:
    """The largest elements along an axis and where they are; the smallest if ascending."""
    values, places = x.topk(k, axis, largest=not ascending, sorted=True)
    return (values, places) if return_indices else (values,)


@implements("sliding_windows")
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """All windows along an axis; their elements are a new axis after it."""
    axis %= x.dim()
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)
