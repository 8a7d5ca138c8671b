"""Reading a package back: what it says, and what makes it unreadable."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from mil_kit import Forward, Saved, captured, save
from mil_package import DATA, Package
from torch import nn

from edgevit.errors import BundleError
from exporters.base import CannotVerifyError
from exporters.mil import read_package
from exporters.mil.program import MilType
from exporters.quiet import quiet


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    torch.manual_seed(0)
    module = Forward(lambda m, x, y: (m.layer(x) + y, y * 2), layer=nn.Linear(8, 8))
    program = captured(module, (1, 6, 8), (1, 6, 8))
    return save(program, tmp_path_factory.mktemp("good"))


@pytest.fixture
def copy(good: Saved, tmp_path) -> Saved:
    shutil.copytree(good.path, tmp_path / good.path.name)
    return replace(good, folder=tmp_path)


def test_a_package_says_what_it_takes_and_gives(good):
    program = good.mil
    assert program.inputs == (MilType("x", (1, 6, 8), "fp32"), MilType("y", (1, 6, 8), "fp32"))
    assert program.outputs == (
        MilType("output_0", (1, 6, 8), "fp32"),
        MilType("output_1", (1, 6, 8), "fp32"),
    )
    assert program.specification_version == 7


def test_ops_stand_in_order_with_the_precision_that_they_declare(good):
    ops = good.mil.ops
    assert {op.type for op in ops} == {"cast", "linear", "add", "mul"}
    assert next(op for op in ops if op.type == "linear").types[0].dtype == "fp16"
    known = {*good.mil.input_slots, *good.mil.constants}
    for op in ops:
        for slots in op.arguments.values():
            assert known >= set((slots,) if isinstance(slots, int) else slots)
        known |= set(op.results)
    assert known >= set(good.mil.output_slots)


def test_half_precision_weights_are_widened_without_change(good):
    (linear,) = (op for op in good.mil.ops if op.type == "linear")
    weight = good.mil.constants[linear.arguments["weight"]]
    expected = good.program.exported.state_dict["layer.weight"].half().float()
    assert weight.dtype == torch.float32
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("keep", [0, 63, 100, -1])
def test_weights_that_end_too_early_are_noticed(keep, copy):
    file = copy.path / DATA / "weights" / "weight.bin"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"weight\.bin ends before the weights"):
        read_package(copy.path)


@pytest.mark.parametrize(
    "lost", ["Manifest.json", str(DATA / "model.mlmodel"), str(DATA / "weights" / "weight.bin")]
)
def test_a_package_that_lacks_a_part_is_damaged(lost, copy):
    (copy.path / lost).unlink()
    with pytest.raises(BundleError, match=r"model\.mlpackage cannot be read back"):
        read_package(copy.path)


def test_a_file_that_is_no_package_is_damaged(tmp_path):
    (tmp_path / "model.mlpackage").write_bytes(b"nonsense")
    with pytest.raises(BundleError):
        read_package(tmp_path / "model.mlpackage")
    with pytest.raises(BundleError):
        read_package(tmp_path / "absent.mlpackage")


def test_an_op_that_contradicts_its_declared_shape_is_refused(copy):
    package = Package(copy.path)
    package.op("linear").outputs[0].type.tensorType.dimensions[1].constant.size = 5
    package.write()
    with pytest.raises(BundleError, match="Mismatch"):
        read_package(copy.path)


def test_a_border_that_contradicts_the_function_is_refused(copy):
    package = Package(copy.path)
    package.spec.description.output[0].type.multiArrayType.shape[1] = 5
    package.write()
    with pytest.raises(BundleError, match="output_0"):
        read_package(copy.path)


def test_a_neural_network_of_old_is_not_read(tmp_path):
    with quiet():
        from coremltools.models import MLModel, datatypes
        from coremltools.models.neural_network import NeuralNetworkBuilder

        array = datatypes.Array(3)
        builder = NeuralNetworkBuilder([("x", array)], [("y", array)])
        builder.add_activation("relu", "RELU", "x", "y")
        model = MLModel(builder.spec, skip_model_load=True)
        model.save(str(tmp_path / "old.mlpackage"))
    with pytest.raises(CannotVerifyError, match="neuralNetwork"):
        read_package(tmp_path / "old.mlpackage")
