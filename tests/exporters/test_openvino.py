"""The OpenVINO format: its runtime computes the same, in fp32 whatever the processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from program_kit import ROUNDING, block, elevit, error_of, program_of, write
from runtime_kit import tiny
from torch import nn

from edgevit.errors import ConversionError, OptionError
from edgevit.verify import tolerance_for
from exporters import openvino as module
from exporters.base import CannotVerifyError, exporters, make_options
from exporters.openvino import GRAPH, OpenVINOExporter, OpenVINOOptions

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs edgevit[openvino]")
EXPORTER = OpenVINOExporter()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The small module in a file, to be looked at only: the program, the artifact, the folder."""
    folder = tmp_path_factory.mktemp("tiny")
    program = tiny()
    return program, write(EXPORTER, program, folder), folder


def test_a_small_module_agrees(tmp_path, capfd):
    program = tiny()
    artifact = write(EXPORTER, program, tmp_path)
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING
    assert (runner.proves, runner.precision) == ("verified", "fp32")
    assert runner.label.startswith("OpenVINO 20")
    assert capfd.readouterr() == ("", "")


def test_it_tells_what_it_wrote(written):
    program, artifact, folder = written
    path = folder / "model.openvino"
    assert [f.name for f in folder.iterdir()] == [artifact.file] == ["model.openvino"]
    assert {f.name for f in path.iterdir()} == {"model.xml", "model.bin"}
    assert (artifact.inputs, artifact.outputs) == (program.inputs, program.outputs)
    assert artifact.layouts == {"zoom": "NCHW"}
    facts = artifact.facts
    assert facts["size_bytes"] == sum(f.stat().st_size for f in path.iterdir())
    assert facts["operators"]["Convolution"] == 1
    assert facts["nodes"] == (path / GRAPH).read_text().count("<layer ")
    assert artifact.versions.keys() == {"torch", "openvino"}


def test_the_file_has_the_names_and_sizes_of_the_program(written):
    _, _, folder = written
    compiled = module._opened(folder / "model.openvino")
    assert [(p.get_any_name(), tuple(p.shape)) for p in compiled.inputs] == [
        ("zoom", (1, 3, 8, 8)),
        ("spare", (1, 2)),
        ("offset", (1, 5)),
    ]
    assert [p.get_any_name() for p in compiled.outputs] == ["output_0", "output_1"]


def test_other_names_are_noticed(written):
    program, _, folder = written
    compiled = module._opened(folder / "model.openvino")
    module._check_names(compiled.inputs, program.inputs)
    with pytest.raises(ConversionError, match="where offset, spare, zoom was expected"):
        module._check_names(compiled.inputs, program.inputs[::-1])


def test_weights_are_stored_in_full(written):
    program, _, folder = written
    stored = (folder / "model.openvino" / "model.bin").read_bytes()
    weight = program.exported.state_dict["head.bias"].detach().numpy()
    assert weight.tobytes() in stored


def test_the_same_program_gives_the_same_file(written, tmp_path):
    program, artifact, folder = written
    write(EXPORTER, program, tmp_path)
    for name in ("model.xml", "model.bin"):
        again, first = (f / artifact.file / name for f in (tmp_path, folder))
        assert again.read_bytes() == first.read_bytes()


def test_the_file_tells_no_folder_of_the_user(written):
    _, _, folder = written
    text = (folder / "model.openvino" / GRAPH).read_text()
    assert str(Path(__file__).parent) not in text
    assert str(Path.home()) not in text


def test_a_dynamic_batch_is_run_with_other_rows(tmp_path):
    program = tiny(dynamic=True)
    artifact = write(EXPORTER, program, tmp_path)
    alone, among = EXPORTER.load(artifact, tmp_path)
    assert among.label.endswith(", batch x 3")
    for runner in (alone, among):
        for batch in (1, 2, 5):
            assert error_of(runner, program, batch=batch) <= ROUNDING


