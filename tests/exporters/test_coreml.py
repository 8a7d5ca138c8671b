"""The Core ML exporter: options, what it writes, what it says of it, and what it refuses."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mil_kit import ROUNDING, Forward, Saved, captured, save
from mil_package import DATA
from torch import nn

from edgevit.capture import Program, capture
from edgevit.errors import (
    ConversionError,
    MissingExtraError,
    OptionError,
    OutputError,
    VerificationError,
)
from edgevit.tensorspec import TensorSpec
from edgevit.zoo.factory import create_model
from edgevit.zoo.randomize import randomize_
from exporters.base import CannotVerifyError, make_options
from exporters.coreml import CoreMLExporter, CoreMLOptions
from exporters.mil import registry

IMAGE = TensorSpec("image", (1, 3, 64, 64), "image")


def elevit(**options) -> Program:
    return capture(randomize_(create_model("elevit", image_size=64, **options)), [IMAGE])


@pytest.fixture(scope="module")
def program() -> Program:
    """EleViT with one narrow encoder a stage."""
    return elevit(stem=(8, 12), widths=(16, 24, 32), depths=(1, 1, 1))


@pytest.fixture(scope="module")
def half(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(program, tmp_path_factory.mktemp("half"))


@pytest.fixture(scope="module")
def single(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(program, tmp_path_factory.mktemp("single"), precision="fp32")


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"target": "ios14"},
        {"target": "iOS16"},
        {"precision": "int8"},
        {"precision": "fp32", "keep_fp32": ("softmax",)},
        {"compute_units": "all"},
    ],
)
def test_an_option_with_an_impossible_value_is_refused(values):
    with pytest.raises(OptionError) as error:
        make_options(CoreMLExporter(), values)
    assert error.value.option in values


def test_ops_to_keep_in_fp32_can_be_text_with_commas():
    options = CoreMLOptions(keep_fp32="softmax, layer_norm")
    assert options.keep_fp32 == ("softmax", "layer_norm")
    assert CoreMLOptions(keep_fp32="").keep_fp32 == ()
    assert CoreMLOptions().keep_fp32 == "auto"


def test_an_op_that_does_not_exist_cannot_be_kept_in_fp32(tmp_path):
    program = captured(Forward(lambda _, x: x.exp()), (1, 4))
    with pytest.raises(OptionError, match="keep_fp32"):
        save(program, tmp_path, keep_fp32="lyer_norm")
    assert list(tmp_path.iterdir()) == []


def test_a_dynamic_batch_is_refused_with_a_hint(tmp_path):
    program = capture(nn.Linear(4, 4), [TensorSpec("x", (2, 4))], dynamic_batch=True)
    with pytest.raises(OptionError) as error:
        save(program, tmp_path)
    assert "batch" in str(error.value.hint)


# -- what is written -------------------------------------------------------------------------------


def test_an_fp32_package_agrees_to_rounding(single):
    (result,) = single.verify()
    assert (result.status, result.tolerance) == ("reference", 5e-5)
    assert result.worst.relative < ROUNDING


def test_an_fp16_package_is_run_with_and_without_rounding(half):
    weights, rounded = half.verify()
    assert (weights.status, rounded.status) == ("reference", "reference")
    assert weights.label != rounded.label
    assert weights.worst.relative < ROUNDING
    assert 1e-4 < rounded.worst.relative < rounded.tolerance / 10


def test_an_artifact_says_what_it_is(half, single):
    artifact = half.artifact
    assert (artifact.format, artifact.file, artifact.backend) == (
        "coreml",
        "model.mlpackage",
        "coreml",
    )
    assert (artifact.precision, single.artifact.precision) == ("fp16", "fp32")
    assert artifact.inputs == (IMAGE,)
    assert artifact.outputs == (TensorSpec("logits", (1, 10)),)
    assert artifact.layouts == {"image": "NCHW"}
    assert artifact.facts["options"] == {
        "target": "ios16",
        "precision": "fp16",
        "keep_fp32": "auto",
    }
    assert "kept_fp32" not in artifact.facts
    assert artifact.facts["specification_version"] == 7
    assert artifact.facts["ops"]["softmax"] == 3
    assert artifact.warnings == ()
    assert set(artifact.versions) == {"coremltools", "torch"}


def test_the_size_of_the_weights_follows_the_precision(half, single):
    parameters = sum(t.numel() for t in half.program.exported.state_dict.values())
    wide, narrow = (s.artifact.facts["weights_bytes"] for s in (single, half))
    assert 2 * parameters * 0.9 < narrow < 0.6 * wide


def test_inputs_and_outputs_are_fp32_under_the_names_of_the_program(half):
    assert [(t.name, t.dtype) for t in half.mil.inputs] == [("image", "fp32")]
    assert [(t.name, t.dtype) for t in half.mil.outputs] == [("logits", "fp32")]


def test_ops_carry_the_names_of_the_layers(single):
    names = {op.name for op in single.mil.ops}
    assert {"stem_0_2_gelu", "stages_0_0_1_inner_softmax", "stages_2_1_1_inner_softmax"} <= names


@pytest.mark.parametrize(("target", "version"), [("ios15", 6), ("ios17", 8), ("ios18", 9)])
def test_a_target_sets_the_version_of_the_file(target, version, tmp_path):
    layer = nn.Linear(8, 8)
    saved = save(
        captured(Forward(lambda m, x: m.layer(x), layer=layer), (1, 8)), tmp_path, target=target
    )
    assert saved.artifact.facts["specification_version"] == version
    assert {result.status for result in saved.verify()} == {"reference"}


def test_the_same_program_gives_the_same_bytes(program, half, tmp_path):
    again = save(program, tmp_path)
    digests = [
        {
            file.relative_to(saved.path): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in saved.path.rglob("*")
            if file.is_file()
        }
        for saved in (half, again)
    ]
    assert digests[0] == digests[1]
    assert set(digests[0]) == {
        Path("Manifest.json"),
        DATA / "model.mlmodel",
        DATA / "weights" / "weight.bin",
    }


def test_an_older_package_in_the_same_place_is_replaced(tmp_path):
    first = save(captured(Forward(lambda _, x: x.exp()), (1, 4)), tmp_path, precision="fp32")
    second = save(captured(Forward(lambda _, x: x.sin()), (1, 6)), tmp_path, precision="fp32")
    assert second.error() < ROUNDING
    with pytest.raises(VerificationError, match=r"the inputs x \(1, 6\) fp32, expected x \(1, 4\)"):
        first.verify()


def test_several_inputs_and_outputs_keep_their_order(tmp_path):
    module = Forward(lambda _, x, y: (y - x, x * 2, y @ x.mT))
    saved = save(captured(module, (1, 4, 8), (1, 4, 8)), tmp_path, precision="fp32")
    assert [spec.name for spec in saved.artifact.inputs] == ["x", "y"]
    assert [spec.name for spec in saved.artifact.outputs] == ["output_0", "output_1", "output_2"]
    assert saved.error() < ROUNDING


def test_what_the_passes_did_not_fold_is_not_folded(tmp_path):
    scale = torch.rand(4, 1, 1) + 0.5
    module = Forward(
        lambda m, x: m.norm(m.first(x)) + m.second(x) * scale,
        first=nn.Conv2d(3, 4, 3),
        norm=nn.BatchNorm2d(4),
        second=nn.Conv2d(3, 4, 3),
    )
    saved = save(captured(randomize_(module).eval(), (1, 3, 8, 8)), tmp_path)
    ops = saved.artifact.facts["ops"]
    assert (ops["conv"], ops["batch_norm"], ops["mul"]) == (2, 1, 1)
    assert saved.error() < ROUNDING


def test_an_input_that_is_not_used_stays(tmp_path):
    saved = save(captured(Forward(lambda _, x, y: y.exp()), (1, 4), (1, 4)), tmp_path)
    assert [t.name for t in saved.mil.inputs] == ["x", "y"]
    assert {result.status for result in saved.verify()} == {"reference"}


# -- range -----------------------------------------------------------------------------------------


def loud(gain: float) -> Program:
    return captured(Forward(lambda m, x: m.norm(x * gain) + x, norm=nn.LayerNorm(8)), (1, 6, 8))


def test_an_overflow_is_told_with_the_layer_and_what_to_do(tmp_path):
    saved = save(loud(2000), tmp_path / "loud", keep_fp32="")
    (warning,) = saved.artifact.warnings
    assert "layer_norm norm_layer_norm" in warning
    assert "keep_fp32=layer_norm" in warning
    assert saved.verify()[1].status == "mismatch"
    kept = save(loud(2000), tmp_path / "kept", keep_fp32="layer_norm")
    assert kept.artifact.warnings == ()
    assert {result.status for result in kept.verify()} == {"reference"}


def test_what_overflows_stays_in_fp32_by_itself_and_the_artifact_says_so(tmp_path):
    program = captured(
        Forward(
            lambda m, x: m.after(m.norm(x * 2000.3)) + x,
            norm=nn.LayerNorm(8),
            after=nn.Linear(8, 8),
        ),
        (1, 6, 8),
    )
    for tensor in program.exported.state_dict.values():
        nn.init.normal_(tensor)
    saved = save(program, tmp_path)
    (note,) = saved.artifact.warnings
    assert "layer_norm norm_layer_norm" in note
    assert "layer_norm stays in fp32" in note
    assert saved.artifact.facts["kept_fp32"] == {
        "ops": {"layer_norm": 1},
        "tensors": ["norm.weight", "norm.bias"],
        "factors": [],
    }
    exact, rounded = saved.verify()
    assert exact.worst.relative < ROUNDING
    assert rounded.status == "reference"


def test_a_white_picture_finds_what_noise_does_not(tmp_path):
    signs = torch.tensor([1.0, -1.0]).repeat(32)
    module = Forward(
        lambda m, x: m.norm(x.flatten(1).sum(1, keepdim=True) * signs), norm=nn.LayerNorm(64)
    )
    picture = capture(module, [TensorSpec("image", (1, 3, 8, 8), "image")])
    plain = capture(module, [TensorSpec("x", (1, 3, 8, 8))])
    kept = save(picture, tmp_path / "picture").artifact.facts.get("kept_fp32", {})
    assert kept.get("ops") == {"layer_norm": 1}
    assert "kept_fp32" not in save(plain, tmp_path / "plain").artifact.facts


def test_a_factor_of_an_op_in_fp32_is_not_rounded(tmp_path):
    program = captured(Forward(lambda _, x: (x * 0.1234567).exp() + 0.7654321), (1, 50))
    saved = save(program, tmp_path, keep_fp32="mul")
    assert saved.artifact.facts["kept_fp32"]["factors"] == [0.1234567]
    assert saved.error() < ROUNDING


def test_a_stream_too_large_for_fp16_names_full_precision(tmp_path):
    program = captured(Forward(lambda _, x: (x * 300).square().square() * 1e-9), (1, 6))
    saved = save(program, tmp_path)
    *kept, left = saved.artifact.warnings
    assert "mul stays in fp32" in kept[0]
    assert "precision=fp32 keeps all" in left or saved.verify()[1].status == "reference"


def test_outputs_that_are_not_finite_are_an_error_that_names_the_op(tmp_path):
    program = captured(Forward(lambda _, x: (x * 300).square().square()), (1, 6))
    saved = save(program, tmp_path, keep_fp32="")
    with pytest.raises(VerificationError, match="fp16 overflows in mul") as error:
        saved.verify()
    assert "keep_fp32" in str(error.value.hint)


def test_values_near_the_limit_are_told(tmp_path):
    saved = save(captured(Forward(lambda _, x: (x.tanh() * 30000).sin()), (1, 50)), tmp_path)
    (warning,) = saved.artifact.warnings
    assert "near fp16's 65504" in warning
    assert saved.artifact.facts["largest"][0]["max_abs"] > 16000


# -- refusals --------------------------------------------------------------------------------------


def test_a_failure_names_the_operator_and_the_layer(tmp_path):
    class Transform(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).real

    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), Transform()))
    with pytest.raises(ConversionError, match=r"cannot convert .+ of layer 1\.1: ") as error:
        save(captured(model, (1, 8)), tmp_path)
    assert error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        save(captured(Forward(lambda _, x: x.exp()), (1, 4)), tmp_path / "file")


def test_an_op_that_the_interpreter_lacks_leaves_the_file_unverified(tmp_path, monkeypatch):
    monkeypatch.delitem(registry.OPS, "exp")
    saved = save(captured(Forward(lambda _, x: x.exp()), (1, 4)), tmp_path)
    assert "the range of its values was not checked" in saved.artifact.warnings[0]
    (result,) = saved.verify()
    assert (result.status, result.reason) == (
        "unverified",
        "the reference interpreter does not know the Core ML ops exp",
    )
    with pytest.raises(CannotVerifyError):
        CoreMLExporter().load(saved.artifact, saved.folder)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": (TensorSpec("picture", IMAGE.shape),)},
        {"inputs": (IMAGE.with_batch(2),)},
        {"outputs": (TensorSpec("logits", (1, 1000)),)},
        {"outputs": (TensorSpec("logits", (1, 10), dtype="float16"),)},
        {"inputs": (IMAGE, IMAGE)},
    ],
)
def test_a_package_that_is_not_what_the_artifact_says_is_refused(change, half):
    claimed = replace(half.artifact, **change)
    with pytest.raises(VerificationError, match="the package declares"):
        CoreMLExporter().load(claimed, half.folder)


def test_without_coremltools_the_extra_is_named(monkeypatch, program, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert CoreMLExporter().missing() == ["coremltools"]
    with pytest.raises(MissingExtraError, match="needs coremltools"):
        save(program, tmp_path)


# -- manners ---------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys; from exporters.coreml import CoreMLExporter, CoreMLOptions; "
        "CoreMLOptions(); assert CoreMLExporter().missing() == []; "
        "assert not {'torch', 'coremltools'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_neither_writing_nor_reading_says_anything(tmp_path):
    code = f"""
