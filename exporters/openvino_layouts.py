"""Rewrites for the layouts that OpenVINO's CPU plugin computes in.

Its convolutions keep channels last in memory. Softmax over the columns of a feature map brings them
first again, and then takes short rows one by one. Asked along another axis, it takes sixteen
channels at once and leaves the map as it lies, since the transpositions only rename axes:

    given     softmax(x, 3)                                         x (B, C, H, W), convolved
    result    transpose(softmax(transpose(x, (0, 2, 3, 1)), 2), (0, 3, 1, 2))

Of attention's operands its fused kernel transposes those itself whose last axis stays the last, so
keys wait outside until every column was gathered. A product can be told to read them transposed,
which costs the kernel less for a few hundred of them and more for a thousand (LeViT loses 2 %):

    given     q @ transpose(k, (0, 2, 3, 1))                        k (B, N, heads, channels)
    result    matmul(q, transpose(k, (0, 2, 1, 3)), transpose_b)

Both are exact: the same sums of the same terms. What they bring is in ``docs/performance.md``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["suit_layouts"]

#: What computes with channels last.
CONVOLUTIONS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData"}
#: What keeps the layout of its operands: element by element, or maps turned as a whole.
KEEPING = {
    "Abs", "Add", "Clamp", "Divide", "Elu", "Exp", "Gelu", "HSigmoid", "HSwish", "Maximum",
    "Minimum", "Multiply", "Negative", "PRelu", "Power", "Relu", "Sigmoid", "Softplus", "Sqrt",
    "Subtract", "Swish", "Tanh", "Transpose",
}  # fmt: skip
#: Channels that are worth it: as many as a vector of AVX-512 holds.
LANES = 16
CHANNELS_LAST, CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
TO_COLUMNS, TO_HEADS = [0, 2, 3, 1], [0, 2, 1, 3]
#: More keys than these are left.
KEYS = 256


def suit_layouts(model: Any) -> None:
    """Rewrite an OpenVINO model in place."""
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Softmax" and _is_of_a_map(node):
            _channels_last(node)
        elif kind == "MatMul" and _reads_columns(node):
            _read_transposed(node)


# -- softmax over the rows or columns of a map -----------------------------------------------------


def _is_of_a_map(softmax: Any) -> bool:
    shape = softmax.get_input_partial_shape(0)
    if shape.rank.is_dynamic or len(shape) != 4 or _axis(softmax) not in (2, 3):
        return False
    channels = shape[1]
    if channels.is_dynamic or channels.get_length() % LANES:
        return False
    return _behind_a_convolution(softmax)


def _axis(softmax: Any) -> int:
    axis: int = softmax.get_attributes()["axis"]
    return axis % len(softmax.get_input_partial_shape(0))


def _behind_a_convolution(softmax: Any) -> bool:
    """Whether a map comes from a convolution, through nothing that reads it in another order."""
    seen, todo = set(), [softmax.input_value(0).get_node()]
    while todo:
        node = todo.pop()
        kind = node.get_type_name()
        if kind in CONVOLUTIONS:
            return True
        if kind not in KEEPING or node.get_name() in seen:
            continue
        if kind == "Transpose" and (_order(node) or [])[:2] != [0, 1]:
            continue
        seen.add(node.get_name())
        todo += [value.get_node() for value in node.input_values()]
    return False


def _channels_last(softmax: Any) -> None:
    from openvino import opset13 as ops

    turned = ops.transpose(softmax.input_value(0), _ints(CHANNELS_LAST))
    columns = ops.softmax(turned, _axis(softmax) - 1)
    _replace(softmax, ops.transpose(columns, _ints(CHANNELS_FIRST)))


# -- keys of attention -----------------------------------------------------------------------------


def _reads_columns(product: Any) -> bool:
    keys = product.input_value(1).get_node()
    if keys.get_type_name() != "Transpose" or _order(keys) != TO_COLUMNS:
        return False
    count = _sizes(keys.output(0))[3]
    return 0 < count <= KEYS and not any(product.get_attributes().values())


def _read_transposed(product: Any) -> None:
    from openvino import opset13 as ops

    keys = ops.transpose(product.input_value(1).get_node().input_value(0), _ints(TO_HEADS))
    _replace(product, ops.matmul(product.input_value(0), keys, False, True))


# -- both ---------------------------------------------------------------------------------------


def _sizes(value: Any) -> list[int]:
    """All sizes of a value, -1 for what varies."""
    return [-1 if s.is_dynamic else s.get_length() for s in value.get_partial_shape()]


def _ints(values: list[int]) -> Any:
    return np.array(values, dtype=np.int64)


def _order(transpose: Any) -> list[int] | None:
    """Its permutation; None where that is not constant."""
    order = transpose.input_value(1).get_node()
    if order.get_type_name() != "Constant":
        return None
    return [int(axis) for axis in order.data.flatten()]


def _replace(old: Any, new: Any) -> None:
    """Give a node's place and name to another."""
    new.set_friendly_name(old.get_friendly_name())
    for reader in old.output(0).get_target_inputs():
        reader.replace_source_output(new.output(0))
