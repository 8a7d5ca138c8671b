"""A good package, broken on purpose: verification has to notice every time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mil_kit import Saved, captured, save
from mil_package import Package
from torch import Tensor, nn

from edgevit.errors import BundleError
from edgevit.zoo.randomize import randomize_

Break = Callable[[Package], None]


class Small(nn.Module):
    """Everything a vision transformer has, once: (B, 3, 8, 8) to (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.act = nn.GELU(approximate="tanh")
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = F.avg_pool2d(self.act(self.stem(image)), 3, 1, 1).flatten(2).mT
        q, k, v = (part.unflatten(2, (4, 4)).transpose(1, 2) for part in self.split(x))
        x = x + self.proj(((q * 0.5) @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
        contrast = x - x.amax(1, keepdim=True)
        out: Tensor = self.head(torch.cat([x, contrast], 2)[:, ::4].mean(1))
        return out

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(self.norm(x)).chunk(3, -1)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    torch.manual_seed(0)
    program = captured(randomize_(Small()).eval(), (1, 3, 8, 8))
    return save(program, tmp_path_factory.mktemp("good"), precision=request.param)


def broken(good: Saved, folder: Path, edit: Break) -> Saved:
    shutil.copytree(good.path, folder / good.path.name)
    package = Package(folder / good.path.name)
    edit(package)
    package.write()
    return replace(good, folder=folder)


def exact_gelu(p: Package) -> None:
    p.constant(p.op("gelu"), "mode")[:] = ["EXACT"]


def flipped_softmax_axis(p: Package) -> None:
    p.constant(p.op("softmax"), "axis")[:] = [-2]


def transposed_weight(p: Package) -> None:
    weight = p.array(p.op("linear", 1), "weight")
    weight[:] = weight.T.copy()


def changed_block_of_a_weight(p: Package) -> None:
    weight = p.array(p.op("conv"), "weight")
    weight[3, 0] = weight[3, 0, ::-1].copy()


def dropped_bias(p: Package) -> None:
    del p.op("linear", 1).inputs["bias"]


def shifted_padding(p: Package) -> None:
    p.constant(p.op("conv"), "pad")[:] = [0, 2, 1, 1]


def uncounted_padding(p: Package) -> None:
    p.constant(p.op("avg_pool"), "exclude_padding_from_average")[:] = [True]


def wrong_stride(p: Package) -> None:
    p.constant(p.op("conv"), "strides")[:] = [1, 1]


def swapped_operands(p: Package) -> None:
    sub = p.op("sub")
    x, y = p.source(sub, "x"), p.source(sub, "y")
    p.connect(sub, "x", y)
    p.connect(sub, "y", x)


def missing_residual(p: Package) -> None:
    add = p.op("add")
    p.bypass(add, "y" if "linear" in p.source(add, "y") else "x")


def wrong_epsilon(p: Package) -> None:
    p.set_number(p.op("layer_norm"), "epsilon", 1e-3)


def wrong_scale(p: Package) -> None:
    p.set_number(p.op("mul"), "y", 0.25)


def swapped_concat(p: Package) -> None:
    values = p.op("concat").inputs["values"].arguments
    names = [value.name for value in values]
    for value, name in zip(values, reversed(names), strict=True):
        value.name = name


def reshaped_in_another_order(p: Package) -> None:
    merge = p.op("reshape", -1)
    p.bypass(p.maker(p.source(merge, "x")), "x")


def wrong_norm_axes(p: Package) -> None:
    p.constant(p.op("layer_norm"), "axes")[:] = [1]


def shifted_slice(p: Package) -> None:
    p.constant(p.op("slice_by_index"), "begin")[1] = 1


def truncated_weights(p: Package) -> None:
    del p.weights[-64:]


def a_weight_of_another(p: Package) -> None:
    p.connect(p.op("layer_norm"), "gamma", p.source(p.op("conv"), "bias"))


WRONG = [
    exact_gelu,
    flipped_softmax_axis,
    transposed_weight,
    changed_block_of_a_weight,
    dropped_bias,
    shifted_padding,
    uncounted_padding,
    swapped_operands,
    missing_residual,
    wrong_epsilon,
    wrong_scale,
    swapped_concat,
    reshaped_in_another_order,
    wrong_norm_axes,
    shifted_slice,
    a_weight_of_another,
]


def test_the_good_package_agrees_far_below_the_tolerance(good):
    first, *_ = results = good.verify()
    assert {result.status for result in results} == {"reference"}
    assert first.worst.relative < first.tolerance / 50


@pytest.mark.parametrize("edit", WRONG, ids=lambda edit: edit.__name__)
def test_a_package_that_computes_something_else_does_not_agree(edit, good, tmp_path):
    if edit is exact_gelu and good.artifact.precision == "fp16":
        pytest.skip("one exact GELU for a tanh GELU is less than half precision itself loses")
    bad = broken(good, tmp_path, edit)
    assert bad.verify()[0].status == "mismatch"
    assert bad.error() > 100 * good.error()


@pytest.mark.parametrize("edit", [wrong_stride, truncated_weights], ids=lambda e: e.__name__)
def test_a_package_that_contradicts_itself_is_refused(edit, good, tmp_path):
    with pytest.raises(BundleError, match="cannot be read back"):
        broken(good, tmp_path, edit).verify()
