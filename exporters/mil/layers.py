"""MIL ops with weights and windows: convolutions, products of matrices, pooling, normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.base import CannotVerifyError
from exporters.mil.registry import Rounding, Tensors, implements

__all__: list[str] = []

PadType = Literal["valid", "same", "same_lower", "custom"]
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@implements("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: PadType = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution of 1 to 3 spatial axes; the weight is (out, in / groups, *kernel)."""
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    spread = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    x = _padded(x, _padding(x, pad_type, pad, spread, strides))
    return CONVOLUTIONS[rank - 1](
        x, weight, bias, stride=strides, dilation=dilations, groups=groups
    )


@implements("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: Literal["valid", "custom"] = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
    output_shape: list[int] | None = None,
) -> Tensor:
    """Transposed convolution; the padding is cut off its result.

    The weight is (in, out / groups, *kernel). How an output shape that the other parameters do not
    give would be reached is not documented.
    """
    rank = x.dim() - 2
    full = TRANSPOSED[rank - 1](
        x,
        weight,
        bias,
        stride=strides or [1] * rank,
        dilation=dilations or [1] * rank,
        groups=groups,
    )
    cut = pad if pad_type == "custom" and pad is not None else [0] * 2 * rank
    for axis, (before, after) in enumerate(_pairs(cut), start=2):
        full = full.narrow(axis, before, full.shape[axis] - before - after)
    if output_shape is not None and list(full.shape) != output_shape:
        raise CannotVerifyError(
            f"op conv_transpose asks for output shape {output_shape}, "
            f"its other parameters give {list(full.shape)}"
        )
    return full


@implements("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias."""
    return F.linear(x, weight, bias)


@implements("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Product of matrices over the last two axes, either one transposed first."""
    x = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y
    return x @ y


@implements("einsum")
def einsum(values: Tensors, equation: str) -> Tensor:
    """Product of two tensors in index notation."""
    return torch.einsum(equation, *values)


@implements("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, rounded: Rounding, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(query keyᵀ / sqrt(d) + mask) value; a mask of truth values forbids what is false."""
    scores = rounded(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return rounded(scores.softmax(-1)) @ value


@implements("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: PadType,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest value of each window; padding never wins."""
    rank = x.dim() - 2
    strides = strides or [1] * rank
    amounts = _padding(x, pad_type, pad, kernel_sizes, strides)
    amounts = _with_overhang(x, amounts, kernel_sizes, strides, ceil_mode)
    pooled: Tensor = MAX_POOLS[rank - 1](_padded(x, amounts, -math.inf), kernel_sizes, strides)
    return pooled


@implements("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: PadType,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Mean of each window; the padding counts as zeros, or not at all.

    What a window reaches beyond the padding, in ceil mode, never counts.
    """
    rank = x.dim() - 2
    strides = strides or [1] * rank
    amounts = _padding(x, pad_type, pad, kernel_sizes, strides)
    wide = _with_overhang(x, amounts, kernel_sizes, strides, ceil_mode)
    counting = [0] * len(amounts) if exclude_padding_from_average else amounts
    counted = _padded(torch.ones_like(x[:1, :1]), counting, 1.0)
    counted = _padded(counted, [w - c for w, c in zip(wide, counting, strict=True)])
    mean = AVERAGE_POOLS[rank - 1]
    share: Tensor = mean(counted, kernel_sizes, strides)
    return mean(_padded(x, wide), kernel_sizes, strides) / share


@implements("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) per channel (axis 1), scaled and shifted."""
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@implements("layer_norm")
def layer_norm(
    x: Tensor,
    rounded: Rounding,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Zero mean and unit variance over the axes, whose shapes gamma and beta have."""
    over = sorted(a % x.dim() for a in (range(x.dim()) if axes is None else axes))
    normal = _normalised(x, over, epsilon, rounded)
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    return _affine(normal, gamma, beta, shape)


@implements("instance_norm")
def instance_norm(
    x: Tensor,
    rounded: Rounding,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Zero mean and unit variance over the spatial axes, scaled and shifted per channel."""
    normal = _normalised(x, list(range(2, x.dim())), epsilon, rounded)
    return _affine(normal, gamma, beta, [1, -1] + [1] * (x.dim() - 2))


@implements("l2_norm")
def l2_norm(x: Tensor, rounded: Rounding, epsilon: float = 1e-6) -> Tensor:
    """x / sqrt(sum of squares + epsilon) over the last three axes."""
    total = rounded(rounded(x * x).sum((-3, -2, -1), keepdim=True))
    return x / (total + epsilon).sqrt()


def _normalised(x: Tensor, axes: list[int], epsilon: float, rounded: Rounding) -> Tensor:
    centred = rounded(x - x.mean(axes, keepdim=True))
    variance = rounded(rounded(centred * centred).mean(axes, keepdim=True))
    return rounded(centred / (variance + epsilon).sqrt())


def _affine(x: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: list[int]) -> Tensor:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def _padding(
    x: Tensor,
    pad_type: PadType,
    pad: list[int] | None,
    kernel: Sequence[int],
    strides: Sequence[int],
) -> list[int]:
    """Padding before and after each spatial axis, for a kernel spread by its dilation."""
    if pad_type == "custom" and pad is not None:
        return pad
    if pad_type in ("valid", "custom"):
        return [0] * 2 * len(kernel)
    amounts = []
    for size, extent, stride in zip(x.shape[2:], kernel, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
        # An odd one goes to the end, with same_lower to the front.
        small, large = total // 2, total - total // 2
        amounts += [small, large] if pad_type == "same" else [large, small]
    return amounts


def _with_overhang(
    x: Tensor, amounts: list[int], kernel: list[int], strides: list[int], ceil_mode: bool
) -> list[int]:
    """The padding, lengthened at the end by what the last windows reach beyond it in ceil mode."""
    if not ceil_mode:
        return amounts
    longer = list(amounts)
    for axis, (before, after) in enumerate(_pairs(amounts)):
        size, extent, stride = x.shape[2 + axis], kernel[axis], strides[axis]
        windows = math.ceil((size + before + after - extent) / stride) + 1
        if before + after > 0 and (windows - 1) * stride >= size + before:
            windows -= 1
        reach = (windows - 1) * stride + extent
        longer[2 * axis + 1] += max(reach - (size + before + after), 0)
    return longer


def _padded(x: Tensor, amounts: Sequence[int], value: float = 0.0) -> Tensor:
    """Padded at the last axes; amounts are (before, after) per axis, in the order of the axes."""
    if not any(amounts):
        return x
    backwards = [amount for pair in reversed(_pairs(amounts)) for amount in pair]
    return F.pad(x, backwards, value=value)


def _pairs(amounts: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(amounts[::2], amounts[1::2], strict=True))
