"""A batch of one left out of attention, and what onnxruntime makes of that."""

import onnx
import pytest
import torch
from optimized_kit import operators, optimized
from program_kit import ROUNDING, Held, elevit, error_of, program_of, write
from torch import nn

from exporters.onnx import OnnxExporter

EXPORTER = OnnxExporter()
TOKENS, WIDTH, HEADS = 6, 16, 4


def split(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def layers():
    return {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v", "proj")} | {
        "norm": nn.LayerNorm(WIDTH),
        "conv": nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        "mask": Held(HEADS, TOKENS, TOKENS),
        "full": Held(1, HEADS, TOKENS, TOKENS),
        "token": Held(1, 1, WIDTH),
    }


def attention(m, x, change=lambda m, scores: scores.softmax(-1)):
    q, k, v = split(m.q(x)), split(m.k(x)), split(m.v(x))
    return joined(change(m, q @ k.transpose(-2, -1)) @ v)


def block(m, x):
    x = x + m.proj(attention(m, m.norm(x)))
    return x + nn.functional.gelu(m.proj(m.norm(x)))


def linear_attention(m, x):
    q, k, v = split(m.q(x)).relu(), split(m.k(x)).relu(), split(m.v(x))
    context = k.transpose(-2, -1) @ v
    return joined(q @ context / (q @ k.sum(-2, keepdim=True).transpose(-2, -1) + 1))


def channels(m, x):
    q, k, v = split(m.q(x)), split(m.k(x)), split(m.v(x))
    q, k = (t / t.norm(dim=-2, keepdim=True) for t in (q, k))
    return joined(v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1))


def with_token(m, x):
    x = torch.cat([m.token().expand(1, -1, -1), x], 1)
    return m.proj(m.norm(x + attention(m, x))[:, 0])


def with_map(m, x):
    y = x + attention(m, x)
    maps = m.conv(y.transpose(1, 2).unflatten(2, (2, 3)))
    return y + maps.flatten(2).transpose(1, 2)


SEEN = {
    "alone": (attention, 3),
    "block": (block, 3),
    "mask": (lambda m, x: attention(m, x, lambda m, s: (s + m.mask()).softmax(-1)), 3),
    "full mask": (lambda m, x: attention(m, x, lambda m, s: (s * m.full()).softmax(-1)), 3),
    "other axis": (lambda m, x: attention(m, x, lambda m, s: s.softmax(2)), 3),
    "heads": (lambda m, x: attention(m, x, lambda m, s: s.softmax(1)), 3),
    "no softmax": (lambda m, x: attention(m, x, lambda m, s: s.relu() / TOKENS), 3),
    "norm of scores": (
        lambda m, x: attention(m, x, lambda m, s: s / s.abs().sum(-1, keepdim=True)),
        3,
    ),
    "halves": (lambda m, x: attention(m, x, lambda m, s: torch.cat(s.chunk(2, 1)[::-1], 1)), 3),
    "linear": (linear_attention, 1),
    "channels": (channels, 1),
    "token": (with_token, 3),
    "map": (with_map, 3),
}


def exported(function, folder, *, batch=1, dynamic=False, **options):
    program = program_of(function, (batch, TOKENS, WIDTH), dynamic=dynamic, **layers())
    artifact = write(EXPORTER, program, folder, **options)
    for runner in EXPORTER.load(artifact, folder):
        assert error_of(runner, program) <= ROUNDING
    return artifact.facts["rewritten"]["leave_out_batch"]


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("case", SEEN)
def test_products_read_through_permutations(case, opset, tmp_path):
    function, count = SEEN[case]
    assert exported(function, tmp_path, opset=opset) >= count
    graph = onnx.load(tmp_path / "model.onnx").graph
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    assert {entry.name for entry in (*graph.value_info, *graph.initializer)} <= used
    # One that puts heads side by side again is left, and none else, of attention itself.
    assert optimized(tmp_path)["Transpose"] <= {"channels": 3, "linear": 3, "map": 2}.get(case, 1)


def test_they_would_not(tmp_path):
    program = program_of(attention, (1, TOKENS, WIDTH), **layers())
    write(EXPORTER, program, tmp_path, rewrite=False)
    assert optimized(tmp_path)["Transpose"] == 4


@pytest.mark.parametrize("options", [{"batch": 2}, {"dynamic": True}])
def test_a_batch_that_is_more_or_varies_is_kept(options, tmp_path):
    assert exported(block, tmp_path, **options) == 0


def test_what_has_no_heads_is_left(tmp_path):
    program = elevit()
    (tmp_path / "plain").mkdir()
    write(EXPORTER, program, tmp_path / "plain", rewrite=False)
    artifact = write(EXPORTER, program, tmp_path)
    assert artifact.facts["rewritten"]["leave_out_batch"] == 0
    assert operators(tmp_path) == operators(tmp_path / "plain")


def test_attention_that_is_one_operator_stays_so(tmp_path):
    program = program_of(block, (1, TOKENS, WIDTH), **layers())
    artifact = write(EXPORTER, program, tmp_path, attention=True)
    assert artifact.facts["rewritten"]["join_attention"] == 1
    assert operators(tmp_path)["Attention"] == 1
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING
