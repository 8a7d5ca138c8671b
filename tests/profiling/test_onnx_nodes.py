from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from devices.agent.onnx_nodes import read_nodes


def model() -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], [0.5] * 4096)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="/a/MatMul"),
        helper.make_node("Split", ["h"], ["p", "q"], name="/b/Split", axis=1, num_outputs=2),
        helper.make_node("Add", ["p", "q"], ["y"], name="/b/Add"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, [4, 64])], [value("y", 1, [4, 32])], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_it_reads_what_onnx_reads(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    onnx.save_model(model(), file)
    assert read_nodes(str(file)) == [
        {"name": n.name, "op": n.op_type, "inputs": list(n.input), "outputs": list(n.output)}
        for n in model().graph.node
    ]


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(model().SerializeToString()[:-10])
    with pytest.raises(ValueError, match="ends behind"):
        read_nodes(str(file))
