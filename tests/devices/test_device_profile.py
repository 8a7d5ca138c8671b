"""Device profiles: the ones that come along, and what is said of wrong ones."""

from pathlib import Path

import pytest

from devices.profile import RuntimeProfile, list_profiles, load_profile, parse_profile, read_profile
from edgevit.errors import OptionError, UnknownNameError, UsageError

NANO = """
    title = "Jetson Nano"
    arch = "arm64"
    soc = "Tegra X1"
    cores = 4
    python = "3.6"
    notes = ["Shuts down on a weak supply."]

    [environment]
    OPENBLAS_CORETYPE = "ARMV8"

    [runtimes.onnxruntime]
    version = "1.10.0"
    formats = ["onnx"]
    max_opset = 15
    max_ir = 8
"""


@pytest.mark.parametrize("name", list_profiles())
def test_every_profile_that_comes_along_is_right(name: str) -> None:
    from devices.agent.backends import BACKENDS

    profile = load_profile(name)
    assert profile.name == name
    assert profile.formats
    assert set(profile.runtimes) <= set(BACKENDS)


def test_a_profile_is_read_whole() -> None:
    nano = parse_profile(NANO, "nano")
    assert (nano.name, nano.cores, nano.default_threads) == ("nano", 4, 1)
    assert nano.environment == {"OPENBLAS_CORETYPE": "ARMV8"}
    assert nano.runtimes["onnxruntime"] == RuntimeProfile(("onnx",), "1.10.0", 15, 8)
    assert nano.formats == ("onnx",)
    assert nano.notes == ("Shuts down on a weak supply.",)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        (("cores = 4", "cores = 0"), "cores"),
        (("cores = 4", "cores = true"), "cores"),
        (("cores = 4", 'cores = "4"'), "cores"),
        (('arch = "arm64"', ""), "nano"),
        (('arch = "arm64"', 'arch = ""'), "arch"),
        (('python = "3.6"', "python = 3.6"), "python"),
        (("max_opset = 15", "max_opset = -1"), "max_opset"),
        (("max_opset = 15", "opset = 15"), "runtimes.onnxruntime.opset"),
        (('formats = ["onnx"]', ""), "runtimes.onnxruntime"),
        (('formats = ["onnx"]', 'formats = "onnx"'), "formats"),
        (('formats = ["onnx"]', "formats = []"), "formats"),
        (
            ('title = "Jetson Nano"', 'title = "Jetson Nano"\ndefault_threads = 0'),
            "default_threads",
        ),
        (('title = "Jetson Nano"', 'title = "Jetson Nano"\nname = "tx2"'), "name"),
        (('["Shuts down on a weak supply."]', '"Shuts down"'), "notes"),
        (('CORETYPE = "ARMV8"', "CORETYPE = 8"), "environment"),
        (("[runtimes.onnxruntime]", "[runtimes]"), "runtimes.version"),
        (('title = "Jetson Nano"', 'title = "Jetson Nano"\nruntimes = 3\n[x]'), "runtimes"),
    ],
)
def test_a_wrong_field_is_named(change: tuple[str, str], option: str) -> None:
    text = NANO.replace(*change)
    assert text != NANO
    if option == "runtimes":
        text = 'title = "x"\narch = "y"\nruntimes = 3'
    with pytest.raises(OptionError) as caught:
        parse_profile(text, "nano")
    assert caught.value.option == option


def test_a_misspelt_field_has_its_neighbour_in_the_hint() -> None:
    with pytest.raises(OptionError) as caught:
        parse_profile(NANO.replace("cores", "core"), "nano")
    assert "cores" in (caught.value.hint or "")


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_profile("generic-arm")
    assert "generic-arm64" in (caught.value.hint or "")


def test_a_profile_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(NANO)
    assert read_profile(tmp_path / "mine.toml").name == "mine"
    with pytest.raises(UsageError, match="cannot read the device profile"):
        read_profile(tmp_path / "other.toml")
    (tmp_path / "broken.toml").write_text("title = ")
    with pytest.raises(UsageError, match="device profile broken"):
        read_profile(tmp_path / "broken.toml")
