"""Devices looked over: what is found, how bad it is, and what is said to do about it."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_shell import board

from devices.check import Finding, check, findings
from devices.local import LocalDevice
from devices.profile import load_profile

PI = load_profile("rpi4")
FACTS: dict[str, Any] = {
    "machine": {"arch": "aarch64", "model": "Raspberry Pi 4 Model B Rev 1.4"},
    "os": {"name": "Debian GNU/Linux 12 (bookworm)"},
    "python": {"version": "3.11.2", "executable": "/home/pi/.cache/edgevit/venv/bin/python"},
    "runtimes": {"numpy": "2.4.6", "onnxruntime": "1.31.1", "ai_edge_litert": "2.3.0"},
    "cpu": {"count": 4},
    "conditions": {
        "governor": {"cpu0": "performance", "cpu1": "performance"},
        "frequency_khz": {"cpu0": {"current": 1500000, "max": 1800000}},
        "temperature_c": {"cpu-thermal": 48.7},
        "throttled": {"raw": "0x0", "now": [], "since_boot": []},
        "load_average": [0.05, 0.1, 0.1],
        "cpu_seconds": {"busy": 1, "own": 0, "at": 0},
        "memory_bytes": {"total": 4 * 2**30, "available": 3 * 2**30},
    },
}


def told(path: str = "", value: object = None) -> dict[str, Any]:
    """The facts of a good board, one of them changed; None takes it away."""
    facts = copy.deepcopy(FACTS)
    place: Any = facts
    *way, last = path.split("/")
    for key in way:
        place = place[key]
    if value is None:
        place.pop(last, None)
    else:
        place[last] = value
    return facts


def found(facts: Mapping[str, Any], **options: Any) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings(facts, PI, "pi", **options)}


def test_a_good_board_has_nothing_to_complain_of() -> None:
    result = found(FACTS, board=board(), clock_offset_s=1.0)
    assert {finding.level for finding in result.values()} == {"ok"}
    assert list(result) == ["machine", "python", "onnxruntime", "tflite", "openvino",
                            "executorch", "disk", "clock", "governor", "temperature", "power",
                            "load", "memory"]  # fmt: skip
    brings = "`edgevit devices setup pi --runtime openvino` brings it"
    assert brings in result["openvino"].text
    assert result["machine"].text == (
        "Raspberry Pi 4 Model B Rev 1.4, 4 CPUs, Debian GNU/Linux 12 (bookworm)"
    )
    assert result["governor"].text == "performance, up to 1800 MHz"


@pytest.mark.parametrize(
    ("path", "value", "what", "level", "text", "hint"),
    [
        ("machine/arch", "x86_64", "machine", "problem", "x86-64, the profile rpi4 is for arm64",
         "edgevit devices"),
        ("cpu/count", 2, "machine", "warning", "2 CPUs", "is it the board"),
        ("emulated", "qemu runs it", "emulated", "warning", "no real aarch64 machine: qemu",
         "--emulated"),
        ("runtimes/numpy", None, "numpy", "problem", "not installed", "edgevit devices setup pi"),
        ("runtimes/onnxruntime", None, "onnxruntime", "problem", "no onnx files", "setup pi"),
        ("runtimes/onnxruntime", "1.19.2", "onnxruntime", "warning",
         "1.19.2, older than 1.31.1, the newest that this board runs", "setup pi"),
        ("runtimes/onnxruntime", "1.10.0", "onnxruntime", "warning", "it reads opset 15 at most",
         "--opset 15 --ir-version 8"),
        ("runtimes/ai_edge_litert", None, "tflite", "warning", "no tflite files", "setup pi"),
        ("conditions/governor", {"cpu0": "ondemand"}, "governor", "warning", "ondemand, up to",
         "performance | sudo tee"),
        ("conditions/temperature_c", {"cpu-thermal": 70.0, "other": 20.0}, "temperature",
         "warning", "70 °C (cpu-thermal), it slows down at 80 °C", "cool"),
        ("conditions/temperature_c", {"cpu-thermal": 81.0}, "temperature", "problem", "81 °C",
         "cool"),
        ("conditions/throttled", {"now": ["under-voltage"], "since_boot": ["under-voltage"]},
         "power", "problem", "now: under-voltage", "too weak"),
        ("conditions/throttled", {"now": [], "since_boot": ["throttled", "under-voltage"]},
         "power", "warning", "since it booted: throttled, under-voltage", "slows itself down"),
        ("conditions/cpu_speed_limit_percent", 70, "power", "problem", "at 70 %", "cool"),
        ("conditions/power_source", "Battery Power", "power", "warning", "Battery", "plug it in"),
        ("conditions/load_average", [2.31, 1, 1], "load", "warning", "2.31", "top"),
        ("conditions/memory_bytes", {"total": 2**30, "available": 2**27}, "memory", "warning",
         "128 of 1024 MiB", "memory"),
        ("conditions/throttled", None, "conditions", "warning", "does not tell throttled",
         "vcgencmd"),
        ("conditions/governor", None, "conditions", "warning", "does not tell governor", None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_what_to_do(
    path: str, value: object, what: str, level: str, text: str, hint: str | None
) -> None:
    result = found(told(path, value))
    assert result[what].level == level
    assert text in result[what].text
    assert (hint or "") in (result[what].hint or "")
    others = {finding.level for name, finding in result.items() if name != what}
    assert others == {"ok"}


@pytest.mark.parametrize(("free", "level"), [(50, "problem"), (200, "warning"), (600, "ok")])
def test_room_on_the_disk(free: int, level: str) -> None:
    assert found(FACTS, board=board(free_bytes=free * 2**20))["disk"].level == level


@pytest.mark.parametrize(
    ("offset", "level", "text"),
    [
        (0.0, "ok", "as this machine's"),
        (29.0, "ok", "as this"),
        (-90.0, "warning", "90 s behind"),
        (7300.0, "warning", "2 hours ahead of"),
        (-86400.0 * 20000, "warning", "20000 days behind"),
    ],
)
def test_clocks_that_differ(offset: float, level: str, text: str) -> None:
    clock = found(FACTS, clock_offset_s=offset)["clock"]
    assert (clock.level, text in clock.text) == (level, True)


def test_who_else_measures_there() -> None:
    holder = {"user": "ann", "command": "edgevit bench", "since": "2026-01-01 10:00:00"}
    others = found(FACTS, board=board(holder=holder))["others"]
    assert others.level == "warning"
    assert others.text == (
        "a measurement runs there by ann: `edgevit bench`, since 2026-01-01 10:00:00 by its clock"
    )
    assert found(FACTS, board=board(holder={}))["others"].text == "a measurement runs there"


def test_a_phone_is_judged_by_what_it_is_attached_to() -> None:
    phone = load_profile("apple-a13")
    facts = told("machine/arch", "arm64") | {"runtimes": {"numpy": "2", "coremltools": "9.0"}}
    facts["conditions"] = {"power_source": "AC Power"}
    levels = {f.what: f.level for f in findings(facts, phone, "phone")}
    assert levels == {"machine": "ok", "python": "ok", "coreml-phone": "ok", "power": "ok"}


def test_this_machine_is_looked_over_for_real(tmp_path: Path) -> None:
    device = LocalDevice(environment={"TMPDIR": str(tmp_path)})
    with device.open() as session:
        result = {f.what: f for f in check(session, device.profile, "local")}
    assert result["machine"].level == "ok"
    assert result["onnxruntime"].level == "ok"
    assert result["clock"].level == "ok"
    assert "GiB free" in result["disk"].text


def test_an_agent_that_cannot_run_is_a_problem() -> None:
    with LocalDevice(python="/bin/false").open() as session:
        (only,) = check(session, replace(PI), "pi")
    assert (only.what, only.level) == ("agent", "problem")
    assert "cannot run here" in only.text
