"""Scores of one head and their bias in one operator."""

import pytest
from optimized_kit import operators
from program_kit import ROUNDING, Held, error_of, program_of, write
from torch import nn

from exporters.onnx import OnnxExporter

EXPORTER = OnnxExporter()
CHANNELS, ROWS, TOKENS = 8, 3, 9


def of_maps(m, x):
    """As cascaded attention has it: queries from a map, channels before tokens."""
    q = m.conv(x.unflatten(2, (ROWS, -1))).flatten(2)
    k, v = m.qk(x).chunk(2, 1)
    weights = (q.transpose(1, 2) @ k + m.bias()).softmax(-1)
    return v @ weights.transpose(1, 2) + x[:, : v.shape[1]]


def of_tokens(m, x):
    q, k, v = x.mT, x.mT * 2, x.mT + 1
    return ((q @ k.mT + m.full()).softmax(-1) @ v).mT


def turned_by_none(m, x):
    return (m.bias() + (x.mT * 0.1) @ x.exp()).softmax(2) @ x.mT


def layers():
    return {
        "conv": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
        "qk": nn.Conv1d(CHANNELS, 2 * CHANNELS, 1),
        "bias": Held(TOKENS, TOKENS),
        "full": Held(1, TOKENS, TOKENS),
        "row": Held(1, TOKENS),
        "short": Held(1, CHANNELS),
        "weight": Held(TOKENS, TOKENS),
    }


def exported(function, folder, *, batch=1, dynamic=False, **options):
    program = program_of(function, (batch, CHANNELS, TOKENS), dynamic=dynamic, **layers())
    artifact = write(EXPORTER, program, folder, **options)
    for runner in EXPORTER.load(artifact, folder):
        assert error_of(runner, program) <= ROUNDING
    return artifact.facts["rewritten"].get("join_biases", 0)


@pytest.mark.parametrize("function", [of_maps, of_tokens, turned_by_none])
def test_one_operator(function, tmp_path):
    assert exported(function, tmp_path) == 1
    found = operators(tmp_path)
    assert found["Gemm"] == 1
    assert found["MatMul"] == 1


def test_two_as_it_is_written(tmp_path):
    exported(of_tokens, tmp_path, rewrite=False)
    assert "Gemm" not in operators(tmp_path)


def read_elsewhere(m, x):
    scores = x.mT @ x
    return (scores + m.bias()).softmax(-1) @ x.mT + scores.sum(-1, keepdim=True)


def sum_read_elsewhere(m, x):
    scores = x.mT @ x + m.bias()
    return scores.softmax(-1) @ x.mT + scores.sum(-1, keepdim=True)


def weights_read_elsewhere(m, x):
    weights = (x.mT @ x + m.bias()).softmax(-1)
    return weights @ x.mT + weights[:, :, :1]


LEFT = {
    "a row for all": lambda m, x: (x.mT @ x + m.row()).softmax(-1) @ x.mT,
    "computed": lambda m, x: (x.mT @ x + (x.mT * 2) @ x.exp()).softmax(-1) @ x.mT,
    "a layer": lambda m, x: (x @ m.weight() + m.bias()[:CHANNELS]).softmax(-1) @ x.mT,
    "along the other axis": lambda m, x: (x.mT @ x + m.bias()).softmax(1) @ x.mT,
    "no softmax": lambda m, x: (x.mT @ x + m.bias()).relu() @ x.mT,
    "heads": lambda m, x: (
        ((q := x.mT.unflatten(-1, (2, -1)).transpose(1, 2)) @ q.mT + m.bias()).softmax(-1) @ q
    ),
    "scores read elsewhere": read_elsewhere,
    "sum read elsewhere": sum_read_elsewhere,
    "weights read elsewhere": weights_read_elsewhere,
    "a vector": lambda m, x: (x.exp() @ x[0, 0] + m.short()).softmax(-1) @ x[0],
    "a matrix behind": lambda m, x: (x.mT @ x + m.bias()).softmax(-1) @ m.weight(),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case, tmp_path):
    assert exported(LEFT[case], tmp_path) == 0


@pytest.mark.parametrize("options", [{"batch": 2}, {"batch": 2, "dynamic": True}])
def test_more_than_one_image_is_left(options, tmp_path):
    assert exported(of_maps, tmp_path, **options) == 0
