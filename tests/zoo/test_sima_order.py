"""SimA's order of products in the exported file: chosen once, by tokens against width."""

import numpy as np
import pytest
import torch

from edgevit.capture import capture
from edgevit.zoo.factory import block_inputs, create_block

onnx = pytest.importorskip("onnx")


def written(tokens, width, order, folder):
    """The program, the ONNX file's first runner, and the shapes that its products give."""
    from exporters.onnx import OnnxExporter, OnnxOptions

    torch.manual_seed(0)
    shape = {"tokens": tokens, "head_dim": width, "heads": 2}
    block = create_block("sima", **shape, order=order)
    program = capture(block, block_inputs("sima", **shape))
    folder.mkdir()
    artifact = OnnxExporter().export(program, folder, OnnxOptions())
    graph = onnx.shape_inference.infer_shapes(onnx.load(folder / artifact.file)).graph
    shapes = {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in (*graph.value_info, *graph.output)
    }
    operators = {node.op_type for node in graph.node}
    assert not operators & {"If", "Shape", "Where", "Loop"}
    # Norms are sums over tokens, which the file has as products with ones.
    given = {tensor.name for tensor in graph.initializer}
    made = [n for n in graph.node if n.op_type == "MatMul" and n.input[0] not in given]
    products = [shapes[node.output[0]] for node in made]
    return program, OnnxExporter().load(artifact, folder)[0], products


@pytest.mark.parametrize(
    ("tokens", "width", "between"),
    [(49, 16, (1, 2, 16, 16)), (16, 49, (1, 2, 16, 16)), (196, 32, (1, 2, 32, 32))],
)
def test_the_file_holds_the_cheaper_order_alone(tmp_path, tokens, width, between):
    """The map between both products has min(N, D)² entries, whichever is smaller."""
    _, _, products = written(tokens, width, "auto", tmp_path / "auto")
    assert products == [between, (1, 2, tokens, width)]


@pytest.mark.parametrize(("tokens", "width"), [(49, 16), (16, 49)])
def test_both_orders_agree_as_files(tmp_path, tokens, width):
    outputs, between = [], []
    for order in ("nn", "dd"):
        program, runner, products = written(tokens, width, order, tmp_path / order)
        generator = np.random.default_rng(1)
        arrays = [generator.standard_normal(s.shape).astype(np.float32) for s in program.inputs]
        outputs.append(runner.run(arrays)[0])
        between.append(products[0][-1])
    assert between == [tokens, width]
    np.testing.assert_allclose(*outputs, rtol=0, atol=2e-6 * np.abs(outputs[0]).max())
    assert np.ptp(outputs[0]) > 0
