"""What kind of work an operator does, how much arithmetic, how many bytes.

The kinds are those of EfficientViT's Figure 2: products are bound by arithmetic; reshaping,
element-wise work, copies and normalisation by memory. Operations are counted as executed, from the
shapes that the runtime told: two for every multiply-accumulate of a product, one for every element
that anything else computes, none for moving data. Bytes are those of inputs and outputs in fp32,
each counted once, as if no cache held them; a view moves none.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

__all__ = ["EXP", "KINDS", "MEMORY_BOUND", "exp_part", "is_exp", "kind_of", "work_of"]

Shape = Sequence[int]

_NAMES = {
    "product": "conv fusedconv conv1d conv2d conv3d convolution convtranspose conv_transpose2d "
    "nhwcfusedconv matmul fusedmatmul fusedgemm gemm linear bmm baddbmm mm addmm einsum "
    "qlinearconv matmulinteger scaled_dot_product_attention attention multiheadattention "
    "depthwise_conv_2d conv_2d fully_connected batch_matmul",
    "softmax": "softmax _softmax logsoftmax biassoftmax",
    "activation": "relu relu_ clip relu6 gelu biasgelu fastgelu quickgelu erf sigmoid tanh silu "
    "silu_ hardswish hardswish_ hardsigmoid leakyrelu elu exp hard_swish logistic softplus",
    "normalisation": "layernormalization layer_norm skiplayernormalization "
    "simplifiedlayernormalization batchnormalization batch_norm instancenormalization "
    "groupnorm group_norm lpnormalization linalg_vector_norm norm",
    "reshape": "reshape view _unsafe_view flatten unflatten transpose permute t split chunk "
    "split_with_sizes concat cat concatenation stack slice select gather gathernd unsqueeze "
    "squeeze expand tile pad constant_pad_nd strided_slice roll unbind narrow index "
    "index_select scatternd depthtospace movedim",
    "copy": "reorderinput reorderoutput memcpyfromhost memcpytohost clone contiguous copy_ "
    "_to_copy to cast identity alias",
    "element-wise": "add add_ sub mul mul_ div div_ pow sqrt rsqrt reciprocal neg abs max min "
    "maximum minimum sum addmul biasadd quickelementwise where clamp clamp_min square "
    "greater less not and or equal cumsum",
    "pooling": "averagepool globalaveragepool maxpool avg_pool2d adaptive_avg_pool2d "
    "max_pool2d mean reducemean reducesum reducemax reducel1 reducel2 amax average_pool_2d "
    "reduce_mean reduce_sum reduce_max avg_pool max_pool reduce_l1_norm reduce_l2_norm "
    "resize upsample_bilinear2d upsample_nearest2d",
}
KINDS = {kind: frozenset(names.split()) for kind, names in _NAMES.items()}
MEMORY_BOUND = ("reshape", "element-wise", "copy", "normalisation", "activation", "pooling")
#: What needs the exponential function, by the names that SimA's question uses.
EXP = {
    "softmax": KINDS["softmax"],
    "GELU": frozenset(("gelu", "biasgelu", "fastgelu", "quickgelu", "erf")),
    "other": frozenset(("exp", "sigmoid", "tanh", "silu", "silu_", "elu", "logistic", "softplus")),
}
#: torch's operators that give another view of the same memory.
_VIEWS = (
    "view _unsafe_view flatten unflatten transpose permute t split chunk split_with_sizes select "
    "slice unsqueeze squeeze expand unbind narrow alias movedim"
)
VIEWS = frozenset(_VIEWS.split())
_CONVOLUTIONS = frozenset(("conv", "fusedconv", "nhwcfusedconv", "conv1d", "conv2d", "conv3d"))
_ADDED_FIRST = frozenset(("addmm", "baddbmm"))
_NUMBER = 4


def kind_of(op: str) -> str:
    """The kind of an operator: a name of :data:`KINDS`, or ``"other"``."""
    name = op.lower()
    return next((kind for kind, names in KINDS.items() if name in names), "other")


def exp_part(op: str) -> str | None:
    """Which part of the exponentials an operator is; None if it needs none."""
    name = op.lower()
    return next((part for part, names in EXP.items() if name in names), None)


def is_exp(op: str) -> bool:
    """Whether an operator needs the exponential function."""
    return exp_part(op) is not None


def work_of(op: str, takes: Sequence[Shape], gives: Sequence[Shape], *, views: bool) -> list[int]:
    """Operations and bytes of one execution.

    Args:
        op: the runtime's name of the operator.
        takes: shapes of its inputs, as far as the runtime tells them.
        gives: shapes of its outputs.
        views: whether the runtime gives views where it can (torch).
    """
    name, kind = op.lower(), kind_of(op)
    if views and name in VIEWS:
        return [0, 0]
    moved = _NUMBER * sum(map(prod, [*takes, *gives]))
    if kind == "product":
        flops, packed = _product(name, takes, gives)
        return [flops, moved + _NUMBER * packed]
    return [0 if kind in ("reshape", "copy") else sum(map(prod, gives)), moved]


def _product(name: str, takes: Sequence[Shape], gives: Sequence[Shape]) -> tuple[int, int]:
    """Operations of a product, and numbers of a weight that was packed away and is not told."""
    if not takes or not gives or not takes[0]:
        return 0, 0
    out = gives[0]
    if name in _CONVOLUTIONS:
        return (2 * prod(out) * prod(takes[1][1:]), 0) if len(takes) > 1 else (0, 0)
    left, *others = takes[1:] if name in _ADDED_FIRST and len(takes) > 2 else takes
    right = others[0] if others and len(others[0]) > 1 else None
    inner = _inner(left, right, out)
    return 2 * prod(out) * inner, 0 if right is not None else inner * out[-1]


def _inner(left: Shape, right: Shape | None, out: Shape) -> int:
    """The size that a product sums over; the left factor may be transposed."""
    if right is not None and len(left) > 1 and len(out) > 1:
        turned = left[-1] == out[-2] and left[-2] != out[-2]
        if turned and left[-2] in (right[-1], right[-2]):
            return left[-2]
    return left[-1]
