"""The commands end to end on a tiny model: exit codes, stdout for results, stderr for the rest."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from jsonschema import Draft202012Validator

from edgevit.measure.results import SCHEMA, read_results

TINY = ("--image-size", "32", "--set", "widths=[8,8,16]", "--set", "depths=[1,1,1]")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of two quick formats."""
    from edgevit.verbs.export import export

    return export(
        "elevit",
        formats=["onnx", "torch"],
        output=tmp_path_factory.mktemp("exports"),
        name="tiny",
        image_size=32,
        model_options={"widths": (8, 8, 16), "depths": (1, 1, 1)},
    ).path


@pytest.fixture(scope="module")
def results(bundle, tmp_path_factory):
    """Results of a short bench of it."""
    from edgevit.verbs.bench import bench

    folder = tmp_path_factory.mktemp("results")
    bench([bundle], runs=30, output=folder)
    return folder


def test_export_prints_what_was_written(edgevit, tmp_path):
    outcome = edgevit("export", "elevit", *TINY, "-o", tmp_path)
    assert outcome.code == 0
    assert "fold_batchnorm: 18 rewritten, 0 refused" in outcome.out
    assert "model.onnx" in outcome.out
    assert "verified (onnxruntime" in outcome.out
    assert "write onnx" in outcome.err