import torch
from pathlib import Path
from edgevit.capture import capture
from edgevit.tensorspec import TensorSpec
from exporters.coreml import CoreMLExporter, CoreMLOptions

model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
program = capture(model, [TensorSpec("x", (1, 4))])
exporter, folder = CoreMLExporter(), Path({str(tmp_path)!r})
exporter.load(exporter.export(program, folder, CoreMLOptions()), folder)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# -- on a Mac --------------------------------------------------------------------------------------


def test_on_a_mac_core_ml_itself_comes_first(half, monkeypatch):
    """What is asked of coremltools there; its answer is made up, since it runs nothing here."""
    import coremltools

    asked, read = [], coremltools.models.MLModel

    class Model:
        def predict(self, named):
            asked.append({name: array.dtype for name, array in named.items()})
            return {"logits": np.full((1, 10), 7, np.float32)}

    def model(path, **options):
        if "skip_model_load" in options:
            return read(path, **options)
        asked.append((path, options))
        return Model()

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    monkeypatch.setattr("coremltools.models.MLModel", model)
    native, *references = CoreMLExporter().load(half.artifact, half.folder)
    assert (native.label, native.proves, native.precision) == (
        "Core ML of macOS 15.5, CPU only",
        "verified",
        "fp16",
    )
    assert [runner.proves for runner in references] == ["reference", "reference"]
    (out,) = native.run([np.zeros(IMAGE.shape, np.float32)])
    assert out.tolist() == [[7] * 10]
    cpu = coremltools.ComputeUnit.CPU_ONLY
    assert asked == [(str(half.path), {"compute_units": cpu}), {"image": np.float32}]


def test_a_package_that_core_ml_refuses_is_an_error(half, monkeypatch):
    import coremltools

    read = coremltools.models.MLModel

    def model(path, **options):
        if "skip_model_load" in options:
            return read(path, **options)
        raise RuntimeError("Error compiling model")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("coremltools.models.MLModel", model)
    with pytest.raises(ConversionError, match="Core ML refuses the package: Error compiling"):
        CoreMLExporter().load(half.artifact, half.folder)


# -- whole models ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_elevit_is_exported_and_agrees(precision, tmp_path):
    saved = save(elevit(), tmp_path, precision=precision)
    results = saved.verify()
    assert {result.status for result in results} == {"reference"}
    if precision == "fp32":
        assert results[0].worst.relative < ROUNDING
