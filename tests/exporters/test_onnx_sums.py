"""Sums over tokens as products with ones, and where there are none."""

import pytest
import torch
from optimized_kit import operators
from program_kit import ROUNDING, error_of, program_of, write
from torch import nn

from exporters.onnx import OnnxExporter

EXPORTER = OnnxExporter()
SHAPE = (2, 6, 16)
HEADS = 4


def heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


SUMS = {
    "kept": lambda m, x: m.lin(x).sum(1, keepdim=True),
    "gone": lambda m, x: m.lin(x).sum(1),
    "counted from behind": lambda m, x: m.lin(x).sum(-2),
    "mean": lambda m, x: m.lin(x).mean(1),
    "mean, kept": lambda m, x: m.lin(x).mean(1, keepdim=True),
    "of heads": lambda m, x: heads(m.lin(x)).sum(2, keepdim=True),
}
OF_HEADS = {
    "first norm": lambda m, x: heads(m.lin(x)).abs().sum(2, keepdim=True),
    "second norm": lambda m, x: heads(m.lin(x)).square().sum(2, keepdim=True).sqrt(),
    "of a product": lambda m, x: (heads(m.lin(x)) * heads(m.lin(x))).sum(2),
    "of a scaled one": lambda m, x: (heads(m.lin(x)) * 0.3).sum(2),
}
LEFT = {
    "last axis": lambda m, x: m.lin(x).sum(-1),
    "first axis": lambda m, x: x - m.lin(x).sum(0),
    "two axes": lambda m, x: x - m.lin(x).sum((0, 1)),
    "all": lambda m, x: x - m.lin(x).sum(),
    "greatest": lambda m, x: m.lin(x).amax(1),
}


def exported(function, folder, *, dynamic=False, **options):
    program = program_of(function, SHAPE, dynamic=dynamic, lin=nn.Linear(16, 16))
    artifact = write(EXPORTER, program, folder, **options)
    for runner in EXPORTER.load(artifact, folder):
        assert error_of(runner, program) <= ROUNDING
    return artifact.facts["rewritten"]


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("case", SUMS)
def test_a_sum_over_tokens_is_a_product(case, opset, tmp_path):
    assert exported(SUMS[case], tmp_path, opset=opset)["sums_as_products"] == 1
    found = operators(tmp_path)
    assert found["MatMul"] + found["Gemm"] == 2
    assert not {"ReduceSum", "ReduceMean"} & set(found)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", OF_HEADS)
def test_norms_of_heads_are_taken_before_they_are_cut(case, dynamic, tmp_path):
    assert exported(OF_HEADS[case], tmp_path, dynamic=dynamic)["sums_as_products"] == 1
    assert "Transpose" not in operators(tmp_path)


def test_what_is_read_elsewhere_stays(tmp_path):
    def both(m, x):
        size = heads(m.lin(x)).abs()
        return size / size.sum(2, keepdim=True)

    assert exported(both, tmp_path)["sums_as_products"] == 1
    assert operators(tmp_path)["Abs"] == 1


def test_every_node_has_a_name_of_its_own(tmp_path):
    def several(m, x):
        y = m.lin(x)
        norms = heads(y).abs().sum(2, keepdim=True) + heads(y).square().sum(2, keepdim=True)
        return y.mean(1, keepdim=True) - y.sum(1, keepdim=True) + norms.flatten(1)[:, None]

    assert exported(several, tmp_path)["sums_as_products"] == 4


@pytest.mark.parametrize("case", LEFT)
def test_other_sums_are_left(case, tmp_path):
    assert exported(LEFT[case], tmp_path)["sums_as_products"] == 0


def test_constants_and_varying_numbers_of_tokens_are_left():
    import onnx

    from exporters.onnx_sums import sums_as_products

    def model(size, *held):
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        x = helper.make_tensor_value_info("x", kind, [1, size, 4])
        out = helper.make_tensor_value_info("out", kind, [1, 1, 4])
        axes = onnx.numpy_helper.from_array(torch.tensor([1]).numpy(), "axes")
        nodes = [
            helper.make_node("ReduceSum", [held[0].name if held else "x", "axes"], ["sum"]),
            helper.make_node("Add", ["sum", "x"] if held else ["sum", "sum"], ["out"]),
        ]
        return helper.make_model(helper.make_graph(nodes, "g", [x], [out], [axes, *held]))

    constant = onnx.numpy_helper.from_array(torch.ones(1, 3, 4).numpy(), "c")
    assert sums_as_products(model("tokens")) == 0
    assert sums_as_products(model(1, constant)) == 0
    assert sums_as_products(model(3)) == 1


def test_who_does_not_want_it_says_so(tmp_path):
    assert exported(SUMS["kept"], tmp_path, rewrite=False) == {}
    assert operators(tmp_path)["ReduceSum"] == 1
