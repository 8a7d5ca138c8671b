"""A residual around a depthwise convolution taken into its centre tap.

A depthwise convolution of stride 1 whose odd kernel is centred (padding = dilation * (k - 1) / 2)
sees x itself under the middle of its kernel, with one weight a channel:

    x + (W * x + b) = W' * x + b          W'[c, 0, k/2, k/2] = W[c, 0, k/2, k/2] + 1

The addition, a pass over two tensors, is gone. Exact everywhere, the border included: zeros that
pad never lie under the centre. Sums are taken in float64 and stored in the type of the weight.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, fx

from edgevit.passes.base import PassReport, Refusal
from edgevit.passes.graph import (
    arguments,
    constant,
    describe,
    layer_name,
    operation,
    readers,
    replace_node,
    set_constant,
    shape,
    written_after,
)

__all__ = ["RULE", "ResidualIntoDepthwise"]

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv1d, aten.conv2d, aten.conv3d}


class ResidualIntoDepthwise:
    """Folds ``x + depthwise(x)`` into the depthwise convolution."""

    name: ClassVar[str] = "residual_into_depthwise"
    changes_model: ClassVar[bool] = False

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place."""
        rewritten, refusals = 0, []
        for node in list(module.graph.nodes):
            conv = _convolution(module, node)
            if conv is None:
                continue
            if (reason := _refusal(module, conv, node)) is not None:
                refusals.append(Refusal(layer_name(conv) or conv.name, reason))
                continue
            _add_one(module, conv)
            replace_node(node, conv)
            rewritten += 1
        return PassReport(self.name, rewritten, tuple(refusals))


RULE = ResidualIntoDepthwise()


def _convolution(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The depthwise convolution of x in ``x + depthwise(x)``; None if the node is no such sum."""
    if operation(node) is not aten.add or len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        return None
    first, second = node.args
    for conv, other in ((first, second), (second, first)):
        if (
            isinstance(conv, fx.Node)
            and operation(conv) in CONVOLUTIONS
            and conv.args[0] is other
            and _is_depthwise(module, conv)
        ):
            return conv
    return None


def _is_depthwise(module: fx.GraphModule, conv: fx.Node) -> bool:
    weight = constant(module, arguments(conv)["weight"])
    return weight is not None and weight.shape[:2] == (shape(conv.all_input_nodes[0])[1], 1)


def _refusal(module: fx.GraphModule, conv: fx.Node, add: fx.Node) -> str | None:
    source = conv.all_input_nodes[0]
    if shape(conv) != shape(source):
        return f"{describe(conv)} does not keep the size of its input"
    if not _centred(conv, _weight(module, conv)):
        return f"the kernel of {describe(conv)} has no centre"
    if others := [reader for reader in readers(conv) if reader is not add]:
        return f"{describe(others[0])} reads the convolution without the residual"
    if (writer := written_after(source, conv, add)) is not None:
        return f"{describe(writer)} overwrites its input in place"
    return None


def _centred(conv: fx.Node, weight: Tensor) -> bool:
    """Whether the middle of the kernel lies on the position that it computes."""
    values, sizes = arguments(conv), weight.shape[2:]
    if any(size % 2 == 0 for size in sizes):
        return False
    if values["padding"] == "same":
        return True
    padding, stride, dilation = (
        _per_axis(values[name], len(sizes)) for name in ("padding", "stride", "dilation")
    )
    return all(
        pad == step * (size - 1) // 2 and one == 1
        for size, pad, step, one in zip(sizes, padding, dilation, stride, strict=True)
    )


def _per_axis(value: int | list[int], axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _add_one(module: fx.GraphModule, conv: fx.Node) -> None:
    held = _weight(module, conv)
    weight = held.double().contiguous().clone()
    # Seen as (channels, taps), the centre of an odd kernel is its middle tap.
    taps = weight.flatten(1)
    taps[:, taps.shape[1] // 2] += 1
    set_constant(module, conv, "weight", weight.to(held.dtype))


def _weight(module: fx.GraphModule, conv: fx.Node) -> Tensor:
    weight = constant(module, arguments(conv)["weight"])
    assert weight is not None  # checked when the convolution was found
    return weight
