"""The registry of formats and their options."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest

from edgevit.errors import OptionError, UnknownNameError
from exporters.base import exporters, make_options

OURS = {
    "onnx": ("OnnxExporter", "model.onnx"),
    "tflite": ("TFLiteExporter", "model.tflite"),
    "torch": ("TorchExporter", "model.pt2"),
}


@pytest.mark.parametrize("name", OURS)
def test_a_format_is_found_through_its_entry_point(name):
    exporter = exporters.get(name)
    assert (type(exporter).__name__, exporter.file) == OURS[name]
    assert exporter.name == name
    assert exporters.get(name) is exporter


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        exporters.get("onxx")
    assert "onnx" in caught.value.hint


@pytest.mark.parametrize("name", OURS)
def test_default_options_are_valid_and_frozen(name):
    options = make_options(exporters.get(name), {})
    assert isinstance(options, exporters.get(name).options)
    for field in fields(options):
        with pytest.raises(FrozenInstanceError):
            setattr(options, field.name, None)


def test_an_unknown_option_names_the_nearest_and_what_there_is():
    with pytest.raises(OptionError) as caught:
        make_options(exporters.get("onnx"), {"opsett": 17})
    assert caught.value.option == "opsett"
    assert "did you mean opset" in caught.value.hint
    assert "ir_version" in caught.value.hint


def test_a_format_without_options_says_so():
    with pytest.raises(OptionError) as caught:
        make_options(exporters.get("torch"), {"opset": 17})
    assert "no options" in caught.value.hint


def test_asking_what_is_missing_imports_nothing_heavy():
    code = """
import sys
from exporters.base import exporters
for name in ("onnx", "tflite", "torch"):
    assert exporters.get(name).missing() == [], name
heavy = {"torch", "onnx", "onnxruntime", "onnxscript", "litert_torch", "ai_edge_litert"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "absent"),
    [("onnx", "onnxruntime"), ("tflite", "litert_torch"), ("torch", "torch")],
)
def test_a_package_that_is_not_there_is_named(name, absent, monkeypatch):
    module = sys.modules[type(exporters.get(name)).__module__]
    monkeypatch.setattr(module, "find_spec", lambda n: None if n == absent else n)
    assert exporters.get(name).missing() == [absent]
