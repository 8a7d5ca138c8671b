import inspect
import pickle

import pytest

from edgevit import errors
from edgevit.errors import (
    CheckError,
    EdgevitError,
    MissingExtraError,
    OptionError,
    UnavailableError,
    UnknownNameError,
    UsageError,
)


def test_every_error_is_one_tree_with_a_known_exit_code():
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c is not EdgevitError]
    ours = [c for c in classes if c.__module__ == errors.__name__]
    assert len(ours) > 10
    for cls in ours:
        assert issubclass(cls, EdgevitError)
        assert cls.__name__ in errors.__all__
        base = {UsageError: 2, CheckError: 1, UnavailableError: 3}
        assert cls.exit_code == next(code for b, code in base.items() if issubclass(cls, b))


def test_unknown_name_suggests_the_nearest():
    error = UnknownNameError("model", "elvit", ["elevit", "deit_small"], listing="edgevit models")
    assert str(error) == "unknown model 'elvit'"
    assert error.hint == "did you mean elevit?; `edgevit models` lists what there is"


def test_unknown_name_without_a_near_one_suggests_none():
    assert UnknownNameError("format", "qqqq", ["onnx"]).hint is None


def test_option_error_says_option_expected_and_got():
    error = OptionError("opset", expected="13 to 20", got=7)
    assert str(error) == "opset: expected 13 to 20, got 7"


@pytest.mark.parametrize(("packages", "verb"), [(["onnx"], "is"), (["onnx", "onnxsim"], "are")])
def test_missing_extra_names_the_extra(packages, verb):
    error = MissingExtraError("format onnx", packages, "onnx")
    assert f"which {verb} not installed" in str(error)
    assert error.hint == 'pip install "edgevit[onnx]"'


def test_to_json_has_everything_a_script_needs():
    data = OptionError("batch", expected="1", got=0, hint="h").to_json()
    assert data == {
        "error": "OptionError",
        "message": "batch: expected 1, got 0",
        "hint": "h",
        "exit_code": 2,
    }


@pytest.mark.parametrize(
    "error",
    [
        EdgevitError("no", hint="do"),
        OptionError("width", expected="more", got=[1, 2]),
        UnknownNameError("model", "elevti", ["elevit"], listing="edgevit models"),
        MissingExtraError("format coreml", ["coremltools"], "coreml"),
    ],
)
def test_errors_cross_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_an_unknown_name_may_be_the_beginning_of_others():
    error = UnknownNameError("device profile", "xeon", ["xeon-e5-2690v4", "rpi4", "xenon"])
    assert error.nearest == ["xeon-e5-2690v4"]
