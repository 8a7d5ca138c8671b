"""What a board needs, and which wheels fit it."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from local_shell import board, make_wheel

from devices import wheels
from devices.profile import load_profile
from devices.wheels import Plan, fetch_wheels, plan_packages, platform_tags, satisfied
from edgevit.errors import DeviceError, OptionError, UnavailableError

PI, NANO = load_profile("rpi4"), load_profile("jetson-nano")
OLD = {"libc_version": "2.31"}
LITERT = "ai-edge-litert==2.3.0"


@pytest.mark.parametrize(
    ("profile", "changes", "expected"),
    [
        ("rpi4", {}, {"numpy", "onnxruntime==1.31.1", LITERT}),
        ("rpi4", {"python": (3, 13, 5)}, {"numpy", "onnxruntime==1.31.1", LITERT}),
        ("rpi4", {"python": (3, 9), **OLD}, {"numpy<2", "onnxruntime==1.19.2", "tflite-runtime"}),
        ("rpi4", {"python": (3, 9, 2)}, {"numpy", "onnxruntime==1.19.2", "ai-edge-litert==2.1.0"}),
        ("rpi4", {"python": (3, 8), **OLD}, {"numpy<2", "onnxruntime==1.19.2", "tflite-runtime"}),
        ("rpi4", {"python": (3, 12, 1), **OLD}, {"numpy", "onnxruntime==1.31.1"}),
        ("rpi4", {"python": (3, 6, 9), "libc_version": "2.27"}, {"numpy", "onnxruntime==1.10.0"}),
        ("jetson-nano", {"python": (3, 6, 9)}, {"numpy<1.19.5", "onnxruntime==1.10.0"}),
        ("jetson-orin-nano", {"python": (3, 10, 12), "libc_version": "2.35"},
         {"numpy", "onnxruntime==1.23.2", LITERT}),
        ("apple-m1", {"system": "Darwin", "machine": "arm64", "libc": "", "release": "14.5"},
         {"numpy", "onnxruntime==1.31.1", LITERT, "coremltools"}),
        ("apple-a13", {"system": "Darwin", "machine": "arm64", "libc": ""},
         {"numpy", "coremltools"}),
    ],
)  # fmt: skip
def test_what_a_board_gets(profile: str, changes: dict[str, Any], expected: set[str]) -> None:
    plan = plan_packages(board(**changes), load_profile(profile))
    assert set(plan.requirements.values()) == expected
    assert plan.modules[0] == "numpy"
    assert len(plan.modules) == len(plan.requirements)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "openvino==2026.4.1"),
        ({"python": (3, 9, 2)}, "openvino==2025.3.0"),
        ({"python": (3, 8), **OLD}, "openvino"),
        ({"machine": "x86_64", **OLD}, "openvino==2026.4.1"),
        ({"system": "Darwin", "machine": "arm64", "libc": "", "libc_version": ""},
         "openvino==2026.4.1"),
    ],
)  # fmt: skip
def test_openvino_is_brought_if_it_is_asked_for(changes: dict[str, Any], expected: str) -> None:
    there = board(**changes)
    assert "openvino" not in plan_packages(there, PI).requirements
    plan = plan_packages(there, PI, ["openvino"])
    assert plan.requirements["openvino"] == expected
    assert "openvino" in plan.modules


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(DeviceError, match=r"OpenVINO has no wheels for Python 3\.7 on aarch64"):
        plan_packages(board(python=(3, 7, 3)), PI, ["openvino"])
    with pytest.raises(OptionError, match="openvino for rpi4") as caught:
        plan_packages(board(), PI, ["executorch"])
    assert "for you to install" in (caught.value.hint or "")
    with pytest.raises(OptionError, match="nothing for jetson-nano"):
        plan_packages(board(), NANO, ["openvino"])


def test_what_is_left_out_is_said() -> None:
    plan = plan_packages(board(python=(3, 12, 1), libc_version="2.31"), PI)
    assert plan.notes == (
        "no TFLite runtime: none has wheels for Python 3.12 on aarch64, glibc 2.31",
    )
    assert "tensorrt is not installed by this" in plan_packages(board(), NANO).notes
    assert "no Core ML: that needs macOS" in plan_packages(board(), load_profile("apple-m1")).notes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bits": 32}, "32 bits"),
        ({"implementation": "pypy"}, "CPython"),
        ({"libc": "", "libc_version": ""}, "glibc"),
        ({"system": "Windows", "libc": ""}, "Windows"),
    ],
)
def test_boards_that_nothing_is_made_for(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        plan_packages(board(**changes), PI)


def test_every_tag_is_named() -> None:
    tags = platform_tags(board(libc_version="2.34"))
    assert tags[0] == "manylinux_2_34_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64",
            "manylinux2014_aarch64", "linux_aarch64"} <= set(tags)  # fmt: skip
    assert "manylinux_2_35_aarch64" not in tags
    assert "manylinux1_x86_64" in platform_tags(board(machine="x86_64"))
    mac = platform_tags(board(system="Darwin", machine="arm64", release="12.6.1", libc=""))
    assert mac == ["macosx_12_0_arm64", "macosx_12_0_universal2",
                   "macosx_11_0_arm64", "macosx_11_0_universal2"]  # fmt: skip


def test_what_is_installed_is_compared_with_the_plan() -> None:
    plan = Plan({"numpy": "numpy<2", "onnxruntime": "onnxruntime==1.19.2"}, ())
    right = {"numpy": "1.24.4", "onnxruntime": "1.19.2", "pip": "1"}
    assert satisfied(plan, right) == {"numpy": "1.24.4", "onnxruntime": "1.19.2"}
    assert satisfied(plan, {**right, "numpy": "2.0.0"}) == {}
    assert satisfied(plan, {"numpy": "1.24.4"}) == {}
    # NVIDIA's own build is not replaced.
    gpu = {"numpy": "1.24.4", "onnxruntime-gpu": "1.11.0"}
    assert satisfied(plan, gpu) == gpu


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for all there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    make_wheel(folder, "pip")
    return folder


def test_dependencies_are_those_of_the_boards_python(index: Path) -> None:
    make_wheel(index, "runtime", 'old; python_version < "3.10"', 'arm; platform_machine=="aarch64"',
               'windows; sys_platform == "win32"', 'extra_thing; extra == "gpu"')  # fmt: skip
    make_wheel(index, "old", "deeper")
    for name in ("arm", "deeper", "windows"):
        make_wheel(index, name)
    plan = Plan({"runtime": "runtime"}, ())
    got = fetch_wheels(plan, board(python=(3, 9, 2)))
    assert {w.path.name.split("-")[0] for w in got} == {"runtime", "old", "deeper", "arm", "pip"}
    assert all(len(w.sha256) == 64 and w.unpacked_bytes > 0 for w in got)


def test_wheels_are_fetched_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index, "runtime")
    plan = Plan({"runtime": "runtime"}, ())
    first = fetch_wheels(plan, board())
    run = subprocess.run
    calls = []
    monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    assert fetch_wheels(plan, board()) == first
    assert not calls
    # A damaged one is fetched again.
    first[-1].path.write_bytes(b"damaged")
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(first[-1].path)
    assert fetch_wheels(plan, board()) == first
    assert len(calls) == 1


def test_what_cannot_be_fetched(index: Path) -> None:
    with pytest.raises(UnavailableError, match=r"3\.11 on aarch64, glibc 2\.36 here") as caught:
        fetch_wheels(Plan({"nothing": "nothing"}, ()), board())
    assert "nothing" in caught.value.message
    assert "--online" in (caught.value.hint or "")
    assert caught.value.exit_code == 3
