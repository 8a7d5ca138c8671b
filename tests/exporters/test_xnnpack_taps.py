"""Large depthwise convolutions in parts: the same numbers, and the kernels that are meant."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from program_kit import ROUNDING, error_of, program_of, write
from torch import nn

from exporters.executorch import ExecuTorchExporter
from exporters.tflite import TFLiteExporter
from exporters.xnnpack_taps import TAPS, cut_depthwise


def depthwise(*kernel, channels=8, **options):
    return nn.Conv2d(channels, channels, kernel, groups=channels, **options)


def program_with(layer, size=(20, 17)):
    return program_of(
        lambda m, x: m.layer(x).relu() + 1, (2, layer.in_channels, *size), layer=layer
    )


def kernels(program):
    convolutions = program.graph_module().graph.find_nodes(
        op="call_function", target=torch.ops.aten.conv2d.default
    )
    return [tuple(node.args[1].meta["val"].shape[2:]) for node in convolutions]


def assert_same(one, other):
    torch.manual_seed(1)
    x = torch.randn(one.inputs[0].shape)
    (want,), (got,) = one(x), other(x)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=0, atol=ROUNDING * float(want.abs().max()))


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        (depthwise(9, 9, padding=4), [(5, 5), (5, 4), (4, 5), (4, 4)]),
        (depthwise(7, 7, padding=3), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(7, 7, padding=3, bias=False), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(7, 7), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(7, 7, padding=(0, 5), stride=(2, 3)), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(7, 5, padding=9, dilation=(2, 3), stride=2), [(4, 5), (3, 5)]),
        (depthwise(6, 6, padding="same"), [(3, 6), (3, 6)]),
        (depthwise(7, 7, padding="same", dilation=2), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(7, 7, padding="valid"), [(3, 7), (3, 7), (1, 7)]),
        (depthwise(1, 17, padding=(0, 8)), None),
        (depthwise(2, 17, padding=(1, 8)), [(1, 17), (1, 17)]),
        (depthwise(13, 13, padding=6), [(5, 5), (5, 5), (5, 3), (5, 5), (5, 5), (5, 3)]),
    ],
)  # fmt: skip
def test_a_kernel_falls_into_the_fewest_parts_and_computes_the_same(layer, parts):
    program = program_with(layer)
    cut, count = cut_depthwise(program)
    if parts is None:
        assert (cut, count) == (program, 0)
        return
    assert count == 1
    found = kernels(cut)
    assert found[: len(parts)] == parts
    assert all(height * width <= TAPS for height, width in found)
    assert_same(program, cut)


def test_rows_are_cut_where_a_single_one_is_too_long():
    program = program_with(depthwise(1, 51, padding=(0, 25)))
    cut, _ = cut_depthwise(program)
    assert kernels(cut) == [(1, 25), (1, 25), (1, 1)]
    assert_same(program, cut)


@pytest.mark.parametrize(
    "layer",
    [
        depthwise(5, 5, padding=2),
        depthwise(7, 7, channels=4),  # gains nothing
        nn.Conv2d(8, 8, 7, padding=3),
        nn.Conv2d(8, 8, 7, padding=3, groups=2),
        nn.Conv2d(8, 16, 7, padding=3, groups=8),  # two results a channel: XNNPACK has no kernel
    ],
)
def test_what_is_small_or_not_depthwise_stays(layer):
    program = program_with(layer)
    assert cut_depthwise(program) == (program, 0)


def test_a_kernel_that_is_computed_stays():
    def forward(m, x):
        return torch.nn.functional.conv2d(x, m.layer.weight.exp() * x.mean(), groups=8)

    program = program_of(forward, (1, 8, 12, 12), layer=depthwise(7, 7))
    assert cut_depthwise(program) == (program, 0)


def test_the_program_and_a_kernel_used_twice_stay_what_they_are():
    program = program_of(
        lambda m, x: m.layer(m.layer(x)), (1, 8, 12, 12), layer=depthwise(7, 7, padding=3)
    )
    before = program.fingerprint()
    cut, count = cut_depthwise(program)
    assert (count, len(kernels(cut))) == (2, 6)
    assert program.fingerprint() == before
    assert_same(program, cut)


EXPORTERS = [
    pytest.param(TFLiteExporter(), id="tflite"),
    pytest.param(
        ExecuTorchExporter(),
        id="executorch",
        marks=pytest.mark.skipif(
            find_spec("executorch") is None, reason="needs edgevit[executorch]"
        ),
    ),
]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_files_agree_and_tell_what_was_cut(exporter, tmp_path):
    program = program_with(depthwise(9, 9, padding=4))
    artifact = write(exporter, program, tmp_path)
    assert artifact.facts["rewritten"]["cut_depthwise"] == 1
    (runner,) = exporter.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING
