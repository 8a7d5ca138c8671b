"""Every MIL op that torch operators become, against torch, through a real saved package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mil_kit import ROUNDING, Forward, captured, save
from torch import Tensor

from edgevit.verify import Comparison

generator = torch.Generator().manual_seed(0)


def fixed(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


TOKENS, MAP, ODD = (1, 6, 8), (1, 4, 6, 6), (1, 4, 7, 8)
GAIN, OFFSET, SQUARE = fixed(8), fixed(8), fixed(8, 8)
KERNEL, NARROW, DEPTHWISE = fixed(6, 4, 3, 3), fixed(4, 2, 3, 3), fixed(4, 1, 3, 3)
LINE, BIAS = fixed(3, 6, 3), fixed(6)
PICKED = torch.tensor([2, 0, 1])
MASK = torch.rand(6, 6, generator=generator) > 0.5


@dataclass(frozen=True)
class Case:
    """A function of one tensor, and the op that has to be in its package."""

    name: str
    op: str
    function: Callable[[Tensor], Any]
    shape: tuple[int, ...] = TOKENS
    target: str = "ios16"


def changed(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3] = x[:, :2] * 2
    return y


CASES = [
    # arithmetic
    Case("abs", "abs", torch.abs),
    Case("add", "add", lambda x: x + GAIN),
    Case("add alpha", "add", lambda x: torch.add(x, x.exp(), alpha=2)),
    Case("sub", "sub", lambda x: GAIN - x),
    Case("sub alpha", "sub", lambda x: torch.sub(x, x.exp(), alpha=2)),
    Case("mul", "mul", lambda x: x * GAIN),
    Case("scale and shift", "mul", lambda x: x * NARROW[:, :1, :1, 0] + DEPTHWISE[..., :1, 0], MAP),
    Case("div", "real_div", lambda x: x / GAIN.exp()[:6, None].sum() / x.exp()),
    Case("one over", "real_div", lambda x: 1 / (x * x + 0.01)),
    Case("floor division", "floor_div", lambda x: torch.div(x, x.exp(), rounding_mode="floor")),
    Case("pow", "pow", lambda x: (x.abs() + 0.1) ** x),
    Case("maximum", "maximum", lambda x: torch.maximum(x, GAIN)),
    Case("minimum", "minimum", lambda x: torch.minimum(x, x.exp() - 1)),
    Case("clip", "clip", lambda x: x.clamp(-0.5, 0.1)),
    Case("clip below", "clip", lambda x: x.clamp(min=0.1)),
    Case("sqrt", "sqrt", lambda x: (x * x + 1).sqrt()),
    Case("rsqrt", "rsqrt", lambda x: (x * x + 1).rsqrt()),
    Case("exp", "exp", torch.exp),
    Case("exp2", "exp2", torch.exp2),
    Case("log", "log", lambda x: (x * x + 1).log()),
    Case("erf", "erf", torch.erf),
    Case("sin", "sin", torch.sin),
    Case("cos", "cos", torch.cos),
    Case("tan", "tan", lambda x: (x / 4).tan()),
    Case("sinh", "sinh", torch.sinh),
    Case("cosh", "cosh", torch.cosh),
    Case("atan", "atan", torch.atan),
    Case("asin", "asin", lambda x: torch.sin(x).asin()),
    Case("acos", "acos", lambda x: torch.sin(x).acos()),
    Case("atanh", "atanh", lambda x: (torch.sin(x) / 2).atanh()),
    Case("sign", "sign", torch.sign),
    Case("floor", "floor", torch.floor),
    Case("ceil", "ceil", torch.ceil),
    Case("round", "round", lambda x: (x * 2).round()),
    # comparisons and choices
    Case("greater", "greater", lambda x: (x > 0.2).float()),
    Case("greater or equal", "greater_equal", lambda x: (x.round() >= 1).float()),
    Case("less", "less", lambda x: (x < 0.2).float()),
    Case("less or equal", "less_equal", lambda x: (x.round() <= 1).float()),
    Case("equal", "equal", lambda x: (x.round() == 1).float()),
    Case("not equal", "not_equal", lambda x: (x.round() != 1).float()),
    Case("and", "logical_and", lambda x: torch.logical_and(x > 0, x < 1).float()),
    Case("or", "logical_or", lambda x: torch.logical_or(x < 0, x > 1).float()),
    Case("xor", "logical_xor", lambda x: torch.logical_xor(x > 0, x > 1).float()),
    Case("not", "logical_not", lambda x: torch.logical_not(x > 0).float()),
    Case("where", "select", lambda x: torch.where(x > 0, x, x.exp())),
    Case("masked fill", "select", lambda x: (x @ x.mT).masked_fill(MASK, -1e4).softmax(-1)),
    Case("to integers", "cast", lambda x: (x * 3).int().float()),
    Case("to half", "cast", lambda x: x.half().float()),
    # activations
    Case("relu", "relu", F.relu),
    Case("relu6", "relu6", lambda x: F.relu6(x * 6)),
    Case("gelu", "gelu", F.gelu),
    Case("gelu tanh", "gelu", lambda x: F.gelu(x, approximate="tanh")),
    Case("gelu sigmoid", "sigmoid", lambda x: x * torch.sigmoid(1.702 * x)),
    Case("silu", "silu", F.silu),
    Case("sigmoid", "sigmoid", torch.sigmoid),
    Case("tanh", "tanh", torch.tanh),
    Case("softplus", "softplus", F.softplus),
    Case("hardswish", "thresholded_relu", F.hardswish),
    Case("hard sigmoid", "sigmoid_hard", F.hardsigmoid),
    Case("elu", "elu", F.elu),
    Case("leaky relu", "leaky_relu", lambda x: F.leaky_relu(x, 0.2)),
    Case("prelu", "prelu", lambda x: F.prelu(x, GAIN[:4].abs()), MAP),
    Case("softmax", "softmax", lambda x: x.softmax(1)),
    # products and convolutions
    Case("linear", "linear", lambda x: F.linear(x, SQUARE, GAIN)),
    Case("matmul", "matmul", lambda x: x @ x.mT),
    Case("matmul of heads", "matmul", lambda x: x[None].mT @ x.exp()[None]),
    Case("einsum", "matmul", lambda x: torch.einsum("bnd,bne->bde", x, x.exp())),
    Case(
        "einsum over heads",
        "einsum",
        lambda x: torch.einsum("nchw,nwhu->nchu", x, x.exp().permute(0, 3, 2, 1)),
        (1, 5, 6, 4),
    ),
    Case("attention", "matmul", lambda x: F.scaled_dot_product_attention(x, x, x.exp())),
    Case(
        "attention op",
        "scaled_dot_product_attention",
        lambda x: F.scaled_dot_product_attention(x, x, x.exp()),
        target="ios18",
    ),
    Case(
        "attention op with bias",
        "scaled_dot_product_attention",
        lambda x: F.scaled_dot_product_attention(x, x, x.exp(), attn_mask=SQUARE[:6, :6]),
        target="ios18",
    ),
    Case("conv", "conv", lambda x: F.conv2d(x, KERNEL, BIAS, padding=1), MAP),
    Case("conv stride", "conv", lambda x: F.conv2d(x, KERNEL, stride=2, padding=(0, 1)), ODD),
    Case("conv dilated", "conv", lambda x: F.conv2d(x, KERNEL, padding=2, dilation=2), MAP),
    Case("conv groups", "conv", lambda x: F.conv2d(x, NARROW, groups=2), MAP),
    Case("conv depthwise", "conv", lambda x: F.conv2d(x, DEPTHWISE, padding=1, groups=4), MAP),
    Case("conv same", "conv", lambda x: F.conv2d(x, KERNEL, padding="same"), MAP),
    Case("conv same even", "conv", lambda x: F.conv2d(x, KERNEL[:, :, :2], padding="same"), MAP),
    Case("conv 1d", "conv", lambda x: F.conv1d(x, LINE, stride=2, padding=1)),
    Case("conv 3d", "conv", lambda x: F.conv3d(x, KERNEL[:, :, None]), (1, 4, 2, 6, 6)),
    Case("conv transposed", "conv_transpose", lambda x: F.conv_transpose2d(x, NARROW), MAP),
    Case(
        "conv transposed, stride, groups",
        "conv_transpose",
        lambda x: F.conv_transpose2d(x, NARROW, BIAS[:4], 2, 1, groups=2),
        MAP,
    ),
    Case(
        "conv transposed, output padding",
        "conv_transpose",
        lambda x: F.conv_transpose2d(x, NARROW, stride=2, padding=1, output_padding=1),
        MAP,
    ),
    # pooling
    Case("max pool", "max_pool", lambda x: F.max_pool2d(x - 9, 3, 1, 1), MAP),
    Case("max pool ceil", "max_pool", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), ODD),
    Case("max pool 1d", "max_pool", lambda x: F.max_pool1d(x, 3, 2)),
    Case("average pool", "avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1), MAP),
    Case("average pool ceil", "avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1, True), ODD),
    Case(
        "average pool without padding",
        "avg_pool",
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        MAP,
    ),
    Case(
        "average pool ceil without padding",
        "avg_pool",
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, count_include_pad=False),
        ODD,
    ),
    Case("global pool", "reduce_mean", lambda x: F.adaptive_avg_pool2d(x, 1), MAP),
    Case("adaptive pool", "avg_pool", lambda x: F.adaptive_avg_pool2d(x, 3), MAP),
    # normalisation
    Case("layer norm", "layer_norm", lambda x: F.layer_norm(x, (8,), GAIN, OFFSET, 1e-2)),
    Case("layer norm of two axes", "layer_norm", lambda x: F.layer_norm(x, (6, 8))),
    Case(
        "batch norm",
        "batch_norm",
        lambda x: F.batch_norm(x, GAIN[:4], GAIN[4:].abs(), OFFSET[:4], OFFSET[4:]),
        MAP,
    ),
    Case("instance norm", "instance_norm", F.instance_norm, MAP),
    Case(
        "group norm",
        "reduce_mean",
        lambda x: F.group_norm(x, 2, GAIN[:4], OFFSET[:4]),
        MAP,
    ),
    Case("l2 normalize", "reduce_l2_norm", lambda x: F.normalize(x, dim=-2)),
    # reductions
    Case("mean", "reduce_mean", lambda x: x.mean(1)),
    Case("sum", "reduce_sum", lambda x: x.sum((1, 2))),
    Case("max", "reduce_max", lambda x: x.amax((1, 2), keepdim=True)),
    Case("min", "reduce_min", lambda x: x.amin(1)),
    Case("log sum exp", "reduce_log_sum_exp", lambda x: x.logsumexp(-1)),
    Case("argmax", "reduce_argmax", lambda x: x.argmax(-1).float()),
    Case("argmax, ios 17", "reduce_argmax", lambda x: x.argmax(-1).float(), target="ios17"),
    Case("argmin", "reduce_argmin", lambda x: x.argmin(-1).float()),
    Case("variance", "reduce_mean", lambda x: x.var(-1, unbiased=False)),
    # shapes
    Case("reshape", "reshape", lambda x: x.reshape(1, 4, 12)),
    Case("permute", "transpose", lambda x: x.permute(0, 2, 1)),
    Case("unsqueeze", "expand_dims", lambda x: x.unsqueeze(1).unsqueeze(-1)),
    Case("squeeze", "squeeze", lambda x: x[:, :1].squeeze(1)),
    Case("concat", "concat", lambda x: torch.cat([x, x.exp()], 1)),
    Case("stack", "stack", lambda x: torch.stack([x, x.exp()], 2)),
    Case("split", "split", lambda x: x.split([2, 6], -1)[1]),
    Case("chunk", "split", lambda x: x.chunk(2, -1)[1] - x.chunk(2, -1)[0]),
    Case("expand", "tile", lambda x: x.unsqueeze(1).expand(1, 3, 6, 8)),
    Case("repeat", "tile", lambda x: x.repeat(1, 2, 3)),
    Case("pixel shuffle", "pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), MAP),
    Case("pixel unshuffle", "pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), MAP),
    # elements
    Case("slice", "slice_by_index", lambda x: x[:, 1:5:2, -3:]),
    Case("slice from the end", "slice_by_index", lambda x: x[:, :-1]),
    Case("one index", "slice_by_index", lambda x: x[:, 2]),
    Case("gather", "gather", lambda x: x[:, PICKED]),
    Case("gather, ios 17", "gather", lambda x: x[:, PICKED], target="ios17"),
    Case("gather of pairs", "gather_nd", lambda x: x[:, PICKED[:, None], PICKED]),
    Case(
        "gather along an axis",
        "gather_along_axis",
        lambda x: x.gather(1, torch.tensor([[[1] * 8, [0] * 8]])),
    ),
    Case("gather by a value", "gather", lambda x: F.embedding(x.argmax(-1), SQUARE)),
    Case("assignment", "scatter", changed),
    Case("flip", "reverse", lambda x: x.flip(1)),
    Case("roll", "gather", lambda x: x.roll((1, -2), (1, 2))),
    Case("pad", "pad", lambda x: F.pad(x, (1, 2, 0, 1), value=0.5), MAP),
    Case("pad reflected", "pad", lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"), MAP),
    Case("pad replicated", "pad", lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"), MAP),
    Case("lower triangle", "band_part", lambda x: x.tril(1)),
    Case("upper triangle", "band_part", lambda x: x.triu(-1)),
    Case("running sum", "cumsum", lambda x: x.cumsum(1)),
    Case("top k", "topk", lambda x: x.topk(3, -1)[0]),
    Case("top k, ios 17", "topk", lambda x: x.topk(3, -1)[0], target="ios17"),
    Case("order", "argsort", lambda x: x.argsort(-1).float()),
    Case("one hot", "one_hot", lambda x: F.one_hot(x.argmax(-1), 8).float()),
    # resizing
    Case("nearest", "upsample_nearest_neighbor", lambda x: F.interpolate(x, scale_factor=2), MAP),
    Case(
        "nearest to a size",
        "upsample_nearest_neighbor",
        lambda x: F.interpolate(x, size=(9, 14)),
        MAP,
    ),
    Case(
        "bilinear",
        "upsample_bilinear",
        lambda x: F.interpolate(x, size=(12, 14), mode="bilinear"),
        MAP,
    ),
    Case(
        "bilinear, corners aligned",
        "upsample_bilinear",
        lambda x: F.interpolate(x, size=(12, 14), mode="bilinear", align_corners=True),
        MAP,
    ),
    Case(
        "bilinear to a smaller map",
        "upsample_bilinear",
        lambda x: F.interpolate(x, size=(3, 4), mode="bilinear"),
        MAP,
    ),
]


@lru_cache
def verification(shape: tuple[int, ...], target: str) -> tuple[set[str], dict[str, Comparison]]:
    """All cases of a shape and target in one package: its ops, and how far each case is off."""
    cases = [c for c in CASES if (c.shape, c.target) == (shape, target)]
    module = Forward(lambda _, x: tuple(case.function(x) for case in cases))
    with TemporaryDirectory() as folder:
        saved = save(captured(module, shape), Path(folder), precision="fp32", target=target)
        (result,) = saved.verify()
    names = [case.name for case in cases]
    return set(saved.artifact.facts["ops"]), dict(zip(names, result.comparisons, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_op_computes_what_torch_computes(case):
    ops, comparisons = verification(case.shape, case.target)
    assert case.op in ops
    assert comparisons[case.name].relative < ROUNDING


def test_every_case_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES)