def test_export_for_a_board(edgevit, tmp_path):
    outcome = edgevit("export", "elevit", *TINY, "--for", "jetson-nano", "-o", tmp_path, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["path"].endswith("-jetson-nano")
    facts = outcome.json["artifacts"]["onnx"]["facts"]
    assert (facts["opset"], facts["ir_version"]) == (15, 8)
    assert outcome.json["target"]["device"] == "jetson-nano"


def test_export_as_json_is_the_manifest_alone(edgevit, tmp_path):
    outcome = edgevit("export", "elevit", *TINY, "-f", "torch", "-o", tmp_path, "--json")
    assert outcome.json["artifacts"]["torch"]["verification"]["status"] == "verified"
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["elevitt"], 2, "did you mean elevit"),
        (["elevit", "--format", "onxx"], 2, "unknown format 'onxx'"),
        (["elevit", "--format", "coreml", "--opset", "17"], 2, "an option of format coreml"),
        (["elevit", "--option", "onnx.opest=1"], 2, "did you mean opset"),
        (["elevit", "--option", "opset=1"], 2, "format.name=value"),
        (["elevit", "--opset", "9"], 2, "opset: expected a whole number from 13"),
        (["elevit", "--num-classes", "0"], 2, "num_classes: expected"),
        (["elevit", "--image-size", "100"], 2, "multiples of 32"),
        (["elevit", "--weights", "none.pth"], 2, "no weights file"),
        (["nowhere:make"], 2, "No module named 'nowhere'"),
        (["elevit", "--for", "jetson-nanno"], 2, "did you mean jetson-nano"),
        (["elevit", "--for", "jetson-nano", "--opset", "17"], 2, "at most opset 15, which is"),
        (["elevit", "--for", "jetson-nano", "-f", "tflite"], 2, "no runtime for tflite"),
    ],
)
def test_export_of_what_cannot_be(edgevit, in_tmp, arguments, code, message):
    outcome = edgevit("export", *arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.out == ""
    assert not (in_tmp / "exports").exists()


def test_relu_says_how_far_the_model_moved(edgevit, tmp_path):
    outcome = edgevit(
        "export", "elevit", *TINY, "-f", "torch", "--activation", "relu", "-o", tmp_path
    )
    assert "ReLU changes the model: outputs move by" in outcome.err
    assert "fine-tune" in outcome.err


def test_verify_passes_and_then_finds_the_edit(edgevit, bundle, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    outcome = edgevit("verify", copy)
    assert outcome.code == 0
    assert outcome.out.count("verified") == 2
    with (copy / "model.onnx").open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"edited")
    outcome = edgevit("verify", copy)
    assert outcome.code == 1
    assert "model.onnx has changed since it was written" in outcome.err


def test_verify_of_one_format(edgevit, bundle):
    assert list(edgevit("verify", bundle, "-f", "torch", "--json").json) == ["torch"]
    outcome = edgevit("verify", bundle, "-f", "coreml")
    assert (outcome.code, "has no coreml file" in outcome.err) == (2, True)


def test_bench_writes_results_and_prints_a_table(edgevit, bundle, tmp_path):
    outcome = edgevit("bench", bundle, "--runs", "20", "--threads", "1,2", "-o", tmp_path)
    assert outcome.code == 0, outcome.err
    found = read_results(tmp_path)
    assert {(r.subject.format, r.subject.threads) for r in found} == {
        ("onnx", 1),
        ("onnx", 2),
        ("torch", 1),
        ("torch", 2),
    }
    for result in found:
        assert result.verification.status == "verified"
        assert result.statistics.n == 20
        assert result.load_ms > 0
        assert result.first_ms > 0
        assert result.memory.peak_rss_bytes > result.memory.baseline_bytes
        assert result.conditions.before["cpu_seconds"]["busy"] > 0
    assert "elevit" in outcome.out
    schema = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for file in tmp_path.glob("*.json"):
        schema.validate(json.loads(file.read_text()))


def test_bench_of_blocks(edgevit, in_tmp):
    outcome = edgevit(
        *("bench", "--block", "elementwise", "--block", "softmax", "--shape", "16,8"),
        *("--heads", "2", "--format", "onnx", "--runs", "20", "--json"),
    )
    assert outcome.code == 0, outcome.err
    assert [r["subject"]["name"] for r in outcome.json] == [
        "elementwise-n16-d8-h2",
        "softmax-n16-d8-h2",
    ]
    assert {r["subject"]["kind"] for r in outcome.json} == {"block"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["elevit", "--suite", "default"], "brings its own subjects"),
        (["--suite", "sima-table4"], "did you mean sima-table3"),
        (["elevit", "--device", "rpi44"], "unknown device"),
        (["elevit", "--device", "local,local"], "different devices"),
        (["exports/none"], "is no bundle"),
        (["elevit", "--threads", "0"], "threads: expected"),
        (["elevit", "--threads", "one"], "--threads: expected"),
        (["elevit", "--runs", "0"], "runs: expected"),
        (["--block", "sofmax"], "did you mean softmax"),
        (["--block", "softmax", "--shape", "16"], "tokens,width"),
        (["--block", "softmax", "--shape", "16,9", "--total-width"], "8 heads do not divide"),
        (["--block", "elementwise", "--shape", "15,8"], "square number"),
        (["--block", "softmax", "--num-classes", "3"], "num_classes"),
        (["--block", "softmax", "--sweep", "x=3"], "sweep: expected axes n, d, h"),
        (["--block", "softmax", "--sweep", "n"], "--sweep: expected axes and sizes"),
        (["--block", "sima", "--order", "auto"], "order: expected nn or dd"),
        (["elevit", "--sweep", "n=3"], "--sweep is for blocks"),
        (["elevit", "--order", "nn"], "--order is for blocks"),
        (["elevit", "--runs", "9", "--interval", "0.1"], "give one"),
        (["elevit", "--interval", "2"], "interval: expected a share"),
        (["elevit", "--compute", "npu"], "compute: expected cpu or gpu or ane or all"),
        (["elevit", "--runtime", "tensorrt"], "runtime: expected"),
    ],
)
def test_bench_of_what_cannot_be(edgevit, in_tmp, arguments, message):
    outcome = edgevit("bench", *arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    assert message in outcome.err
    assert not (in_tmp / "results").exists()


def test_formats_that_the_device_does_not_run_are_left_out(edgevit, bundle, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["artifacts"] = {
        "coreml": manifest["artifacts"]["onnx"],
        "onnx": manifest["artifacts"]["onnx"],
    }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    outcome = edgevit("bench", copy, "--runs", "20", "--no-memory", "-o", tmp_path / "results")
    assert outcome.code == 0, outcome.err
    assert "local does not run coreml: left out" in outcome.err
    assert [r.subject.format for r in read_results(tmp_path / "results")] == ["onnx"]
    del manifest["artifacts"]["onnx"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    outcome = edgevit("bench", copy, "-o", tmp_path / "none")
    assert outcome.code == 2
    assert "runs none of the formats" in outcome.err


def test_a_bundle_of_a_fixed_batch(edgevit, bundle, tmp_path):
    outcome = edgevit("bench", bundle, "--batch", "4", "-o", tmp_path)
    assert outcome.code == 2
    assert "has a fixed batch of 1, not 4" in outcome.err


def test_a_bundle_whose_golden_outputs_differ_is_never_timed(edgevit, bundle, tmp_path):
    """A file that computes something else on the device: exit 1, and no latency anywhere."""
    import shutil

    import numpy as np

    from edgevit.bundle import Bundle, hash_file, save_golden

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    inputs, outputs = Bundle.open(copy).golden()
    save_golden(copy, inputs, {"logits": np.asarray(outputs["logits"]) * 1.001})
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["golden.npz"]["sha256"] = hash_file(copy / "golden.npz")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    outcome = edgevit("bench", copy, "--runs", "20", "-f", "onnx", "-o", tmp_path / "results")
    assert outcome.code == 1
    (result,) = read_results(tmp_path / "results")
    assert (result.status, result.samples_ns) == ("mismatch", ())
    assert "mismatch" in outcome.out


@pytest.mark.parametrize("format", ["md", "csv", "latex", "json", "text"])
def test_table_formats(edgevit, results, format):
    outcome = edgevit("table", results, "--include", "all", "--format", format)
    assert outcome.code == 0
    assert "elevit" in outcome.out
    assert outcome.err == ""


def test_table_beside_what_the_paper_says(edgevit, results):
    outcome = edgevit("table", results, "--include", "all", "--published", "--json")
    origins = {row["origin"] for row in outcome.json["rows"]}
    assert origins == {"measured", "published"}


def test_table_into_a_file(edgevit, results, tmp_path):
    target = tmp_path / "table.md"
    outcome = edgevit("table", results, "--include", "all", "-f", "md", "-o", target)
    assert outcome.out == ""
    assert target.read_text().startswith("| model |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no result"),
        ([".", "--format", "html"], "holds no results"),
    ],
)
def test_table_of_what_is_not_there(edgevit, in_tmp, arguments, message):
    outcome = edgevit("table", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_doctor(edgevit):
    report = edgevit("doctor", "--json").json
    assert report["formats"]["onnx"]["ready"] is True
    assert report["packages"]["torch"].startswith("2.13.0")
    assert "onnx" in edgevit("doctor").out


def test_doctor_says_what_a_format_lacks(edgevit, monkeypatch):
    from exporters.base import exporters

    monkeypatch.setattr(type(exporters.get("tflite")), "missing", lambda _: ["litert_torch"])
    assert 'lacks litert_torch: pip install "edgevit[tflite]"' in edgevit("doctor").out


def test_ctrl_c_during_a_bench_keeps_what_was_measured(bundle, tmp_path):
    command = [sys.executable, "-m", "edgevit", "bench", str(bundle), "-f", "onnx"]
    command += ["--seconds", "30", "--no-memory", "-o", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert "timing tiny.onnx" in process.stderr.readline()
    time.sleep(8)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (result,) = read_results(tmp_path)
    assert result.status == "stopped"
    assert result.statistics.n > 10
    assert "stopped early, after" in result.reason


def test_suites_are_listed_without_measuring(edgevit, in_tmp):
    outcome = edgevit("bench", "--list-suites")
    assert outcome.code == 0
    assert "sima-table3" in outcome.out
    assert "1000 runs each" in outcome.out
    assert "sima-n64-d256-h8-order_dd" in outcome.out
    listed = {entry["name"]: entry for entry in edgevit("bench", "--list-suites", "--json").json}
    assert len(listed["sima-table3"]["subjects"]) == 7
    assert not (in_tmp / "results").exists()


def test_a_sweep_of_blocks_in_one_order(edgevit, in_tmp):
    outcome = edgevit(
        *("bench", "--block", "sima", "--block", "softmax", "--heads", "2", "--order", "nn"),
        *("--sweep", "n=16,32", "--sweep", "d=8", "-f", "onnx", "--runs", "10", "--no-memory"),
        "--json",
    )
    assert outcome.code == 0, outcome.err
    assert {r["subject"]["name"] for r in outcome.json} == {
        "sima-n16-d8-h2-order_nn",
        "softmax-n16-d8-h2",
        "sima-n32-d8-h2-order_nn",
        "softmax-n32-d8-h2",
    }
