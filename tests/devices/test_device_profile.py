"""Device profiles: the ones that come along, and what is said of wrong ones."""

from pathlib import Path

import pytest

from devices.profile import (
    RuntimeProfile,
    list_profiles,
    load_profile,
    own_profiles,
    parse_profile,
    read_profile,
    shadowed_profiles,
)
from edgevit.errors import OptionError, UnknownNameError, UsageError

NANO = """
    title = "Jetson Nano"
    arch = "arm64"
    soc = "Tegra X1"
    cores = 4
    clocks_mhz = [1430]
    memory_gb = [2, 4]
    python = "3.6"
    glibc = "2.27"
    default_format = "onnx"
    throttle_point_c = 97.5
    conditions = ["governor", "power_mode"]
    notes = ["Shuts down on a weak supply."]

    [environment]
    OPENBLAS_CORETYPE = "ARMV8"

    [packages]
    numpy = "<1.19.5"

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
    assert profile.default_format
    assert profile.path is None
    # Only a virtual machine of this kind has ever run the agent.
    assert profile.tested_on_hardware == (name == "generic-x86-64")
    if not name.startswith("generic"):
        assert profile.soc
        assert profile.cores
        assert profile.clocks_mhz


def test_the_boards_of_the_papers_and_of_desks_are_there() -> None:
    boards = {"rpi4", "rpi5", "jetson-nano", "jetson-orin-nano", "apple-m1", "apple-a13"}
    assert boards | {"xeon-e5-2690v4", "generic-x86-64", "generic-arm64"} == set(list_profiles())


def test_the_jetson_nano_gets_files_that_it_can_read() -> None:
    runtime = load_profile("jetson-nano").runtimes["onnxruntime"]
    assert (runtime.version, runtime.max_opset, runtime.max_ir) == ("1.10.0", 15, 8)


def test_a_profile_is_read_whole() -> None:
    nano = parse_profile(NANO, "nano")
    assert (nano.name, nano.cores, nano.default_threads) == ("nano", 4, 1)
    assert nano.environment == {"OPENBLAS_CORETYPE": "ARMV8"}
    assert nano.runtimes["onnxruntime"] == RuntimeProfile(("onnx",), "1.10.0", 15, 8)
    assert nano.formats == ("onnx",)
    assert (nano.clocks_mhz, nano.memory_gb, nano.glibc) == ((1430,), (2, 4), "2.27")
    assert (nano.default_format, nano.throttle_point_c) == ("onnx", 97.5)
    assert nano.conditions == ("governor", "power_mode")
    assert nano.packages == {"numpy": "<1.19.5"}
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
        (('numpy = "<1.19.5"', "numpy = 1.19"), "packages"),
        (("clocks_mhz = [1430]", "clocks_mhz = 1430"), "clocks_mhz"),
        (("clocks_mhz = [1430]", "clocks_mhz = [0]"), "clocks_mhz"),
        (("memory_gb = [2, 4]", 'memory_gb = ["2"]'), "memory_gb"),
        (("throttle_point_c = 97.5", 'throttle_point_c = "hot"'), "throttle_point_c"),
        (("throttle_point_c = 97.5", "throttle_point_c = true"), "throttle_point_c"),
        (('default_format = "onnx"', 'default_format = "tflite"'), "default_format"),
        (('"power_mode"]', '"powermode"]'), "conditions"),
        (("cores = 4", "cores = 4\ntested_on_hardware = 1"), "tested_on_hardware"),
        (("cores = 4", 'cores = 4\npath = "x"'), "nano.path"),
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


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own profiles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "edgevit" / "profiles"
    folder.mkdir(parents=True)
    return folder


def test_own_profiles_stand_beside_ours(own: Path) -> None:
    (own / "nano2.toml").write_text(NANO)
    assert {"nano2", "rpi4"} <= set(list_profiles())
    assert own_profiles() == {"nano2": own / "nano2.toml"}
    assert shadowed_profiles() == []
    profile = load_profile("nano2")
    assert (profile.name, profile.path) == ("nano2", own / "nano2.toml")
    with pytest.raises(UnknownNameError) as caught:
        load_profile("nano3")
    assert "nano2" in (caught.value.hint or "")


def test_an_own_profile_takes_the_place_of_ours(own: Path) -> None:
    ours = load_profile("rpi4")
    (own / "rpi4.toml").write_text(NANO)
    assert load_profile("rpi4").title == "Jetson Nano" != ours.title
    assert shadowed_profiles() == ["rpi4"]
    assert list_profiles().count("rpi4") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (NANO.replace("cores = 4", "cores = 0").encode(), "cores: expected a whole number"),
        (b"title =", "device profile bad"),
        (b"\xff", "bad.toml"),
    ],
)
def test_a_wrong_own_profile_is_named(own: Path, content: bytes, said: str) -> None:
    (own / "bad.toml").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_profile("bad")
    assert said in caught.value.message
    assert str(own / "bad.toml") in caught.value.message
