"""Permutations between tokens and maps, in the form that onnxruntime's convolutions take in."""

import pytest
from optimized_kit import optimized
from program_kit import ROUNDING, error_of, program_of, write
from torch import nn

from exporters.onnx import OnnxExporter

EXPORTER = OnnxExporter()
WIDTH = 32


def as_map(x, rows=4):
    return x.transpose(1, 2).unflatten(2, (rows, -1))


def as_tokens(x):
    return x.flatten(2).transpose(1, 2)


def into(m, x):
    return m.conv(as_map(m.lin(x)))


def out(m, x):
    return m.lin(as_tokens(m.conv(x.unflatten(1, (WIDTH, -1)))))


def there_and_back(m, x):
    return x + as_tokens(m.conv(as_map(m.lin(x))).relu())


def exported(function, folder, shape, *, dynamic=False, **options):
    layers = {"lin": nn.Linear(WIDTH, WIDTH), "conv": nn.Conv2d(WIDTH, WIDTH, 3, padding=1)}
    program = program_of(function, shape, dynamic=dynamic, **layers)
    artifact = write(EXPORTER, program, folder, **options)
    for runner in EXPORTER.load(artifact, folder):
        assert error_of(runner, program) <= ROUNDING
    return artifact.facts["rewritten"]


TOKENS, CHANNELS = (2, 12, WIDTH), (2, 2 * WIDTH, 12)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("function", "shape", "count"), [(into, TOKENS, 1), (there_and_back, TOKENS, 2)]
)
def test_convolutions_take_permutations_in(function, shape, count, dynamic, tmp_path):
    found = exported(function, tmp_path, shape, dynamic=dynamic)
    assert found["turn_maps"] == count
    assert "Transpose" not in optimized(tmp_path)


def test_they_would_not(tmp_path):
    exported(there_and_back, tmp_path, TOKENS, rewrite=False)
    assert optimized(tmp_path)["Transpose"] > 0


def test_a_layer_reads_tokens_of_a_map(tmp_path):
    assert exported(out, tmp_path, (2, WIDTH * 4, 12))["turn_maps"] == 1
    assert "Transpose" not in optimized(tmp_path)


def gram(m, x):
    y = as_tokens(m.conv(as_map(m.lin(x))))
    return y @ y.transpose(1, 2)


def of_heads(m, x):
    q = as_tokens(m.conv(as_map(x))).unflatten(-1, (4, -1)).transpose(1, 2)
    return q @ q.transpose(-2, -1)


LEFT = {
    "no convolution": (lambda m, x: as_map(m.lin(x)).relu() * 2, 0),
    "read as tokens too": (
        lambda m, x: (y := x.mT).relu() + m.conv(y.unflatten(2, (4, 3)))[:, 0].flatten(1)[:, None],
        0,
    ),
    "read as a map too": (lambda m, x: as_tokens(m.conv(as_map(x)) + as_map(x).flip(3)), 0),
    # Those before the convolution are turned all the same.
    "before a product of both": (gram, 1),
    "before heads": (of_heads, 1),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case, tmp_path):
    function, others = LEFT[case]
    assert exported(function, tmp_path, TOKENS)["turn_maps"] == others


def test_tokens_of_another_order_are_left(tmp_path):
    def cut_across(m, x):
        y = x.transpose(1, 2).reshape(2 * 3, WIDTH, 2, 2)
        return m.conv(y).reshape(2, -1)

    assert exported(cut_across, tmp_path, TOKENS)["turn_maps"] == 0