def test_rows_that_leak_into_others_are_noticed(tmp_path):
    program = program_of(lambda m, x: x + x.sum(0, keepdim=True), (1, 4), dynamic=True)
    artifact = write(EXPORTER, program, tmp_path)
    alone, among = EXPORTER.load(artifact, tmp_path)
    assert error_of(alone, program) <= ROUNDING
    assert error_of(among, program) > 0.1


def test_a_fixed_batch_is_fixed(written):
    _, artifact, folder = written
    (runner,) = EXPORTER.load(artifact, folder)
    with pytest.raises(RuntimeError, match="shape"):
        runner.run([np.zeros((2, *s.shape[1:]), np.float32) for s in artifact.inputs])


def test_an_operator_without_conversion_is_named_with_its_layer(tmp_path, capfd):
    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    program = program_of(lambda m, x: m.wave(x), (1, 4), wave=Bessel())
    with pytest.raises(ConversionError) as caught:
        write(EXPORTER, program, tmp_path)
    said = "OpenVINO: cannot convert aten::special_bessel_j0, used in wave: "
    assert str(caught.value).startswith(said)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_damaged_file_is_refused(name, tmp_path, capfd):
    artifact = write(EXPORTER, tiny(), tmp_path)
    (tmp_path / artifact.file / name).write_bytes(b"nothing of the kind")
    with pytest.raises(ConversionError, match=r"OpenVINO .* refuses model\.openvino: ") as caught:
        EXPORTER.load(artifact, tmp_path)
    assert "export again" in caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_half_precision_would_be_noticed(tmp_path, monkeypatch):
    program = elevit(32)
    artifact = write(EXPORTER, program, tmp_path)
    monkeypatch.setitem(module.SETTINGS, "INFERENCE_PRECISION_HINT", "bf16")
    if "BF16" not in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) > 10 * tolerance_for("fp32")


def _openvino():
    return module._import()


def test_there_are_no_options():
    assert make_options(EXPORTER, {}) == OpenVINOOptions()
    with pytest.raises(OptionError, match="precision: expected an option of format") as caught:
        make_options(EXPORTER, {"precision": "fp16"})
    assert "no options" in caught.value.hint


def test_it_is_found_by_its_name():
    assert type(exporters.get("openvino")) is OpenVINOExporter


def test_without_the_package_nothing_is_proved(written, monkeypatch):
    _, artifact, folder = written
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert EXPORTER.missing() == ["openvino"]
    with pytest.raises(CannotVerifyError, match="openvino is not installed"):
        EXPORTER.load(artifact, folder)


def test_asking_what_is_missing_imports_nothing():
    code = """
import sys
from exporters.base import exporters
assert exporters.get("openvino").missing() == []
assert exporters.get("executorch").missing() in ([], ["executorch"])
print(sorted({"torch", "openvino", "executorch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_nothing_is_kept_in_the_users_home(tmp_path):
    home, folder = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    folder.mkdir()
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
from program_kit import write
from runtime_kit import tiny
from exporters.openvino import OpenVINOExporter
write(OpenVINOExporter(), tiny(), Path({str(folder)!r}))
"""
    environment = {**os.environ, "HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert (folder / "model.openvino" / GRAPH).exists()
    assert not (home / "intel").exists()


@pytest.mark.parametrize("dynamic", [False, True])
def test_elevit_agrees(dynamic, tmp_path):
    program = elevit(64, batch=2, dynamic=dynamic)
    artifact = write(EXPORTER, program, tmp_path)
    for runner in EXPORTER.load(artifact, tmp_path):
        assert error_of(runner, program) <= ROUNDING


@pytest.mark.parametrize("name", ["elementwise", "softmax", "sima", "xca", "linformer"])
def test_blocks_agree(name, tmp_path):
    program = block(name, projections=name == "linformer")
    artifact = write(EXPORTER, program, tmp_path)
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING
