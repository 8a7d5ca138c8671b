"""A per-channel affine map taken into the weights of the layer before it, or of the one behind it.

Given a layer of weight W and bias b before s ⊙ y + t (o, i: output, input channels; k: position in
the kernel), the result is exact for any padding, stride and groups:

    s ⊙ (W * x + b) + t = (s W) * x + (s ⊙ b + t)         (s W)[o, i, k] = s[o] W[o, i, k]

Given one behind it, the result is exact where the whole kernel lies on the input:

    W * (s ⊙ x + t) + b = (W s) * x + (b + Σ_ik W t)      (W s)[o, i, k] = W[o, i, k] s[i]

A padded convolution sees zeros at the border where it would have to see t, so this needs t = 0. A
transposed convolution leaves some of its kernel out at every position: t = 0 again.

Sums are taken in float64 and stored in the type of the weight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from edgevit.passes.affine import Affine, CannotFoldError
from edgevit.passes.graph import arguments, constant, describe, operation, set_constant, shape

__all__ = ["LAYERS", "NORMS", "Edit", "scale_input", "scale_norm", "scale_output"]

aten = torch.ops.aten

TRANSPOSED = {aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d}
#: Layers that can absorb an affine map.
LAYERS = {aten.linear, aten.conv1d, aten.conv2d, aten.conv3d, *TRANSPOSED}

#: Normalisations with a scale and a shift of their own, and the axis of their channels.
NORMS = {aten.batch_norm: 1, aten.group_norm: 1, aten.layer_norm: -1}

#: A change of weights that is ready to be made.
Edit = Callable[[], None]


def scale_output(module: fx.GraphModule, node: fx.Node, affine: Affine) -> Edit:
    """The edit that makes a layer give scale * value + shift.

    Raises:
        CannotFoldError: the map is not per channel, or the weights are not constants.
    """
    weight, _ = _weights(module, node)
    channels, axis = _channels(node, weight, output=True)
    scale, shift = affine.vectors(axis, channels, describe(node))

    def edit() -> None:
        weight, bias = _weights(module, node)
        if operation(node) in TRANSPOSED:
            scaled = _by_group(node, weight) * _along(2, scale, node, weight)
        else:
            scaled = _by_group(node, weight) * _along(1, scale, node, weight)
        new_bias = shift if bias is None else bias * scale + shift
        _store(module, node, scaled.reshape(weight.shape), new_bias)

    return edit


def scale_norm(module: fx.GraphModule, node: fx.Node, affine: Affine) -> Edit:
    """The edit that makes a normalisation give scale * value + shift.

    Raises:
        CannotFoldError: the map is not per channel, or its own scale and shift are not constants.
    """
    values = arguments(node)
    if len(values.get("normalized_shape", [0])) != 1:
        raise CannotFoldError(f"{describe(node)} is over several axes")
    axis = NORMS[operation(node)]
    channels = shape(node)[axis]
    scale, shift = affine.vectors(axis, channels, describe(node))
    own = {name: constant(module, values[name]) for name in ("weight", "bias")}
    if any(own[name] is None and values[name] is not None for name in own):
        raise CannotFoldError(f"the scale of {describe(node)} is computed in the graph")
    dtype = node.meta["val"].dtype

    def edit() -> None:
        weight, bias = (own[name] for name in ("weight", "bias"))
        scaled = scale if weight is None else weight.double() * scale
        shifted = shift if bias is None else bias.double() * scale + shift
        set_constant(module, node, "weight", scaled.to(dtype))
        set_constant(module, node, "bias", shifted.to(dtype))

    return edit


def scale_input(module: fx.GraphModule, node: fx.Node, affine: Affine) -> Edit:
    """The edit that lets a layer take x where it took scale * x + shift.

    Raises:
        CannotFoldError: the map is not per channel, the weights are not constants, or the border
            would come out wrong.
    """
    weight, _ = _weights(module, node)
    channels, axis = _channels(node, weight, output=False)
    scale, shift = affine.vectors(axis, channels, describe(node))
    if not affine.is_scaling():
        _check_border(node, weight)

    def edit() -> None:
        weight, bias = _weights(module, node)
        weights = _by_group(node, weight)
        if operation(node) in TRANSPOSED:  # the shift is zero
            scaled, new_bias = weights * _along(1, scale, node, weight), bias
        else:
            scaled = weights * _along(2, scale, node, weight)
            moved = (weights * _along(2, shift, node, weight)).flatten(2).sum(2).flatten()
            new_bias = moved if bias is None else bias + moved
        _store(module, node, scaled.reshape(weight.shape), new_bias)

    return edit


def _check_border(node: fx.Node, weight: Tensor) -> None:
    """Raise unless every position of the result sees the whole kernel."""
    if operation(node) in TRANSPOSED:
        raise CannotFoldError(f"{describe(node)} is transposed, and the shift is not zero")
    padding = arguments(node).get("padding", 0)
    if padding == "same":
        padded = any(size > 1 for size in weight.shape[2:])
    else:
        padded = padding != "valid" and any([padding] if isinstance(padding, int) else padding)
    if padded:
        raise CannotFoldError(
            f"{describe(node)} pads with zeros, and the shift is not zero, so its border would be "
            "wrong"
        )


def _groups(node: fx.Node) -> int:
    return int(arguments(node).get("groups", 1))


def _by_group(node: fx.Node, weight: Tensor) -> Tensor:
    """(groups, O / groups, I / groups, k...); transposed convolutions have O and I exchanged."""
    return weight.view(_groups(node), -1, *weight.shape[1:])


def _along(axis: int, vector: Tensor, node: fx.Node, weight: Tensor) -> Tensor:
    """A vector over all groups' channels, shaped to go along one axis of :func:`_by_group`."""
    ones = [1] * weight.dim()
    ones[axis - 1] = -1
    return vector.reshape(_groups(node), *ones)


def _channels(node: fx.Node, weight: Tensor, *, output: bool) -> tuple[int, int]:
    """Number of a layer's input or output channels, and their axis counted from the end."""
    first_is_output = operation(node) not in TRANSPOSED
    channels = weight.shape[0] if output == first_is_output else weight.shape[1] * _groups(node)
    return channels, 1 - weight.dim()


def _weights(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer, in float64."""
    values = arguments(node)
    weight, bias = constant(module, values["weight"]), constant(module, values["bias"])
    if weight is None or (bias is None and values["bias"] is not None):
        raise CannotFoldError(f"the weights of {describe(node)} are computed in the graph")
    return weight.double(), None if bias is None else bias.double()


def _store(module: fx.GraphModule, node: fx.Node, weight: Tensor, bias: Tensor | None) -> None:
    values = arguments(node)
    held = constant(module, values["weight"])
    assert held is not None
    set_constant(module, node, "weight", weight.to(held.dtype))
    if bias is not None and (values["bias"] is not None or bool(bias.any())):
        set_constant(module, node, "bias", bias.to(held.dtype))
