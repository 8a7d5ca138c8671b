"""Layouts for OpenVINO: the same numbers, fewer values moved, and others left alone."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from program_kit import ROUNDING, block, error_of, program_of, write
from torch import nn

from exporters import openvino as module
from exporters.openvino import GRAPH, OpenVINOExporter

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs edgevit[openvino]")
EXPORTER = OpenVINOExporter()
MAP = (2, 16, 6, 4)


def conv(channels=16):
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def rewritten(program, folder):
    """Nodes of the written file by their operator, once it was seen to compute the same."""
    artifact = write(EXPORTER, program, folder)
    for runner in EXPORTER.load(artifact, folder):
        assert error_of(runner, program) <= ROUNDING
    model = module._import().Core().read_model(str(folder / artifact.file / GRAPH))
    nodes: dict[str, list] = {}
    for node in model.get_ordered_ops():
        nodes.setdefault(node.get_type_name(), []).append(node)
    return nodes


def orders(nodes):
    return [[int(i) for i in n.input_value(1).get_node().data] for n in nodes.get("Transpose", [])]


def axis(nodes):
    (softmax,) = nodes["Softmax"]
    return softmax.get_attributes()["axis"]


# -- softmax over the rows or columns of a map -----------------------------------------------------

COLUMNS = {
    "behind a convolution": (lambda m, x: m.a(x).softmax(3), 2),
    "counted from the end": (lambda m, x: m.a(x).softmax(-1), 2),
    "over the rows": (lambda m, x: m.a(x).softmax(2), 1),
    "through a product": (lambda m, x: (m.a(x) * m.b(x)).softmax(-1), 2),
    "through a turned map": (lambda m, x: m.a(x).relu().transpose(2, 3).softmax(-1), 2),
    "before a convolution": (lambda m, x: m.b(m.a(x).softmax(-1)), 2),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", COLUMNS)
def test_softmax_of_a_map_leaves_channels_last(case, dynamic, tmp_path):
    function, expected = COLUMNS[case]
    program = program_of(function, MAP, dynamic=dynamic, a=conv(), b=conv())
    nodes = rewritten(program, tmp_path)
    assert axis(nodes) == expected
    (softmax,) = nodes["Softmax"]
    assert softmax.get_output_partial_shape(0)[3].get_length() == 16
    assert [0, 2, 3, 1] in orders(nodes)
    assert [0, 3, 1, 2] in orders(nodes)


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (lambda m, x: m.a(x).softmax(1), 16),
        (lambda m, x: m.a(x).softmax(-1), 8),
        (lambda m, x: (x * 2).softmax(-1) + m.a(x), 16),
        (lambda m, x: m.a(x).flatten(2).unflatten(2, (4, 6)).softmax(-1), 16),
        (lambda m, x: (m.a(x) @ x.transpose(-2, -1)).softmax(-1), 16),
        (lambda m, x: m.a(x).permute(0, 2, 1, 3).softmax(-1), 16),
        (lambda m, x: m.a(x).flatten(2).softmax(-1), 16),
    ],
    ids=["channels", "few", "no convolution", "reshaped", "a product", "turned", "rank 3"],
)
def test_another_softmax_is_left(function, channels, tmp_path):
    program = program_of(function, (2, channels, 6, 4), a=conv(channels))
    nodes = rewritten(program, tmp_path)
    assert len(nodes["Softmax"]) == 1
    assert not {(0, 2, 3, 1), (0, 3, 1, 2)} & {tuple(order) for order in orders(nodes)}


# -- keys of attention -----------------------------------------------------------------------------


def heads(x, layer):
    return layer(x).unflatten(-1, (2, -1)).transpose(1, 2)


def attention(m, x):
    query, key, value = (heads(x, layer) for layer in (m.q, m.k, m.v))
    mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
    return mixed.transpose(1, 2).flatten(2)


def test_keys_keep_their_last_axis(tmp_path):
    layers = {name: nn.Linear(8, 8) for name in "qkv"}
    nodes = rewritten(program_of(attention, (2, 5, 8), **layers), tmp_path)
    assert orders(nodes) == [[0, 2, 1, 3]] * 4
    turned = [node.get_attributes()["transpose_b"] for node in nodes["MatMul"]]
    # Those of the layers and of keys, not that of values.
    assert sorted(turned) == [False, True, True, True, True]


def test_many_keys_are_left(tmp_path):
    layers = {name: nn.Linear(8, 8) for name in "qkv"}
    nodes = rewritten(program_of(attention, (1, 300, 8), **layers), tmp_path)
    assert [0, 2, 3, 1] in orders(nodes)


def test_keys_of_a_block_keep_it_too(tmp_path):
    nodes = rewritten(block("softmax", projections=True), tmp_path)
    assert [0, 2, 3, 1] not in orders(nodes)
