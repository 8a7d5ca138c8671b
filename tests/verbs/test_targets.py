"""Exports that obey a device: what is chosen, what is refused, and what the manifest says."""

import json

import pytest
from jsonschema import Draft202012Validator

from devices.profile import DeviceProfile, RuntimeProfile
from edgevit.bundle import SCHEMA, Bundle
from edgevit.errors import OptionError, UsageError
from edgevit.verbs.export import export
from edgevit.verbs.targets import check_loadable, default_format, fit_formats, fit_options


def board(formats=("onnx",), **limits):
    """A board whose onnxruntime has limits."""
    runtimes = {
        "onnxruntime": RuntimeProfile(formats=("onnx",), version="1.10.0", **limits),
        "tflite": RuntimeProfile(formats=("tflite",)),
    }
    have = {n: r for n, r in runtimes.items() if r.formats[0] in formats}
    return DeviceProfile("nano", "A board", "arm64", runtimes=have)


TINY = {"image_size": 32, "model_options": {"widths": (8, 8, 16), "depths": (1, 1, 1)}}


@pytest.mark.parametrize(
    ("limits", "given", "added"),
    [
        ({}, {}, None),
        ({"max_opset": 25, "max_ir": 13}, {}, None),
        # The default is 17, or 20 for a model that it suits.
        ({"max_opset": 20, "max_ir": 9}, {}, None),
        ({"max_opset": 19, "max_ir": 9}, {}, {"opset": 17}),
        ({"max_opset": 21, "max_ir": 8}, {}, {"opset": 17}),
        ({"max_opset": 21, "max_ir": 9}, {"ir_version": 8}, {"ir_version": 8}),
        ({"max_opset": 15, "max_ir": 8}, {}, {"opset": 15}),
        ({"max_opset": 15}, {}, {"opset": 15}),
        # Opset 14 is the newest that came with IR version 7.
        ({"max_ir": 7}, {}, {"opset": 14}),
        ({"max_opset": 13, "max_ir": 8}, {}, {"opset": 13}),
        ({"max_opset": 15, "max_ir": 8}, {"opset": 14}, {"opset": 14}),
        ({"max_opset": 15, "max_ir": 8}, {"simplify": True}, {"opset": 15, "simplify": True}),
        ({"max_opset": 15, "max_ir": 8}, {"ir_version": 8}, {"opset": 15, "ir_version": 8}),
    ],
)
def test_the_newest_that_the_device_reads_is_chosen(limits, given, added):
    options = {"onnx": given} if given else {}
    assert fit_options(board(**limits), ["onnx"], options).get("onnx") == added


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"opset": 17}, "opset: expected at most opset 15, .* onnxruntime 1.10.0 of nano reads"),
        ({"ir_version": 9}, "ir_version: expected at most IR version 7"),
        ({"opset": 15}, "opset: expected one whose IR version is at most 7"),
    ],
)
def test_what_the_device_contradicts_is_refused(given, message):
    with pytest.raises(OptionError, match=message):
        fit_options(board(max_opset=15, max_ir=7), ["onnx"], {"onnx": given})


def test_formats_are_those_that_the_device_runs():
    assert fit_formats(board(("onnx", "tflite")), ["tflite", "onnx"]) == ["tflite", "onnx"]
    assert fit_formats(board(), []) == ["onnx"]
    assert default_format(board(("tflite",))) == "tflite"
    with pytest.raises(OptionError, match="format: expected onnx for nano, got 'coreml'"):
        fit_formats(board(), ["coreml"])


def test_formats_without_an_opset_have_nothing_to_fit():
    assert fit_options(board(("onnx", "tflite"), max_opset=15), ["tflite"], {}) == {}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A model for the board, and for anything."""
    folder = tmp_path_factory.mktemp("exports")
    fitted = export("elevit", output=folder, device=board(max_opset=15, max_ir=8), **TINY)
    return fitted, export("elevit", output=folder, **TINY)


def test_the_file_and_the_manifest_say_what_it_was_made_for(bundles):
    import onnx

    fitted, other = bundles
    assert fitted.path.name == f"{other.path.name}-nano"
    model = onnx.load(fitted.path / "model.onnx")
    assert ([o.version for o in model.opset_import if not o.domain], model.ir_version) == ([15], 8)
    limits = {"runtime_version": "1.10.0", "max_opset": 15, "max_ir": 8}
    assert fitted.manifest["target"] == {"device": "nano", "limits": {"onnx": limits}}
    assert other.manifest["target"] is None
    schema = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for bundle in bundles:
        schema.validate(json.loads((bundle.path / "manifest.json").read_text()))


def test_what_the_board_cannot_load_is_named_with_the_line_that_helps(bundles):
    fitted, other = bundles
    check_loadable(board(max_opset=15, max_ir=8), Bundle.open(fitted.path), "onnx")
    check_loadable(board(), other, "onnx")
    for limits, what in (
        ({"max_opset": 15}, "has opset 17; the onnxruntime 1.10.0 of nano reads at most 15"),
        ({"max_ir": 7}, "has IR version 8; the onnxruntime 1.10.0 of nano reads at most 7"),
    ):
        with pytest.raises(UsageError, match=what) as caught:
            check_loadable(board(**limits), other, "onnx")
        assert caught.value.hint == "edgevit export elevit --for nano"
