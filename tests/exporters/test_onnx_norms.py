"""Sums before LayerNorm, looked at in what onnxruntime makes of the file."""

from collections import Counter

import onnx
import pytest
from torch import nn

import edgevit
from edgevit.zoo.randomize import randomize_
from exporters.onnx_norms import keep_norms_apart


class PostNorm(nn.Module):
    """Each residual is normalised and read by nothing else."""

    def __init__(self, width=16):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(width, width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        x = self.norm1(x + self.lin1(x).relu())
        return self.norm2(x + self.lin2(x))


class PreNorm(PostNorm):
    def forward(self, x):
        x = x + self.lin1(self.norm1(x))
        return x + self.lin2(self.norm2(x))


def exported(model, folder, **options):
    bundle = edgevit.export(
        randomize_(model).eval(),
        input_shape=(5, 16),
        formats=["onnx"],
        options={"onnx": options},
        output=folder,
    )
    assert bundle.artifact("onnx")["verification"]["status"] == "verified"
    return bundle.path / "model.onnx"


def operators(file, *, optimized=False):
    if not optimized:
        return Counter(node.op_type for node in onnx.load(file).graph.node)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(file.with_name("optimized.onnx"))
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return operators(file.with_name("optimized.onnx"))


@pytest.mark.parametrize("opset", [14, 17])
def test_onnxruntime_fuses_no_residual_with_a_norm(tmp_path, opset):
    file = exported(PostNorm(), tmp_path, opset=opset)
    assert operators(file)["Sum"] == 2
    made = operators(file, optimized=True)
    assert made["LayerNormalization"] == 2
    assert made["SkipLayerNormalization"] == 0


def test_onnxruntime_would_have_fused_them(tmp_path):
    file = exported(PostNorm(), tmp_path)
    model = onnx.load(file)
    for node in model.graph.node:
        node.op_type = "Add" if node.op_type == "Sum" else node.op_type
    onnx.save(model, file)
    assert operators(file, optimized=True)["SkipLayerNormalization"] == 2


def test_a_residual_that_is_read_elsewhere_stays(tmp_path):
    assert operators(exported(PreNorm(), tmp_path))["Sum"] == 0


def model_of(nodes, constants=()):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 4, 4])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1, 4, 4, 4])
    held = [onnx.helper.make_tensor(n, onnx.TensorProto.FLOAT, [4], [1.0] * 4) for n in constants]
    made = [onnx.helper.make_node(op, ins, [out]) for op, ins, out in nodes]
    return onnx.helper.make_model(onnx.helper.make_graph(made, "g", [value], [out], held))


NORM = ("LayerNormalization", ["sum", "w"], "out")
LEFT = {
    "a bias": [("Relu", ["x"], "a"), ("Add", ["a", "b"], "sum"), NORM],
    "a convolution": [("Conv", ["x", "w"], "a"), ("Add", ["a", "x"], "sum"), NORM],
    "an output": [("Relu", ["x"], "a"), ("Add", ["a", "x"], "out")],
    "no norm": [("Relu", ["x"], "a"), ("Add", ["a", "x"], "sum"), ("Relu", ["sum"], "out")],
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case):
    model = model_of(LEFT[case], ["w", "b"])
    assert keep_norms_apart(model) == 0
    assert "Sum" not in {node.op_type for node in model.graph.node}
