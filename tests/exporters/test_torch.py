"""The torch format: the captured graph as a file of torch's own."""

from __future__ import annotations

import zipfile

import pytest
from program_kit import ROUNDING, elevit, error_of, program_of, write

from edgevit.errors import ConversionError
from exporters.torch import TorchExporter

EXPORTER = TorchExporter()


def test_the_file_computes_the_same(tmp_path, capfd):
    program = elevit()
    artifact = write(EXPORTER, program, tmp_path)
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program) <= ROUNDING
    assert (runner.proves, runner.precision) == ("verified", "fp32")
    assert runner.label.startswith("torch 2.")
    assert [f.name for f in tmp_path.iterdir()] == [artifact.file] == ["model.pt2"]
    assert capfd.readouterr() == ("", "")


def test_it_tells_what_it_wrote(tmp_path):
    artifact = write(EXPORTER, elevit(), tmp_path)
    assert artifact.backend == "torch"
    assert artifact.layouts == {"image": "NCHW"}
    assert [s.name for s in artifact.inputs + artifact.outputs] == ["image", "logits"]
    facts = artifact.facts
    assert facts["size_bytes"] == (tmp_path / "model.pt2").stat().st_size
    assert facts["operators"]["softmax"] == 3
    assert facts["nodes"] == sum(facts["operators"].values())


@pytest.mark.parametrize("batch", [1, 5])
def test_a_dynamic_batch_stays_dynamic(batch, tmp_path):
    program = elevit(dynamic=True)
    artifact = write(EXPORTER, program, tmp_path)
    assert artifact.facts["dynamic_batch"] is True
    (runner,) = EXPORTER.load(artifact, tmp_path)
    assert error_of(runner, program, batch=batch) <= ROUNDING


def test_several_outputs_keep_their_order(tmp_path):
    program = program_of(lambda m, x: (x * 2, x.sum(1), x - 1), (2, 4, 3))
    (runner,) = EXPORTER.load(write(EXPORTER, program, tmp_path), tmp_path)
    assert error_of(runner, program) <= ROUNDING


def test_the_file_does_not_tell_where_the_code_lay(tmp_path):
    program = elevit()
    write(EXPORTER, program, tmp_path)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        text = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".json"))
    assert b"nn_module_stack" in text
    assert b"elevit.py" not in text


def test_a_damaged_file_is_refused(tmp_path):
    artifact = write(EXPORTER, program_of(lambda m, x: x * 2, (1, 3)), tmp_path)
    (tmp_path / artifact.file).write_bytes(b"not an archive")
    with pytest.raises(ConversionError, match=r"torch .* refuses model\.pt2"):
        EXPORTER.load(artifact, tmp_path)
