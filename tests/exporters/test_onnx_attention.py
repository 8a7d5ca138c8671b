"""Attention as one operator: the same numbers, and left alone wherever it is something else."""

from __future__ import annotations

import onnx
import pytest
import torch
from program_kit import ROUNDING, error_of, program_of, write
from torch import nn

from edgevit.errors import ConversionError
from exporters.onnx import OnnxExporter

EXPORTER = OnnxExporter()
TOKENS, WIDTH, HEADS = 6, 16, 4


def split(x, heads=HEADS):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Softmax attention; ``scores`` and ``weights`` may do something to those."""

    def __init__(self, scores=None, weights=None, keys=TOKENS, width=WIDTH):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, size) for size in (WIDTH, WIDTH, width))
        self.scores, self.weights = scores or nn.Identity(), weights or nn.Identity()
        self.keys = keys

    def forward(self, x):
        y = x[:, : self.keys]
        q, k, v = split(self.q(x)), split(self.k(y)), split(self.v(y))
        scores = self.scores(q @ k.transpose(-2, -1))
        return joined(self.weights(scores.softmax(-1)) @ v)


class Mask(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.values = nn.Parameter(torch.randn(shape))

    def forward(self, scores):
        return scores + self.values


class Scale(Mask):
    def forward(self, scores):
        return scores * self.values


def attention(module, *, dynamic=False, after=lambda x: x):
    return program_of(
        lambda m, x: after(m.attention(x)), (2, TOKENS, WIDTH), dynamic=dynamic, attention=module
    )


def operators(folder):
    return [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "module",
    [
        Attention(),
        Attention(keys=3),
        Attention(width=2 * WIDTH),
        Attention(Mask(TOKENS, TOKENS)),
        Attention(Mask(HEADS, TOKENS, TOKENS)),
        Attention(Mask(1, TOKENS, TOKENS)),
        Attention(Mask(1, HEADS, TOKENS, TOKENS)),
        Attention(Mask(TOKENS, 3), keys=3),
    ],
    ids=["plain", "fewer keys", "wider values", "mask", "of heads", "rank 3", "rank 4", "both"],
)
def test_it_is_one_operator_and_computes_the_same(module, dynamic, tmp_path):
    program = attention(module, dynamic=dynamic)
    artifact = write(EXPORTER, program, tmp_path, attention=True, exporter="torchscript")
    assert artifact.facts["rewritten"]["join_attention"] == 1
    found = operators(tmp_path)
    assert found.count("Attention") == 1
    assert not {"Softmax", "Transpose", "Reshape"} & set(found)
    assert (artifact.facts["opset"], artifact.facts["ir_version"]) == (23, 11)
    for runner in EXPORTER.load(artifact, tmp_path):
        assert error_of(runner, program) <= ROUNDING


@pytest.mark.parametrize("heads", [1, HEADS])
def test_windows_may_have_a_mask_each(heads, tmp_path):
    program = attention(Attention(Mask(2, heads, TOKENS, TOKENS)))
    artifact = write(EXPORTER, program, tmp_path, attention=True)
    assert operators(tmp_path).count("Attention") == 1
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


def test_a_file_has_names_shapes_and_weights_of_what_it_computes_alone(tmp_path):
    write(EXPORTER, attention(Attention(Mask(TOKENS, TOKENS))), tmp_path, attention=True)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert "/attention/Attention" in [node.name for node in graph.node]
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    assert {entry.name for entry in (*graph.value_info, *graph.initializer)} <= used


class Maps(Attention):
    """Channels come first, as convolutions leave them."""

    def forward(self, x):
        maps = (layer(x).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k, v = (torch.relu(m).transpose(1, 2) for m in maps)
        return joined((split(q) @ split(k).transpose(-2, -1)).softmax(-1) @ split(v))


class Backwards(Attention):
    """The weights stand on the right."""

    def forward(self, x):
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return joined(v.transpose(-2, -1) @ weights).transpose(1, 2)


class OtherAxis(Attention):
    def forward(self, x):
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        return joined((q @ k.transpose(-2, -1)).softmax(-2) @ v)


class Shown(Attention):
    """The weights are an output as well."""

    def forward(self, x):
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return joined(weights @ v), weights


class Bare(Attention):
    """Heads that nobody puts side by side again."""

    def forward(self, x):
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


@pytest.mark.parametrize(
    "module",
    [
        Maps(),
        Backwards(),
        OtherAxis(),
        Shown(),
        Bare(),
        Attention(Scale(1)),
        Attention(nn.ReLU()),
        Attention(weights=Mask(1)),
        Attention(Mask(TOKENS)),
        Attention(Mask(TOKENS, 1)),
        nn.Linear(WIDTH, WIDTH),
    ],
    ids=[
        "maps", "on the right", "axis", "shown", "bare", "scale", "scores", "weights",
        "mask of keys", "mask of queries", "none",
    ],
)  # fmt: skip
def test_what_is_not_it_is_left_and_told(module, tmp_path):
    program = attention(module)
    with pytest.raises(ConversionError, match="no attention of this model can be") as caught:
        write(EXPORTER, program, tmp_path, attention=True)
    assert caught.value.hint == "leave attention out"
    # So it is what is missing, and not the file that is wrong.
    artifact = write(EXPORTER, program, tmp_path, opset=23)
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


def test_what_reads_the_queries_too_keeps_them(tmp_path):
    class Twice(Attention):
        def forward(self, x):
            q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
            return joined((q @ k.transpose(-2, -1)).softmax(-1) @ v) + joined(q.relu())

    program = attention(Twice())
    artifact = write(EXPORTER, program, tmp_path, attention=True)
    assert operators(tmp_path).count("Attention") == 1
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


def test_a_file_that_was_not_asked_for_it_has_none(tmp_path):
    artifact = write(EXPORTER, attention(Attention()), tmp_path)
    assert artifact.facts["opset"] == 17
    assert "join_attention" not in artifact.facts["rewritten"]
    assert "Attention" not in operators(tmp_path)
