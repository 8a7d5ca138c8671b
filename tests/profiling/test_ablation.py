import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgevit.profiling.ablation import CannotLeaveOutError, blocks_in, prepared, without_block


def model() -> onnx.ModelProto:
    """y = head(b1(b0(stem(x)))), where b0 adds 1 to its double and b1 squares."""
    constant = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [1.0] * 8)
    make = helper.make_node
    nodes = [
        make("Relu", ["x"], ["s"], name="/stem/Relu"),
        make("Add", ["s", "s"], ["d"], name="/blocks.0.mlp/Add"),
        make("Add", ["d", "one"], ["b0"], name="/blocks.0/Add"),
        make("Mul", ["b0", "b0"], ["b1"], name="/blocks.1/Mul"),
        make("MatMul", ["b1", "w"], ["y"], name="/head/MatMul"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, [1, 4])], [value("y", 1, [1, 2])], [constant, weight]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return prepared(made)


def run(made: onnx.ModelProto) -> float:
    session = onnxruntime.InferenceSession(made.SerializeToString())
    return float(session.run(None, {"x": np.full((1, 4), 3, np.float32)})[0][0, 0])


def test_the_blocks() -> None:
    assert blocks_in(model()) == ["stem", "blocks.0", "blocks.1", "head"]


@pytest.mark.parametrize(("block", "value"), [("blocks.0", 4 * 9.0), ("blocks.1", 4 * 7.0)])
def test_the_rest_reads_what_the_block_read(block: str, value: float) -> None:
    assert run(model()) == 4 * 49.0
    assert run(without_block(model(), block)) == value


def test_what_nothing_reads_any_more_is_gone() -> None:
    shorter = without_block(model(), "blocks.0")
    assert [w.name for w in shorter.graph.initializer] == ["w"]
    assert len(model().graph.node) == 5
    assert len(shorter.graph.node) == 3


def test_a_block_that_changes_the_shape_stays() -> None:
    with pytest.raises(CannotLeaveOutError, match="another shape"):
        without_block(model(), "head")


def test_a_block_that_gives_two_tensors_stays() -> None:
    made = model()
    made.graph.node[3].input[1] = "d"
    with pytest.raises(CannotLeaveOutError, match="2 tensors"):
        without_block(made, "blocks.0")
