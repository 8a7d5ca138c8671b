"""A per-channel ``scale * x + shift`` carried over the operators round it.

Let s and t be constant along all axes but the channels'. An operator f commutes with the affine map
when there are s' and t' such that

    f(s ⊙ x + t) = s' ⊙ f(x) + t'

    f only moves elements         s' = f(s), t' = f(t)     reshape, transpose, split, slice, ...
    f averages along some axes    s' = s, t' = t           if s and t are constant along those axes
    f takes the maximum           the same                 if also s ≥ 0
    f pads with zeros             the same                 if also t = 0
    f joins tensors               s' = join(s, 1), t' = join(t, 0)

:func:`forward` goes from left to right (s, t to s', t'), :func:`backward` from right to left. What
moves elements is not told by rules about axes: the operator itself is run on s and t, or on the
numbers of the elements, so whatever a reshape does to the channels is what is computed.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgevit.passes.graph import (
    arguments,
    as_int,
    constant,
    describe,
    is_identity,
    operation,
    shape,
)

__all__ = ["Affine", "CannotFoldError", "backward", "data_source", "forward", "join", "part"]

aten = torch.ops.aten

MOVES = {
    aten._unsafe_view,
    aten.channel_shuffle,
    aten.expand,
    aten.expand_as,
    aten.flatten,
    aten.flip,
    aten.mT,
    aten.movedim,
    aten.narrow,
    aten.numpy_T,
    aten.permute,
    aten.pixel_shuffle,
    aten.pixel_unshuffle,
    aten.repeat,
    aten.reshape,
    aten.reshape_as,
    aten.roll,
    aten.select,
    aten.slice,
    aten.squeeze,
    aten.swapaxes,
    aten.t,
    aten.transpose,
    aten.unflatten,
    aten.unsqueeze,
    aten.upsample_nearest1d,
    aten.upsample_nearest2d,
    aten.view,
    aten.view_as,
}
#: Give several tensors; a ``getitem`` takes each.
SPLITS = {aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split, aten.unbind}
#: Averages, with weights that sum to one, over as many trailing axes.
AVERAGES = {
    aten.adaptive_avg_pool1d: 1,
    aten.adaptive_avg_pool2d: 2,
    aten.adaptive_avg_pool3d: 3,
    aten.avg_pool1d: 1,
    aten.avg_pool2d: 2,
    aten.avg_pool3d: 3,
    aten.upsample_bicubic2d: 2,
    aten.upsample_bilinear2d: 2,
    aten.upsample_linear1d: 1,
}
MAXIMA = {aten.max_pool1d: 1, aten.max_pool2d: 2, aten.max_pool3d: 3}


class CannotFoldError(Exception):
    """An affine map cannot be carried over, or absorbed by, a node; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Affine:
    """scale * x + shift; both broadcast against x (same rank) and are float64."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def per_channel(cls, scale: Tensor, shift: Tensor, rank: int) -> Affine:
        """From two vectors (C,) along axis 1 of a tensor of that rank."""
        ones = [1] * (rank - 2)
        return cls(scale.double().view(1, -1, *ones), shift.double().view(1, -1, *ones))

    def vectors(self, axis: int, size: int, where: str) -> tuple[Tensor, Tensor]:
        """Scale and shift (size,) along one axis.

        Raises:
            CannotFoldError: they also vary along another axis; ``where`` says at which layer.
        """
        for tensor in (self.scale, self.shift):
            if tensor.numel() != tensor.shape[axis]:
                raise CannotFoldError(f"the channels of {where} do not each have one scale")
        return self.scale.flatten().expand(size), self.shift.flatten().expand(size)

    def is_scaling(self) -> bool:
        """Whether the shift is exactly zero."""
        return not bool(self.shift.any())

    def constant_along(self, axes: tuple[int, ...]) -> bool:
        """Whether neither varies along those axes."""
        return all(t.shape[axis] == 1 for t in (self.scale, self.shift) for axis in axes)


def data_source(node: fx.Node) -> fx.Node | None:
    """The node whose values a mover gives back: its first argument, or that of its split."""
    source = node.args[0] if node.args else None
    if operation(node) is operator.getitem and isinstance(source, fx.Node):
        source = source.args[0] if operation(source) in SPLITS else None
    return source if isinstance(source, fx.Node) else None


def forward(module: fx.GraphModule, node: fx.Node, affine: Affine) -> Affine:
    """The map behind ``node`` that equals ``affine`` before it.

    Raises:
        CannotFoldError: the operator does not commute with it.
    """
    if _keeps(node, affine):
        return affine
    if operation(node) is aten.mean:
        axes, keepdim = _mean_axes(node, affine)
        return affine if keepdim else Affine(affine.scale.amax(axes), affine.shift.amax(axes))
    source = _mover_source(node)
    full = (t.expand(shape(source)).contiguous() for t in (affine.scale, affine.shift))
    return Affine(*(_compress(_move(module, node, t)) for t in full))


def backward(module: fx.GraphModule, node: fx.Node, affine: Affine) -> Affine:
    """The map before ``node`` that equals ``affine`` behind it.

    Raises:
        CannotFoldError: the operator does not commute with it.
    """
    if _keeps(node, affine):
        return affine
    if operation(node) is aten.mean:
        return _before_mean(node, affine)
    source = _mover_source(node)
    size = shape(source)
    # Which element of the source each element of the result is; not every mover takes integers.
    numbers = torch.arange(math.prod(size), dtype=torch.float64).view(size)
    index = _move(module, node, numbers).round().long()
    return Affine(_scatter(affine.scale, index, node, 1), _scatter(affine.shift, index, node, 0))


def join(node: fx.Node, operand: fx.Node, affine: Affine) -> Affine:
    """The map behind a ``cat`` that equals ``affine`` on one operand and changes no other."""
    tensors, axis = _cat(node)
    parts = [
        (affine.scale.expand(shape(t)), affine.shift.expand(shape(t)))
        if t is operand
        else (torch.ones(shape(t)).double(), torch.zeros(shape(t)).double())
        for t in tensors
    ]
    return Affine(*(_compress(torch.cat(side, axis)) for side in zip(*parts, strict=True)))


def part(node: fx.Node, position: int, affine: Affine) -> Affine:
    """The map before a ``cat``, on its operand at ``position``, of one behind it."""
    tensors, axis = _cat(node)
    sizes = [shape(t)[axis] for t in tensors]
    start = sum(sizes[:position])

    def cut(tensor: Tensor) -> Tensor:
        one = tensor.shape[axis] == 1
        return tensor if one else _compress(tensor.narrow(axis, start, sizes[position]))

    return Affine(cut(affine.scale), cut(affine.shift))


def _cat(node: fx.Node) -> tuple[list[fx.Node], int]:
    values = arguments(node)
    return list(values["tensors"]), values["dim"] % len(shape(node))


# -- operators that leave the map as it is --------------------------------------------------------


def _keeps(node: fx.Node, affine: Affine) -> bool:
    """Whether the map is the same on both sides; raises where the operator forbids it."""
    op = operation(node)
    if is_identity(node):
        return True
    if op in AVERAGES or op in MAXIMA:
        _check_pool(node, affine)
        return True
    return op in {aten.pad, aten.constant_pad_nd} and _pads_zeros(node, affine)


def _check_pool(node: fx.Node, affine: Affine) -> None:
    op, values = operation(node), arguments(node)
    axes = tuple(range(-(AVERAGES.get(op) or MAXIMA[op]), 0))
    if not affine.constant_along(axes):
        raise CannotFoldError(f"{describe(node)} pools over axes along which the scale varies")
    if op in MAXIMA and bool((affine.scale < 0).any()):
        raise CannotFoldError(f"{describe(node)} takes a maximum, and a scale is negative")
    counts_zeros = values.get("count_include_pad") and any(_as_list(values["padding"]))
    if counts_zeros or values.get("divisor_override") is not None:
        raise CannotFoldError(f"{describe(node)} averages zeros of its padding too")


def _pads_zeros(node: fx.Node, affine: Affine) -> bool:
    """False for padding with the tensor's own values, which only moves elements."""
    values = arguments(node)
    if values.get("mode", "constant") != "constant":
        return False
    padded = tuple(-1 - i // 2 for i, width in enumerate(values["pad"]) if width)
    if values.get("value") or not affine.is_scaling():
        raise CannotFoldError(f"{describe(node)} pads with a constant that the shift would change")
    if not affine.constant_along(padded):
        raise CannotFoldError(f"{describe(node)} pads an axis along which the scale varies")
    return True


def _mean_axes(node: fx.Node, affine: Affine) -> tuple[tuple[int, ...], bool]:
    values = arguments(node)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank = len(shape(source))
    axes = tuple(axis % rank for axis in values.get("dim") or range(rank))
    if affine.scale.dim() == rank and not affine.constant_along(axes):
        raise CannotFoldError(f"{describe(node)} is over the channels")
    return axes, bool(values.get("keepdim"))


def _before_mean(node: fx.Node, affine: Affine) -> Affine:
    axes, keepdim = _mean_axes(node, affine)
    scale, shift = affine.scale, affine.shift
    for axis in () if keepdim else sorted(axes):
        scale, shift = scale.unsqueeze(axis), shift.unsqueeze(axis)
    return Affine(scale, shift)


# -- operators that move elements -----------------------------------------------------------------


def _mover_source(node: fx.Node) -> fx.Node:
    op, source = operation(node), data_source(node)
    # A pad with constants has been dealt with; what is left copies the border.
    if source is None or op not in {*MOVES, aten.pad, operator.getitem}:
        raise CannotFoldError(f"{describe(node)} does not commute with a scale and a shift")
    return source


def _move(module: fx.GraphModule, node: fx.Node, tensor: Tensor) -> Tensor:
    """Run a mover on another tensor of the shape of its source."""
    if operation(node) is operator.getitem:
        split, position = node.args
        assert isinstance(split, fx.Node)
        pieces: Any = _call(module, split, tensor)
        moved: Tensor = pieces[position]
    else:
        moved = _call(module, node, tensor)
    return moved


def _call(module: fx.GraphModule, node: fx.Node, tensor: Tensor) -> Any:
    def concrete(argument: fx.Node) -> Any:
        value = argument.meta["val"]
        if isinstance(value, torch.Tensor):
            known = constant(module, argument)
            return torch.empty(shape(argument)) if known is None else known
        return as_int(value)

    rest, kwargs = fx.map_arg((node.args[1:], node.kwargs), concrete)
    target: Any = node.target
    return target(tensor, *rest, **kwargs)


def _scatter(values: Tensor, index: Tensor, node: fx.Node, neutral: float) -> Tensor:
    """The values behind a mover brought to where its elements come from."""
    source = _mover_source(node)
    wanted = values.expand(index.shape).flatten()
    # What a split leaves to others keeps its value; what a slice cuts off is read by nobody.
    unread = neutral if operation(node) is operator.getitem else torch.nan
    flat = torch.full((math.prod(shape(source)),), unread, dtype=torch.float64)
    flat[index.flatten()] = wanted
    if not torch.equal(flat[index.flatten()], wanted):
        raise CannotFoldError(f"{describe(node)} uses one channel for several with another scale")
    return _compress(flat.view(shape(source))).nan_to_num(neutral)


def _compress(tensor: Tensor) -> Tensor:
    """Size 1 along every axis on which nothing varies; NaN stands for any value."""
    unknown = tensor.isnan()
    for axis in range(tensor.dim()):
        low = tensor.masked_fill(unknown, torch.inf).amin(axis, keepdim=True)
        high = tensor.masked_fill(unknown, -torch.inf).amax(axis, keepdim=True)
        if bool((low >= high).all()):
            unknown = unknown.all(axis, keepdim=True)
            tensor = low.masked_fill(unknown, torch.nan)
    return tensor


def _as_list(value: int | list[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)
