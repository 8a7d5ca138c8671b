"""The export verb, on real runtimes and a tiny model; ONNX and PyTorch, the quick formats."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import onnxruntime
import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

from edgevit.bundle import MANIFEST, SCHEMA, Bundle
from edgevit.errors import (
    FactoryError,
    MissingExtraError,
    OptionError,
    ShapeError,
    UnknownNameError,
    UsageError,
    VerificationError,
    WeightsError,
)
from edgevit.progress import Progress
from edgevit.source import BlockSpec, model_source
from edgevit.verbs.export import export
from exporters.base import exporters

TINY = {
    "image_size": 32,
    "model_options": {"widths": (8, 8, 16), "depths": (1, 1, 1), "stem": (8, 8)},
}


def tiny(folder, **options):
    return export("elevit", output=folder, **{**TINY, "name": "tiny", **options})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("exports"), formats=["onnx", "torch"])


def test_the_bundle_says_what_it_is(bundle):
    manifest = bundle.manifest
    assert bundle.formats == ["onnx", "torch"]
    assert manifest["model"]["name"] == "elevit"
    assert manifest["model"]["num_classes"] == 10
    assert manifest["model"]["weights"] == {"kind": "random", "seed": 0}
    assert manifest["inputs"][0]["shape"] == [1, 3, 32, 32]
    assert manifest["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert [s["kind"] for s in manifest["samples"]] == ["image", "normal noise", "normal noise"]
    assert manifest["artifacts"]["onnx"]["facts"]["opset"] == 17
    assert set(manifest["files"]) == {"golden.npz", "model.onnx", "model.pt2"}


def test_every_file_is_verified_and_close(bundle):
    for entry in bundle.manifest["artifacts"].values():
        assert entry["verification"]["status"] == "verified"
        for check in entry["verification"]["checks"]:
            assert check["comparisons"][0]["relative"] < 1e-5
            assert len(check["comparisons"][0]["per_sample_max_abs"]) == 3
    stages = [check["stage"] for check in bundle.manifest["program_checks"]]
    assert stages == ["capture", "passes"]


def test_every_batchnorm_is_folded(bundle):
    report = next(p for p in bundle.manifest["passes"] if p["name"] == "fold_batchnorm")
    assert report["rewritten"] == 18
    assert report["refused"] == []
    assert "BatchNormalization" not in json.dumps(bundle.manifest["artifacts"]["onnx"]["facts"])


def test_the_manifest_follows_its_schema(bundle):
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(json.loads((bundle.path / MANIFEST).read_text()))


def test_golden_outputs_are_what_the_file_computes(bundle):
    inputs, outputs = bundle.golden()
    session = onnxruntime.InferenceSession(bundle.path / "model.onnx")
    for sample, want in zip(inputs["image"], outputs["logits"], strict=True):
        got = session.run(None, {"image": sample})[0]
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.ptp(outputs["logits"], axis=0).max() > 1e-3  # the output depends on the input


def test_a_model_without_weights_gets_ones_that_prove_something(bundle):
    """A fresh BatchNorm is the identity, so folding it wrongly would not show."""
    source = model_source("elevit", image_size=32, options=TINY["model_options"])
    for name, buffer in source.module.named_buffers():
        if name.endswith("running_var"):
            assert not torch.allclose(buffer, torch.ones_like(buffer), atol=0.01)


def test_formats_of_the_same_graph_stay_together(tmp_path):
    tiny(tmp_path, formats=["onnx"])
    assert tiny(tmp_path, formats=["torch"]).formats == ["torch", "onnx"]


def test_formats_of_another_graph_do_not(tmp_path):
    tiny(tmp_path, formats=["onnx"])
    assert tiny(tmp_path, formats=["torch"], seed=1).formats == ["torch"]


def test_names_tell_what_is_not_default(tmp_path):
    options = {"output": tmp_path, "formats": "torch"}
    model = {"model_options": {"depths": (1, 1, 1)}}
    made = export("elevit", image_size=32, num_classes=4, **model, **options, batch=2)
    assert made.path.name == "elevit-32px-4c-depths_1_1_1-b2"


def test_relu_is_another_model_and_its_drift_is_told(tmp_path):
    made = tiny(tmp_path, activation="relu", formats=["torch"])
    drift = made.manifest["drift"]
    assert drift["relative"] > 1e-3
    assert "fine-tune" in drift["advice"]
    check = next(c for c in made.manifest["program_checks"] if c["stage"] == "substitute_relu")
    assert (check["status"], check["against"]) == ("verified", "eager module with ReLU")
    assert made.manifest["artifacts"]["torch"]["verification"]["status"] == "verified"


def test_no_fold(tmp_path):
    made = tiny(tmp_path, fold_batchnorm=False, formats=["torch"])
    assert "fold_batchnorm" not in [report["name"] for report in made.manifest["passes"]]


def test_the_rewrites_that_were_asked_for(tmp_path):
    source = {"model": "elevit", "image_size": 32, "formats": "torch", "output": tmp_path}
    made = export(passes=["fold_affine", "fold_batchnorm"], **source)
    names = [report["name"] for report in made.manifest["passes"]]
    assert names == ["drop_identities", "fold_constants", "fold_affine", "fold_batchnorm"]
    assert made.path.name.endswith("-only-fold_affine-fold_batchnorm")
    with pytest.raises(UnknownNameError, match="unknown exact pass 'fold_norms'"):
        export(passes=["fold_norms"], **source)


def test_no_verify_says_so(tmp_path):
    made = tiny(tmp_path, verify=False, formats=["torch"])
    verification = made.manifest["artifacts"]["torch"]["verification"]
    assert verification["status"] == "unverified"
    assert verification["reason"] == "verification was switched off"


def test_a_dynamic_batch(tmp_path):
    made = tiny(tmp_path, dynamic_batch=True)
    session = onnxruntime.InferenceSession(made.path / "model.onnx")
    for batch in (1, 5):
        x = np.random.default_rng(0).standard_normal((batch, 3, 32, 32), dtype=np.float32)
        assert session.run(None, {"image": x})[0].shape == (batch, 10)


def test_a_fixed_batch_is_checked_with_rows_that_differ(tmp_path):
    made = tiny(tmp_path, batch=3, formats=["onnx"])
    inputs, _ = made.golden()
    assert inputs["image"].shape == (3, 1, 3, 32, 32)
    assert made.manifest["inputs"][0]["shape"] == [3, 3, 32, 32]


def test_a_block(tmp_path):
    made = export(BlockSpec("softmax", 16, 8, heads=2), output=tmp_path)
    assert made.path.name == "softmax-n16-d8-h2"
    assert [i["name"] for i in made.manifest["inputs"]] == ["query", "key", "value"]
    assert made.manifest["artifacts"]["onnx"]["verification"]["status"] == "verified"


def test_a_module_of_the_users_own(tmp_path):
    torch.manual_seed(0)
    made = export(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), output=tmp_path, input_shape=(6,))
    assert made.manifest["model"]["kind"] == "custom"
    assert made.manifest["preprocessing"] is None


def test_a_factory_of_the_users_own(in_tmp):
    code = """
    from torch import nn
    def make():
        body = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
        return nn.Sequential(*body, nn.Linear(3600, 2))
    def fails():
        raise RuntimeError("no such luck")
    """
    (in_tmp / "own.py").write_text(textwrap.dedent(code))
    made = export("own:make", output=in_tmp / "out", image_size=32)
    assert made.path.name == "make"
    rewritten = {report["name"]: report["rewritten"] for report in made.manifest["passes"]}
    assert rewritten["fold_batchnorm"] == 1
    with pytest.raises(FactoryError, match="no such luck"):
        export("own:fails", output=in_tmp / "out")
    assert sorted(p.name for p in (in_tmp / "out").iterdir()) == ["make"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"formats": ["onxx"]}, UnknownNameError, "unknown format 'onxx'"),
        ({"formats": []}, OptionError, "at least one format"),
        ({"activation": "gelu"}, OptionError, "activation: expected relu"),
        ({"options": {"onnx": {"opest": 17}}}, OptionError, "an option of format onnx"),
        ({"options": {"tflite": {}}}, OptionError, "options of onnx"),
        ({"batch": 0}, OptionError, "batch"),
        ({"image_size": 33}, ShapeError, "multiples of 32"),
        ({"num_classes": 0}, OptionError, "num_classes"),
        ({"weights": "none.pth"}, WeightsError, "no weights file"),
        ({"image": "none.png"}, OptionError, "image: expected a picture"),
        ({"input_shape": (3,)}, UsageError, "image_size"),
        ({"dynamic_batch": True, "formats": ["onnx", "tflite"]}, OptionError, "fixed batch"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        tiny(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_missing_extra_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(type(exporters.get("onnx")), "missing", lambda _: ["onnx"])
    with pytest.raises(MissingExtraError) as caught:
        tiny(tmp_path)
    assert caught.value.hint == 'pip install "edgevit[onnx]"'


class Nan(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * float("nan")


def test_a_model_that_gives_nan_is_not_exported(tmp_path):
    with pytest.raises(VerificationError, match="not finite"):
        export(Nan(), output=tmp_path, image_size=8)
    assert list(tmp_path.iterdir()) == []


class Deaf(nn.Module):
    """Its output is a constant but for the last digits."""

    def forward(self, x):
        return 1.0 + 1e-6 * x.mean((2, 3))


def test_a_model_that_hardly_hears_its_input_is_told(tmp_path):
    notes = []
    listener = Progress()
    listener.note = notes.append
    made = export(Deaf(), output=tmp_path, image_size=8, formats="torch", progress=listener)
    assert any("hardly depends on the input" in note for note in notes)
    assert made.manifest["sensitivity"][0]["spread"] < 1e-4


def test_a_file_that_computes_something_else_is_not_exported(tmp_path, monkeypatch):
    """The exporter writes a graph whose weights differ slightly from the program's."""
    exporter = type(exporters.get("onnx"))
    honest = exporter.export

    def dishonest(self, program, folder, options):
        module = program.graph_module()
        with torch.no_grad():
            next(p for p in module.parameters() if p.dim() == 4).mul_(1.01)
        return honest(self, program.rewritten(module), folder, options)

    monkeypatch.setattr(exporter, "export", dishonest)
    with pytest.raises(VerificationError, match=r"model\.onnx, run by onnxruntime"):
        tiny(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_pass_ends_the_export(tmp_path, monkeypatch):
    from edgevit.passes import fold_batchnorm

    honest = type(fold_batchnorm.RULE).__call__

    def dishonest(self, graph):
        report = honest(self, graph)
        with torch.no_grad():
            next(p for p in graph.parameters() if p.dim() == 1).add_(0.05)
        return report

    monkeypatch.setattr(type(fold_batchnorm.RULE), "__call__", dishonest)
    with pytest.raises(VerificationError, match="fold_batchnorm does not agree"):
        tiny(tmp_path)
    assert list(tmp_path.iterdir()) == []


class IllConditioned(nn.Module):
    """A BatchNorm that divides by a deviation far below the mean of what it sees."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        nn.init.constant_(self.conv.bias, 3.7)
        nn.init.constant_(self.norm.running_mean, 3.7)
        nn.init.constant_(self.norm.running_var, 1e-8)
        self.norm.eps = 1e-12

    def forward(self, x):
        return self.norm(self.conv(1e-4 * torch.tanh(x) + torch.zeros(1, dtype=torch.float32)))


def folding_check(bundle):
    (check,) = (c for c in bundle.manifest["program_checks"] if c["stage"] == "passes")
    return check


def test_what_rounding_hides_in_fp32_is_decided_in_float64(tmp_path):
    bundle = export(IllConditioned(), image_size=8, formats="torch", output=tmp_path)
    check = folding_check(bundle)
    assert (check["status"], check["label"]) == ("verified", "torch in float64")
    assert check["tolerance"] == 1e-5
    assert check["comparisons"][0]["relative"] < 1e-6


def test_where_fp32_agrees_it_is_enough(bundle):
    assert folding_check(bundle)["label"] == "torch"


def test_a_wrong_pass_is_wrong_in_float64_too(tmp_path, monkeypatch):
    from edgevit.passes import fold_batchnorm

    affine = fold_batchnorm._affine

    def off(module, node):
        right = affine(module, node)
        return type(right)(right.scale * (1 + 3e-5), right.shift)

    monkeypatch.setattr(fold_batchnorm, "_affine", off)
    with pytest.raises(VerificationError, match="fold_batchnorm does not agree"):
        export(IllConditioned(), image_size=8, formats="torch", output=tmp_path)


def test_ctrl_c_leaves_the_old_bundle(tmp_path):
    """A real SIGINT in the middle of a real export, run as a user runs it."""
    old = tiny(tmp_path, formats=["torch"]).digest
    command = [
        *(sys.executable, "-m", "edgevit", "export", "elevit", "--name", "tiny", "-o", tmp_path),
        *("--format", "onnx,torch", "--seed", "3"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not any(p.name.startswith(".tiny.partial") for p in tmp_path.iterdir()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
    assert Bundle.open(tmp_path / "tiny").digest == old


class Making(nn.Module):
    """A forward that makes a tensor by itself."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.linear(x) + torch.ones(1)


def test_a_forward_that_makes_tensors_is_counted_too(tmp_path):
    bundle = export(Making(), input_shape=(5, 4), output=tmp_path)
    assert bundle.manifest["model"]["macs"] == 5 * 4 * 3
