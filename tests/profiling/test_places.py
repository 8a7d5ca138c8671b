from typing import Any

from edgevit.profiling.places import layer_in_name, place_operators


def node(name: str, op: str, inputs: str, outputs: str) -> dict[str, Any]:
    return {"name": name, "op": op, "inputs": inputs.split(), "outputs": outputs.split()}


FILE = [
    node("/a.conv/Conv", "Conv", "x w", "/a.conv./Conv_output_0"),
    node("/a.act/Relu", "Relu", "/a.conv./Conv_output_0", "/a.act./Relu_output_0"),
    node("/b/Constant", "Constant", "", "c"),
    node("/b.act/Div", "Div", "/a.act./Relu_output_0 c", "d"),
    node("/b.act/Erf", "Erf", "d", "e"),
    node("/b.act/Mul", "Mul", "e /a.act./Relu_output_0", "/b.act./Mul_output_0"),
    node("/Add", "Add", "/b.act./Mul_output_0 x", "y"),
]


def test_names() -> None:
    assert layer_in_name("/blocks.0.attn/MatMul_1") == "blocks.0.attn"
    assert layer_in_name("/Add") == ""
    assert layer_in_name("Gelu_token_7") is None


def test_fused_operators_stand_for_the_nodes_between_their_tensors() -> None:
    conv = node("/a.act./Relu_output_0_nchwc", "Conv", "x reordered", "t1")
    back = node("ReorderOutput_token_3", "ReorderOutput", "t1", "/a.act./Relu_output_0")
    gelu = node("Gelu_token_7", "Gelu", "/a.act./Relu_output_0", "/b.act./Mul_output_0")
    add = node("/Add", "Add", "/b.act./Mul_output_0 x", "y")
    found = place_operators([conv, back, gelu, add], FILE)

    assert [place.layer for place in found] == ["a.conv", "a.conv", "b.act", ""]
    assert [place.placed for place in found] == ["tensor", "neighbour", "tensor", "name"]
    assert found[0].sources == ("/a.act/Relu", "/a.conv/Conv")
    assert set(found[2].sources) == {"/b.act/Mul", "/b.act/Erf", "/b.act/Div"}
    assert found[3].sources == ("/Add",)


def test_operators_in_the_runtimes_own_layout() -> None:
    """Between them are tensors of no name that the file knows: names and borders have to do."""
    file = [
        node("/c/Conv", "Conv", "x w", "/c./Conv_output_0"),
        node("/d/Conv", "Conv", "/c./Conv_output_0 v", "/d./Conv_output_0"),
        node("/Add", "Add", "/d./Conv_output_0 x", "/Add_output_0"),
    ]
    first = node("/c./Conv_output_0_nchwc", "Conv", "x t0", "t1")
    second = node("/d./Conv_output_0_nchwc", "Conv", "t1 t2 x", "t3")
    back = node("ReorderOutput", "ReorderOutput", "t3", "/Add_output_0")
    found = place_operators([first, second, back], file)
    assert [place.layer for place in found] == ["c", "d", "d"]
    assert found[0].sources == ("/c/Conv",)
    assert set(found[1].sources) == {"/d/Conv", "/Add"}


def test_a_change_of_layout_counts_to_what_it_serves() -> None:
    before = node("ReorderInput", "ReorderInput", "x", "t0")
    conv = node("/a.conv./Conv_output_0_nchwc", "Conv", "t0 reordered", "t1")
    assert [p.layer for p in place_operators([before, conv], FILE)] == ["a.conv", "a.conv"]


def test_what_nothing_tells_is_unknown() -> None:
    (place,) = place_operators([node("Mystery", "Mystery", "q", "r")], FILE)
    assert place.layer is None
    assert place.placed == "unknown"
