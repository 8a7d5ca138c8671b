"""OpenVINO and ExecuTorch end to end: exported, checked, timed, and said what is missing."""

from importlib.util import find_spec

import pytest

from edgevit.bundle import Bundle
from edgevit.measure.results import read_results

TINY = ("--image-size", "32", "--set", "widths=[8,8,16]", "--set", "depths=[1,1,1]")
WITH_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="needs edgevit[openvino]")
WITH_EXECUTORCH = pytest.mark.skipif(
    find_spec("executorch") is None, reason="needs edgevit[executorch]"
)


@pytest.fixture(autouse=True)
def _own_lock(tmp_path, monkeypatch):
    """Nobody else's measurement is waited for."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


@WITH_OPENVINO
def test_openvino_is_exported_checked_again_and_timed(edgevit, tmp_path):
    outcome = edgevit("export", "elevit", *TINY, "-f", "openvino", "--name", "e", "-o", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "model.openvino" in outcome.out
    assert "verified (OpenVINO 20" in outcome.out

    again = edgevit("verify", tmp_path / "e")
    assert (again.code, again.out.count("verified")) == (0, 1)

    results = tmp_path / "results"
    timed = ("bench", tmp_path / "e", "-f", "openvino", "--runs", "20", "-o", results)
    assert edgevit(*timed).code == 0
    (result,) = read_results(results)
    assert result.subject.backend == "openvino"
    assert result.verification.status == "verified"
    assert result.statistics.n == 20
    assert result.subject.settings["precision"] == "f32"


@WITH_OPENVINO
def test_an_edited_openvino_model_is_noticed(edgevit, tmp_path):
    edgevit("export", "elevit", *TINY, "-f", "openvino", "--name", "e", "-o", tmp_path)
    weights = tmp_path / "e" / "model.openvino" / "model.bin"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 0x40
    weights.write_bytes(content)
    outcome = edgevit("verify", tmp_path / "e")
    assert outcome.code == 1
    assert "model.openvino" in outcome.err


@WITH_OPENVINO
def test_half_precision_does_not_pass_for_full(edgevit, tmp_path, monkeypatch):
    from exporters import openvino

    if "BF16" not in openvino._import().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    monkeypatch.setitem(openvino.SETTINGS, "INFERENCE_PRECISION_HINT", "bf16")
    outcome = edgevit("export", "elevit", *TINY, "-f", "openvino", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "model.openvino, run by OpenVINO" in outcome.err
    assert "does not agree with the program: logits is off by" in outcome.err
    assert not list((tmp_path / "out").glob("*"))


@WITH_OPENVINO
@pytest.mark.parametrize(
    ("flag", "capability", "precision", "tolerance"),
    [("--fp16", "FP16", "f16", 3e-2), ("--bf16", "BF16", "bf16", 2.4e-1)],
)
def test_less_precision_is_asked_for_and_judged_as_such(
    edgevit, tmp_path, flag, capability, precision, tolerance
):
    from exporters import openvino

    edgevit("export", "elevit", *TINY, "-f", "openvino", "--name", "e", "-o", tmp_path)
    timed = ("bench", tmp_path / "e", "-f", "openvino", "--runs", "20", "--no-memory")
    outcome = edgevit(*timed, flag, "-o", tmp_path / "results")
    assert outcome.code == 0, outcome.err
    (result,) = read_results(tmp_path / "results")
    assert (result.verification.status, result.verification.tolerance) == ("verified", tolerance)
    assert result.subject.options["precision"] == precision
    core = openvino._import().Core()
    if capability not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip(f"this processor has no {capability}")
    assert result.subject.settings["precision"] == precision
    (output,) = result.verification.outputs
    # Far more than fp32 may be off: it did compute in less.
    assert output["max_abs"] / output["scale"] > 5e-5


@WITH_OPENVINO
def test_openvino_with_an_open_batch(edgevit, tmp_path):
    export = ("export", "elevit", *TINY, "-f", "openvino", "--dynamic-batch", "--name", "e")
    outcome = edgevit(*export, "-o", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "batch x 3" in outcome.out
    results = tmp_path / "results"
    timed = ("bench", tmp_path / "e", "--batch", "2", "--runs", "20", "-f", "openvino")
    assert edgevit(*timed, "-o", results).code == 0
    (result,) = read_results(results)
    assert (result.subject.batch, result.verification.status) == (2, "verified")


@WITH_OPENVINO
@pytest.mark.slow
@pytest.mark.parametrize("passes", [None, "none"])
def test_sima_is_right_in_openvino_however_it_is_written(edgevit, tmp_path, passes):
    asked = () if passes is None else ("--passes", passes)
    # At fewer tokens than a head is wide there is nothing to move.
    model = ("deit_tiny+sima", "--name", "sima")
    outcome = edgevit("export", *model, "-f", "openvino", *asked, "-o", tmp_path)
    assert outcome.code == 0, outcome.err
    manifest = Bundle.open(tmp_path / "sima").manifest
    moved = {p["name"]: p["rewritten"] for p in manifest["passes"]}.get("scales_past_products", 0)
    assert (moved > 0) == (passes is None)
    (check,) = manifest["artifacts"]["openvino"]["verification"]["checks"]
    assert check["comparisons"][0]["relative"] < check["tolerance"] / 4


@WITH_EXECUTORCH
@pytest.mark.slow
def test_executorch_is_exported_and_timed(edgevit, tmp_path):
    results = tmp_path / "results"
    outcome = edgevit("export", "elevit", *TINY, "-f", "executorch", "--name", "e", "-o", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "verified (ExecuTorch 1." in outcome.out
    timed = ("bench", tmp_path / "e", "-f", "executorch", "--runs", "20", "-o", results)
    assert edgevit(*timed).code == 0
    (result,) = read_results(results)
    assert (result.subject.backend, result.verification.status) == ("executorch", "verified")


@WITH_EXECUTORCH
@pytest.mark.slow
def test_executorch_without_xnnpack(edgevit, tmp_path):
    asked = ("-f", "executorch", "--option", "executorch.xnnpack=false")
    outcome = edgevit("export", "elevit", *TINY, *asked, "-o", tmp_path, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["artifacts"]["executorch"]["facts"]["delegates"] == 0


@WITH_EXECUTORCH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-f", "executorch", "--dynamic-batch"], "a fixed batch for format executorch"),
        (["-f", "executorch", "--option", "executorch.xnnpack=1"], "expected true or false"),
        (["-f", "executorch", "--option", "executorch.xnpack=true"], "did you mean xnnpack"),
    ],
)
def test_what_executorch_cannot_have(edgevit, in_tmp, arguments, message):
    outcome = edgevit("export", "elevit", *TINY, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (in_tmp / "exports").exists()


@pytest.mark.parametrize("name", ["openvino", "executorch"])
def test_a_missing_extra_is_named(edgevit, in_tmp, monkeypatch, name):
    from exporters.base import exporters

    monkeypatch.setattr(type(exporters.get(name)), "missing", lambda _: [name])
    outcome = edgevit("export", "elevit", *TINY, "--format", name)
    assert outcome.code == 3
    assert f"format {name} needs {name}, which is not installed" in outcome.err
    assert f'pip install "edgevit[{name}]"' in outcome.err
    assert f'lacks {name}: pip install "edgevit[{name}]"' in edgevit("doctor").out
    assert name in edgevit("doctor", "--json").json["packages"]
