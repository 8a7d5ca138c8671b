"""The host's side of Apple's devices. The Mac is a stand-in, see test_agent_phone.py."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apple_kit import IPHONE, mac_environment, package_subject
from devices_kit import QUICK, make_dense, named, only, run

from devices.apple import COMPUTE_UNITS, PhoneDevice, PhoneSession, coreml_options
from devices.base import Job
from devices.hosts import Host
from devices.local import LocalDevice
from devices.profile import DeviceProfile, RuntimeProfile
from edgevit.errors import OptionError, UsageError

PROFILE = DeviceProfile(
    name="apple-a13",
    title="iPhone 11",
    arch="arm64",
    runtimes={"coreml-phone": RuntimeProfile(("coreml",))},
)
HOST = Host("phone", "generic-arm64", "mac.example", attached=IPHONE["identifier"])


class Carrier:
    """A Mac's session that tells made-up events and keeps the job."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.calls: list[str] = []
        self.told = {
            "event": "facts",
            "machine": {"arch": "arm64", "model": "Macmini9,1", "hostname": "mini"},
            "os": {"system": "Darwin"},
            "cpu": {"count": 8, "model": "Apple M1"},
            "python": {"version": "3.11.9"},
            "conditions": {"load_average": [1.0, 1.0, 1.0]},
        }

    def facts(self) -> dict[str, Any]:
        return self.told

    def push(self, folder: Path, parts: Sequence[str] | None = None) -> str:
        self.calls.append(f"push {parts}")
        return f"/store/{folder.name}"

    def run(self, job: Job, *, silence_s: float = 0) -> Any:
        self.job = job
        yield self.told
        yield {"event": "done", "stopped": False}

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")


@pytest.mark.parametrize("unit", COMPUTE_UNITS)
def test_a_compute_unit_becomes_an_option(unit: str) -> None:
    assert coreml_options(unit) == {"compute_unit": unit}


def test_without_a_compute_unit_core_ml_chooses() -> None:
    assert coreml_options(None) == {}


def test_what_is_no_compute_unit() -> None:
    with pytest.raises(OptionError, match="cpu or gpu or ane or all"):
        coreml_options("npu")


def test_packages_go_to_the_phone(tmp_path: Path) -> None:
    carrier = Carrier()
    package = replace(make_dense(tmp_path, "m"), backend="coreml", options=coreml_options("ane"))
    with PhoneSession(carrier, PROFILE, "its-udid") as session:  # type: ignore[arg-type]
        assert session.push(Path("/x/bundle"), ["m"]) == "/store/bundle"
        events = list(session.run(Job("time", (package,), threads=3)))
        session.stop()
    assert carrier.job is not None
    (subject,) = carrier.job.subjects
    assert subject.backend == "coreml-phone"
    assert subject.options == {"compute_unit": "ane", "device": "its-udid"}
    assert carrier.job.threads == 3
    assert carrier.calls == ["push ['m']", "stop", "close"]
    assert [event["event"] for event in events] == ["facts", "done"]
    assert events[0] == session.facts()


def test_the_macs_facts_are_not_the_phones() -> None:
    told = PhoneSession(Carrier(), PROFILE, "udid").facts()  # type: ignore[arg-type]
    assert told["machine"] == {"arch": "arm64", "model": "iPhone 11", "hostname": None}
    assert (told["os"], told["cpu"]) == ({}, {})
    assert "conditions" not in told
    assert told["carrier"]["cpu"]["model"] == "Apple M1"
    assert told["python"]["version"] == "3.11.9"


def test_another_format_is_refused(tmp_path: Path) -> None:
    session = PhoneSession(Carrier(), PROFILE, "udid")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="runs Core ML packages, not onnxruntime"):
        list(session.run(Job("check", (make_dense(tmp_path, "m"),))))


def test_a_host_without_a_phone() -> None:
    with pytest.raises(UsageError, match="has no phone attached") as caught:
        PhoneDevice(replace(HOST, attached=None))
    assert "--attached" in (caught.value.hint or "")


@pytest.mark.skipif(platform.system() == "Darwin", reason="this is a Mac")
def test_a_phone_cannot_be_attached_here() -> None:
    with pytest.raises(UsageError, match="which is no Mac"):
        PhoneDevice(replace(HOST, address="localhost"))


def test_a_phone_at_this_mac_needs_no_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    device = PhoneDevice(replace(HOST, address="localhost", emulated=True))
    assert isinstance(device._carrier, LocalDevice)
    assert (device.name, device.profile.name, device.emulated) == ("phone", HOST.profile, True)


@pytest.mark.slow
def test_from_the_host_to_the_phone_and_back(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    subject, _ = package_subject(tmp_path)
    environment = mac_environment(tmp_path) | {"TMPDIR": str(tmp_path / "tmp")}
    environment["STANDIN_GOLDEN"] = subject.golden or ""
    device = PhoneDevice(HOST, LocalDevice(environment=environment))
    job = Job("time", (replace(subject, options=coreml_options("gpu")),), schedule=QUICK)
    with device.open() as session:
        events = run(session, job)  # type: ignore[arg-type]
    assert not named(events, "error")
    assert only(events, "checked")["ok"]
    assert len([ns for block in named(events, "samples") for ns in block["ns"]]) >= QUICK.min_runs
    assert only(events, "loaded")["settings"]["compute_units"] == "CPU_AND_GPU"
    assert only(events, "facts")["carrier"]["machine"]
