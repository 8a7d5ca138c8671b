"""MIL ops that reduce axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exporters.mil.registry import Rounding, implements

__all__: list[str] = []

#: A reduction over some axes, keeping them or not.
Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(function: Reduction) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        return function(x, list(range(x.dim())) if axes is None else axes, keep_dims)

    return run


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    # torch reduces one axis at a time; from the back, so that the others keep their places.
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Reduction] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_prod": _product,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
}

for _name, _function in REDUCTIONS.items():
    implements(_name)(_reduction(_function))


@implements("reduce_sum_square")
def reduce_sum_square(
    x: Tensor, rounded: Rounding, axes: list[int] | None = None, keep_dims: bool = False
) -> Tensor:
    """Sum of the squares."""
    return rounded(x * x).sum(axes, keepdim=keep_dims)


@implements("reduce_l2_norm")
def reduce_l2_norm(
    x: Tensor, rounded: Rounding, axes: list[int] | None = None, keep_dims: bool = False
) -> Tensor:
    """Square root of the sum of the squares."""
    return rounded(rounded(x * x).sum(axes, keepdim=keep_dims)).sqrt()


@implements("reduce_argmax")
def reduce_argmax(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Where the largest value is along one axis."""
    return torch.argmax(x, axis, keepdim=keep_dims)


@implements("reduce_argmin")
def reduce_argmin(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Where the smallest value is along one axis."""
    return torch.argmin(x, axis, keepdim=keep_dims)
