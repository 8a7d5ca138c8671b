import pytest

from edgevit.cli.common import parse_ints, parse_options, parse_size, split_list
from edgevit.errors import OptionError


def test_lists_may_come_with_commas_or_repeated():
    assert split_list(["onnx,coreml", " tflite "]) == ["onnx", "coreml", "tflite"]
    assert split_list(None) == []


def test_sizes():
    assert parse_size("224") == 224
    assert parse_size("800x1280") == (800, 1280)
    assert parse_size(None) is None
    for wrong in ("big", "1x2x3", "2.5"):
        with pytest.raises(OptionError):
            parse_size(wrong)


def test_ints():
    assert parse_ints("--shape", "256,64") == (256, 64)
    with pytest.raises(OptionError, match="--shape"):
        parse_ints("--shape", "256;64")


def test_options_are_json_or_text():
    assert parse_options("--set", ["depth=3", "axis=space", "flag=true", "widths=[1,2]"]) == {
        "depth": 3,
        "axis": "space",
        "flag": True,
        "widths": (1, 2),
    }
    for wrong in ("depth", "=3"):
        with pytest.raises(OptionError, match="name=value"):
            parse_options("--set", [wrong])
