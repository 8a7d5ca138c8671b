"""MIL ops on whole tensors: shapes, joining, padding, new tensors."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.base import CannotVerifyError
from exporters.mil.registry import Tensors, implements

__all__: list[str] = []


@implements("reshape")
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """To another shape; 0 keeps the size that stands in its place, -1 takes what is left."""
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


@implements("reshape_like")
def reshape_like(
    x: Tensor,
    ref_tensors: Tensors,
    begins: list[int],
    ends: list[int],
    end_masks: list[bool],
) -> Tensor:
    """To the sizes that slices of other tensors' shapes give, one after the other."""
    shape: list[int] = []
    for reference, begin, end, open_ended in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += reference.shape[begin : None if open_ended else end]
    return x.reshape(shape)


@implements("flatten2d")
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """To two axes: those before the axis, and the rest."""
    return x.reshape(x.shape[:axis].numel(), -1)


@implements("transpose")
def transpose(x: Tensor, perm: list[int]) -> Tensor:
    """Axes in another order."""
    return x.permute(perm)


@implements("expand_dims")
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """New axes of size 1 where the result has them."""
    for axis in sorted(a % (x.dim() + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


@implements("squeeze")
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Without the named axes of size 1, or without all of them."""
    return x.squeeze() if axes is None else x.squeeze(axes)


@implements("identity")
def identity(x: Tensor) -> Tensor:
    """The same."""
    return x


@implements("shape")
def shape(x: Tensor) -> Tensor:
    """The sizes as a tensor."""
    return torch.tensor(x.shape)


@implements("concat")
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Joined along an axis, one after the other or element by element in turn."""
    if not interleave:
        return torch.cat([v.reshape(1) if v.dim() == 0 else v for v in values], axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@implements("stack")
def stack(values: Tensors, axis: int) -> Tensor:
    """Joined along a new axis."""
    return torch.stack(values, axis)


@implements("split")
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> Tensors:
    """Parts of given sizes, or so many equal parts."""
    if split_sizes is None:
        if num_splits is None:
            raise CannotVerifyError("op split has neither sizes nor a number of parts")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return torch.split(x, split_sizes, axis)


@implements("pad")
def pad(
    x: Tensor,
    pad: list[int],
    mode: Literal["constant", "reflect", "replicate"] = "constant",
    constant_val: float = 0.0,
) -> Tensor:
    """The last axes longer: (before, after) for each, in the order of the axes."""
    if mode == "constant":
        pairs = [pad[i : i + 2] for i in range(0, len(pad), 2)]
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=constant_val)
    first = x.dim() - len(pad) // 2
    for axis, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=first):
        last = x.shape[axis] - 1
        places = torch.arange(-before, last + 1 + after)
        if mode == "replicate":
            places = places.clamp(0, last)
        else:
            places = last - (last - places.abs()).abs()
        x = x.index_select(axis, places)
    return x


@implements("tile")
def tile(x: Tensor, reps: list[int]) -> Tensor:
    """Each axis repeated so many times."""
    return x.repeat(reps)


@implements("reverse")
def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Back to front along some axes, or all."""
    return x.flip(list(range(x.dim())) if axes is None else axes)


@implements("band_part")
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """The last two axes with zeros outside a band; a negative width keeps that whole side."""
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    kept = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        kept &= rows - columns <= lower
    if upper >= 0:
        kept &= columns - rows <= upper
    return torch.where(kept, x, torch.zeros_like(x))


@implements("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along an axis, with or without the element itself, from either end."""
    ordered = x.flip(axis) if reverse else x
    total = ordered.cumsum(axis) - (ordered if exclusive else 0)
    return total.flip(axis) if reverse else total


@implements("fill")
def fill(shape: list[int], value: Tensor) -> Tensor:
    """A tensor of one value."""
    return value.reshape(()).expand(shape).clone()


@implements("fill_like")
def fill_like(ref_tensor: Tensor, value: Tensor) -> Tensor:
    """A tensor of one value, as large as another."""
    return value.reshape(()).expand(ref_tensor.shape).clone()


@implements("range_1d")
def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """start, start + step, ... below the end."""
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@implements("pixel_shuffle")
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Channels to a larger map, channel by channel."""
    return F.pixel_shuffle(x, upscale_factor)


@implements("pixel_unshuffle")
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """A map to more channels, the reverse of pixel_shuffle."""
    return F.pixel_unshuffle(x, downscale_factor)
