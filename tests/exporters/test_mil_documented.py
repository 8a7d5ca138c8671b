"""What the MIL documentation says of ops and parameters that no torch operator becomes.

The programs are written in MIL with coremltools' builder, saved and read back like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil_kit import run, written
from torch import Tensor

from exporters.base import CannotVerifyError
from exporters.mil import Interpreter
from exporters.quiet import quiet

with quiet():
    from coremltools.converters.mil import Builder as mb  # noqa: N813

generator = torch.Generator().manual_seed(0)


def fixed(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


X, MAP, GAIN = fixed(1, 6, 8), fixed(1, 4, 7, 8), fixed(8)
WEIGHT = fixed(6, 4, 3, 2)
WEIGHTS, HALF = WEIGHT.numpy(), GAIN.half().numpy()

#: Name, the op on x (and what it is given), the input, what it has to give.
CASES: list[tuple[str, Callable[[Any], Any], Tensor, Tensor]] = [
    ("mod", lambda x: mb.mod(x=x, y=np.float32(-0.3)), X, X - -0.3 * torch.floor(X / -0.3)),
    ("square", lambda x: mb.square(x=x), X, X * X),
    ("identity", lambda x: mb.identity(x=x), X, X),
    (
        "half precision weights",
        lambda x: mb.add(x=x, y=mb.constexpr_cast(source_val=HALF, output_dtype="fp32")),
        X,
        X + torch.from_numpy(HALF.astype(np.float32)),
    ),
    ("softsign", lambda x: mb.softsign(x=x), X, X / (1 + X.abs())),
    ("inverse", lambda x: mb.inverse(x=mb.exp(x=x), epsilon=0.25), X, 1 / (X.exp() + 0.25)),
    ("log", lambda x: mb.log(x=mb.exp(x=x), epsilon=0.25), X, (X.exp() + 0.25).log()),
    ("rsqrt", lambda x: mb.rsqrt(x=mb.exp(x=x), epsilon=0.25), X, 1 / (X.exp() + 0.25) ** 0.5),
    ("threshold", lambda x: mb.threshold(x=x, alpha=0.5), X, torch.maximum(X, torch.tensor(0.5))),
    (
        "gelu sigmoid",
        lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        X,
        X / (1 + (-1.702 * X).exp()),
    ),
    (
        "clamped relu",
        lambda x: mb.clamped_relu(x=x, alpha=-2.0, beta=0.7),
        X,
        torch.minimum(torch.where(X >= 0, X, -2 * X), torch.tensor(0.7)),
    ),
    ("thresholded relu", lambda x: mb.thresholded_relu(x=x, alpha=0.5), X, X * (X >= 0.5)),
    ("linear activation", lambda x: mb.linear_activation(x=x, alpha=2.0, beta=3.0), X, 2 * X + 3),
    ("scaled tanh", lambda x: mb.scaled_tanh(x=x, alpha=2.0, beta=3.0), X, 2 * (3 * X).tanh()),
    (
        "matmul transposed",
        lambda x: mb.matmul(x=x, y=np.eye(6, dtype=np.float32) * 2, transpose_x=True),
        X,
        2 * X.mT,
    ),
    ("l2 norm", lambda x: mb.l2_norm(x=x, epsilon=0.5), MAP, MAP / ((MAP**2).sum() + 0.5) ** 0.5),
    (
        "layer norm over the middle",
        lambda x: mb.layer_norm(x=x, axes=[1], epsilon=0.1),
        X,
        (X - X.mean(1, keepdim=True)) / (X.var(1, unbiased=False, keepdim=True) + 0.1) ** 0.5,
    ),
    ("reduce l1", lambda x: mb.reduce_l1_norm(x=x, axes=[-1]), X, X.abs().sum(-1)),
    (
        "reduce sum square",
        lambda x: mb.reduce_sum_square(x=x, axes=[1], keep_dims=True),
        X,
        (X * X).sum(1, keepdim=True),
    ),
    (
        "reduce log sum",
        lambda x: mb.reduce_log_sum(x=mb.exp(x=x), axes=[1]),
        X,
        X.exp().sum(1).log(),
    ),
    ("reduce prod", lambda x: mb.reduce_prod(x=x, axes=[0, 2]), X, X.prod(2).prod(0)),
    (
        "concat interleaved",
        lambda x: mb.concat(values=(x, mb.exp(x=x)), axis=1, interleave=True),
        X,
        torch.stack([X, X.exp()], 2).reshape(1, 12, 8),
    ),
    ("split evenly", lambda x: mb.split(x=x, num_splits=4, axis=2)[3], X, X[..., 6:]),
    ("flatten", lambda x: mb.flatten2d(x=x, axis=-2), MAP, MAP.reshape(4, 56)),
    ("reshape with zero", lambda x: mb.reshape(x=x, shape=(0, -1, 4)), X, X.reshape(1, 12, 4)),
    (
        "reshape like",
        lambda x: mb.reshape_like(
            x=x, ref_tensors=(x, x), begins=[2, 0], ends=[3, 2], end_masks=[False, False]
        ),
        X,
        X.reshape(8, 1, 6),
    ),
    (
        "slice back to front",
        lambda x: mb.slice_by_index(
            x=x,
            begin=[0, 4, 0],
            end=[0, 0, -2],
            stride=[1, -2, 1],
            begin_mask=[True, False, True],
            end_mask=[True, False, False],
        ),
        X,
        X[:, [4, 2], :-2],
    ),
    (
        "slice to the front",
        lambda x: mb.slice_by_index(
            x=x,
            begin=[0, 4, 0],
            end=[0, 0, 0],
            stride=[1, -2, 1],
            begin_mask=[True, False, True],
            end_mask=[True, True, True],
        ),
        X,
        X[:, [4, 2, 0]],
    ),
    (
        "slice one",
        lambda x: mb.slice_by_index(
            x=x, begin=[0, -2, 0], end=[1, 0, 8], squeeze_mask=[False, True, False]
        ),
        X,
        X[:, -2],
    ),
    (
        "slice by size",
        lambda x: mb.slice_by_size(x=x, begin=[0, 1, 2], size=[1, 3, -1]),
        X,
        X[:, 1:4, 2:],
    ),
    (
        "gather in batches",
        lambda x: mb.gather(x=x, indices=[[2, 0]], axis=2, batch_dims=1),
        X,
        X[:, :, [2, 0]],
    ),
    (
        "scatter add",
        lambda x: mb.scatter(
            data=x, indices=[4, 0], updates=np.ones((1, 2, 8), np.float32), axis=1, mode="add"
        ),
        X,
        X + torch.tensor([1.0, 0, 0, 0, 1, 0])[:, None],
    ),
    (
        "scatter nd",
        lambda x: mb.scatter_nd(
            data=x, indices=[[0, 4]], updates=np.ones((1, 8), np.float32), mode="update"
        ),
        X,
        torch.cat([X[:, :4], torch.ones(1, 1, 8), X[:, 5:]], 1),
    ),
    (
        "crop",
        lambda x: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
        MAP,
        MAP[:, :, 1:-2, :-3],
    ),
    (
        "pad the middle",
        lambda x: mb.pad(x=x, pad=[1, 0, 0, 2], mode="constant", constant_val=9.0),
        X,
        F.pad(X, (0, 2, 1, 0), value=9.0),
    ),
    ("reverse all", lambda x: mb.reverse(x=x), X, X.flip(0, 1, 2)),
    ("band", lambda x: mb.band_part(x=x, lower=1, upper=0), X, X.tril() - X.tril(-2)),
    (
        "running sum from the end",
        lambda x: mb.cumsum(x=x, axis=1, exclusive=True, reverse=True),
        X,
        X.flip(1).cumsum(1).flip(1) - X,
    ),
    ("fill", lambda x: mb.add(x=x, y=mb.fill(shape=mb.shape(x=x), value=2.0)), X, X + 2),
    ("fill like", lambda x: mb.add(x=x, y=mb.fill_like(ref_tensor=x, value=2.0)), X, X + 2),
    (
        "range",
        lambda x: mb.add(x=x, y=mb.range_1d(start=1.0, end=9.0, step=1.0)),
        X,
        X + torch.arange(1.0, 9.0),
    ),
    ("smallest k", lambda x: mb.topk(x=x, k=2, axis=1, ascending=True)[0], X, X.sort(1)[0][:, :2]),
    (
        "sliding windows",
        lambda x: mb.sliding_windows(x=x, axis=1, size=3, stride=2),
        X,
        torch.stack([X[:, 0:3], X[:, 2:5]], 1),
    ),
    (
        "conv same, stride 2",
        lambda x: mb.conv(x=x, weight=WEIGHTS, pad_type="same", strides=[2, 2]),
        MAP,
        F.conv2d(F.pad(MAP, (0, 0, 1, 1)), WEIGHT, stride=2),
    ),
    (
        "conv same, even kernel",
        lambda x: mb.conv(x=x, weight=WEIGHTS, pad_type="same"),
        MAP,
        F.conv2d(F.pad(MAP, (0, 1, 1, 1)), WEIGHT),
    ),
    (
        "conv same lower",
        lambda x: mb.conv(x=x, weight=WEIGHTS, pad_type="same_lower"),
        MAP,
        F.conv2d(F.pad(MAP, (1, 0, 1, 1)), WEIGHT),
    ),
    (
        "conv, uneven padding",
        lambda x: mb.conv(x=x, weight=WEIGHTS, pad_type="custom", pad=[0, 2, 1, 0]),
        MAP,
        F.conv2d(F.pad(MAP, (1, 0, 0, 2)), WEIGHT),
    ),
    (
        "max pool same",
        lambda x: mb.max_pool(
            x=mb.sub(x=x, y=9.0), kernel_sizes=[3, 2], strides=[2, 2], pad_type="same"
        ),
        MAP,
        F.max_pool2d(F.pad(MAP - 9, (0, 0, 1, 1), value=-99.0), (3, 2), 2),
    ),
]


@lru_cache
def results(shape: torch.Size) -> dict[str, Tensor]:
    """What all cases with an input of that shape give; they stand in one program."""
    cases = [case for case in CASES if case[2].shape == shape]
    with TemporaryDirectory() as folder:
        program = written(
            lambda x: tuple(build(x) for _, build, _, _ in cases), Path(folder), shape
        )
    outputs = Interpreter(program)([cases[0][2]])
    return dict(zip((name for name, *_ in cases), outputs, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_an_op_does_what_its_documentation_says(case):
    name, _, x, expected = case
    torch.testing.assert_close(results(x.shape)[name], expected, rtol=2e-6, atol=2e-6)


# The documentation lists where the points of these outputs lie on the interval from 0 to 1.
SAMPLED = [
    ("UNALIGN_CORNERS", [0.0, 0.1, 0.5, 0.9, 1.0]),
    ("STRICT_ALIGN_CORNERS", [0.0, 0.25, 0.5, 0.75, 1.0]),
    ("ALIGN_CORNERS", [0.0, 0.25, 0.5, 0.75, 1.0]),
    ("DEFAULT", [0.0, 0.4, 0.8, 1.0, 1.0]),
    ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
    ("UNALIGN_CORNERS", [0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0]),
    ("ALIGN_CORNERS", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ("DEFAULT", [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
    ("OFFSET_CORNERS", [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12]),
]


def resized(x: Any, mode: str, size: int) -> Any:
    return mb.resize(
        x=x, shape=np.array([1, size], np.int32), resized_dims=np.uint32(2), sampling_mode=mode
    )


def resized_bilinear(x: Any, mode: str, size: int) -> Any:
    return mb.resize_bilinear(x=x, target_size_height=1, target_size_width=size, sampling_mode=mode)


@pytest.mark.parametrize("op", [resized, resized_bilinear])
def test_points_are_sampled_where_the_documentation_lists_them(op, tmp_path):
    ramp = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    program = written(
        lambda x: tuple(op(x, mode, len(points)) for mode, points in SAMPLED),
        tmp_path,
        ramp.shape,
        target="iOS17",
    )
    for got, (mode, points) in zip(Interpreter(program)([ramp]), SAMPLED, strict=True):
        torch.testing.assert_close(got.reshape(-1), torch.tensor(points), msg=mode)


def test_a_slice_is_updated_in_place(tmp_path):
    def build(x):
        new = np.full((1, 2, 8), 7, np.float32)
        return mb.slice_update(x=x, update=new, begin=[0, 1, 0], end=[1, 5, 8], stride=[1, 2, 1])

    expected = X.clone()
    expected[:, 1:5:2] = 7
    torch.testing.assert_close(run(written(build, tmp_path, X.shape, target="iOS18"), X), expected)


def test_boolean_masks_of_attention_forbid_where_they_are_false(tmp_path):
    allowed = torch.ones(6, 6, dtype=torch.bool).tril()

    def build(x):
        return mb.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=allowed.numpy())

    expected = F.scaled_dot_product_attention(X, X, X, is_causal=True)
    program = written(build, tmp_path, X.shape, target="iOS18")
    torch.testing.assert_close(run(program, X), expected)


REFUSED = [
    (lambda x: mb.l2_pool(x=x, kernel_sizes=[2, 2], pad_type="valid"), "the Core ML ops l2_pool"),
    (
        lambda x: mb.upsample_bilinear(x=x, align_corners=True, half_pixel_centers=True),
        "align_corners and half_pixel_centers both True",
    ),
    (
        lambda x: mb.resize(
            x=x, shape=[3, 3], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"
        ),
        "'NEAREST_NEIGHBOR' is not implemented here",
    ),
    (
        lambda x: mb.conv_transpose(x=x, weight=WEIGHTS.swapaxes(0, 1)[:4], pad_type="same"),
        "'same' is not implemented here",
    ),
]


@pytest.mark.parametrize(("build", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_not_documented_or_not_known_is_refused(build, said, tmp_path):
    program = written(lambda x: build(x), tmp_path, MAP.shape, target="iOS17")
    with pytest.raises(CannotVerifyError, match=said):
        Interpreter(program)([MAP])
