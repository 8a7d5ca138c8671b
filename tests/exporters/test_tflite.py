"""The TFLite format: LiteRT's interpreter computes the same, from the tensors that were named."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from program_kit import ROUNDING, block, elevit, error_of, program_of, write
from torch import Tensor, nn

from edgevit.capture import capture
from edgevit.errors import ConversionError, OptionError
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.randomize import randomize_
from exporters import tflite_checks
from exporters.base import CannotVerifyError
from exporters.tflite import TFLiteExporter, TFLiteOptions

EXPORTER = TFLiteExporter()


class Tiny(nn.Module):
    """An image and a vector in, two outputs: (1, 3, 8, 8) and (1, 5) to (1, 5) and (1, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 5)

    def forward(self, zoom: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.conv(zoom).mean((-2, -1))
        return self.head(pooled) + offset, pooled.relu()


def tiny():
    torch.manual_seed(0)
    # In alphabetical order, which the signature has, they would be the other way round.
    specs = [TensorSpec("zoom", (1, 3, 8, 8), "image"), TensorSpec("offset", (1, 5))]
    return capture(randomize_(Tiny()), specs)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The small module in a file, to be looked at only: the program, the artifact, the folder."""
    folder = tmp_path_factory.mktemp("tiny")
    program = tiny()
    return program, write(EXPORTER, program, folder), folder


def interpreter_of(folder):
    return tflite_checks.open_interpreter(folder / "model.tflite")


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_small_module_agrees_in_both_layouts(layout, tmp_path, capfd):
    program = tiny()
    artifact = write(EXPORTER, program, tmp_path, layout=layout)
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING
    assert (runner.proves, runner.precision) == ("verified", "fp32")
    assert runner.label.startswith("LiteRT 2.")
    assert capfd.readouterr() == ("", "")

    image = {"nchw": (1, 3, 8, 8), "nhwc": (1, 8, 8, 3)}[layout]
    assert [s.shape for s in artifact.inputs] == [image, (1, 5)]
    assert artifact.layouts == {"zoom": layout.upper()}
    assert artifact.facts["layout"] == layout
    assert artifact.facts["transposes"] == {"nchw": 2, "nhwc": 1}[layout]

    interpreter = interpreter_of(tmp_path)
    found = [tuple(d["shape"].tolist()) for d in interpreter.get_input_details()]
    assert found == [image, (1, 5)]
    signature = interpreter.get_signature_runner()
    assert set(signature.get_input_details()) == {"zoom", "offset"}
    assert set(signature.get_output_details()) == {"output_0", "output_1"}


def test_it_tells_what_it_wrote(written):
    _, artifact, folder = written
    assert [f.name for f in folder.iterdir()] == [artifact.file] == ["model.tflite"]
    facts = artifact.facts
    assert facts["size_bytes"] == (folder / "model.tflite").stat().st_size
    assert facts["operators"]["CONV_2D"] == 1
    assert facts["operators"]["TRANSPOSE"] == facts["transposes"]
    assert facts["nodes"] == sum(facts["operators"].values())
    ran = [d["op_name"] for d in interpreter_of(folder)._get_ops_details()]
    assert facts["nodes"] == len([name for name in ran if name != "DELEGATE"])
    assert artifact.versions.keys() == {"torch", "litert-torch", "ai-edge-litert"}
    assert artifact.warnings == ()


def test_many_transposes_are_worth_a_warning(tmp_path):
    def turning(m, x):
        for _ in range(5):
            x = torch.tanh(torch.exp(-x.abs()).permute(1, 2, 0).sin().permute(1, 2, 0)) + 0.1 * x
        return x

    artifact = write(EXPORTER, program_of(turning, (3, 3, 3)), tmp_path)
    transposes, nodes = artifact.facts["transposes"], artifact.facts["nodes"]
    assert artifact.warnings[0].startswith(f"{transposes} of {nodes} operators are transposes")


def test_other_layouts_are_refused():
    with pytest.raises(OptionError) as caught:
        TFLiteOptions(layout="NHWC")
    assert str(caught.value) == "layout: expected nchw or nhwc, got 'NHWC'"


def test_channels_last_needs_an_image(tmp_path):
    with pytest.raises(OptionError, match="without an image input"):
        write(EXPORTER, block("elementwise", projections=False), tmp_path, layout="nhwc")


def test_a_dynamic_batch_is_refused(tmp_path):
    program = program_of(lambda m, x: x * 2, (1, 4), dynamic=True)
    with pytest.raises(OptionError, match="dynamic_batch: expected a fixed batch") as caught:
        write(EXPORTER, program, tmp_path)
    assert "without dynamic batch" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


class Inner(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_an_operator_without_conversion_is_named_with_its_layer(tmp_path, capfd):
    spectrum = Inner(lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)
    program = program_of(lambda m, x: m.mix(x), (1, 4, 8), mix=spectrum)
    with pytest.raises(ConversionError) as caught:
        write(EXPORTER, program, tmp_path)
    assert str(caught.value).startswith("TFLite: cannot convert aten::fft_fft, used in mix: ")
    assert capfd.readouterr() == ("", "")


def test_a_file_that_the_interpreter_refuses_is_not_written(tmp_path, capfd):
    program = program_of(
        lambda m, x: m.unit(x), (1, 4, 8), unit=Inner(lambda x: x @ torch.eye(8) + x)
    )
    with pytest.raises(ConversionError, match=r"LiteRT .* refuses model\.tflite: .*IOTA") as caught:
        write(EXPORTER, program, tmp_path)
    assert caught.value.hint == (
        "eye, used in unit, becomes STABLEHLO_IOTA; make its result a buffer of the module"
    )
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_is_refused(written, tmp_path):
    _, artifact, _ = written
    (tmp_path / artifact.file).write_bytes(b"not a flatbuffer at all")
    with pytest.raises(ConversionError, match=r"refuses model\.tflite"):
        EXPORTER.load(artifact, tmp_path)


def test_tensors_in_another_order_are_noticed(written):
    program, _, folder = written
    interpreter = interpreter_of(folder)
    named, ordered = (
        interpreter.get_signature_runner().get_input_details(),
        interpreter.get_input_details(),
    )
    tflite_checks._check_order(named, ordered, program.inputs)
    with pytest.raises(ConversionError, match="where zoom, offset was expected"):
        tflite_checks._check_order(named, ordered[::-1], program.inputs)


def test_the_older_runtime_does_where_the_new_one_is_missing(monkeypatch):
    real = tflite_checks.find_spec
    monkeypatch.setattr(
        tflite_checks, "find_spec", lambda n: real("sys") if n == "tflite_runtime" else None
    )
    monkeypatch.setattr(tflite_checks, "version", {"tflite-runtime": "2.14.0"}.__getitem__)
    assert tflite_checks.runtime_label() == "tflite_runtime 2.14.0"
    monkeypatch.setattr(tflite_checks, "find_spec", lambda n: None)
    with pytest.raises(CannotVerifyError, match="neither ai_edge_litert nor tflite_runtime"):
        tflite_checks.runtime_label()


def test_the_older_runtime_is_used_the_same_way(written, monkeypatch):
    program, artifact, folder = written
    import ai_edge_litert
    import ai_edge_litert.interpreter

    real = tflite_checks.find_spec
    monkeypatch.setitem(sys.modules, "tflite_runtime", ai_edge_litert)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", ai_edge_litert.interpreter)
    monkeypatch.setattr(
        tflite_checks, "find_spec", lambda n: real("sys") if n == "tflite_runtime" else None
    )
    monkeypatch.setattr(tflite_checks, "version", {"tflite-runtime": "2.14.0"}.__getitem__)
    (runner,) = EXPORTER.load(artifact, folder)
    assert runner.label == "tflite_runtime 2.14.0"
    assert error_of(runner, program) <= ROUNDING


# -- whole models and blocks -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_elevit_agrees(layout, tmp_path):
    program = elevit(64, batch=2)
    artifact = write(EXPORTER, program, tmp_path, layout=layout)
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elementwise", "softmax"])
@pytest.mark.parametrize("projections", [True, False])
def test_blocks_agree(name, projections, tmp_path):
    program = block(name, projections=projections)
    artifact = write(EXPORTER, program, tmp_path)
    assert [s.name for s in artifact.inputs] == [s.name for s in program.inputs]
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING


@pytest.mark.slow
def test_more_than_ten_outputs_keep_their_order(tmp_path):
    program = program_of(lambda m, x: tuple(x * i + i for i in range(1, 13)), (1, 5))
    artifact = write(EXPORTER, program, tmp_path)
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING
    (tenth,) = (o for o in artifact.outputs if o.name == "output_10")
    outputs = runner.run([np.ones((1, 5), np.float32)])
    assert outputs[artifact.outputs.index(tenth)] == pytest.approx(22)
