"""An iPhone at a Mac, through the real Python of coremltools.

No Mac and no phone are here. The tools that coremltools calls (``xcrun``, ``devicectl``,
``xcodebuild``), its native library and its runner app are stand-ins (``standins/mac``): the phone
is a folder. All of coremltools' own Python between them and the agent is the real one.
"""

import ast
import inspect
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apple_kit import (
    attach,
    commands_of,
    iphone,
    mac_environment,
    package_subject,
    with_options,
    wrong_golden,
)
from devices_kit import QUICK, named, only, run

from devices.agent.backends import coreml_phone
from devices.agent.backends.coreml_phone import explained
from devices.agent.errors import AgentError
from devices.base import Job, Subject
from devices.local import LocalSession

pytest.importorskip("coremltools")
OpenSession = Callable[..., LocalSession]
SCHEDULE = replace(QUICK, runs=6, warmup_runs=1)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return package_subject(tmp_path_factory.mktemp("package"))[0]


@pytest.fixture
def subject(package: Subject) -> Subject:
    return with_options(package, "small", "coreml-phone", compute_unit="ane")


@pytest.fixture
def mac(tmp_path: Path, package: Subject) -> dict[str, str]:
    return mac_environment(tmp_path) | {"STANDIN_GOLDEN": package.golden or ""}


@pytest.fixture
def phone(mac: dict[str, str]) -> Path:
    return Path(mac["STANDIN_PHONE"])


@pytest.mark.slow
def test_a_package_is_checked_and_timed_on_the_phone(
    open_session: OpenSession, subject: Subject, mac: dict[str, str], phone: Path
) -> None:
    events = run(open_session(mac), Job("time", (subject,), schedule=SCHEDULE))
    assert not named(events, "error")
    assert only(events, "checked")["ok"]
    assert only(events, "checked")["samples"] == 3
    loaded = only(events, "loaded")
    assert loaded["load_ns"] == 80_000_000, "as the phone told, not as it took from here"
    assert 2_000_000 <= loaded["first_ns"] <= 2_004_000
    samples = [ns for block in named(events, "samples") for ns in block["ns"]]
    assert len(samples) == 6
    assert set(samples) <= {2_000_000 + 1000 * n for n in range(5)}
    assert len(set(samples)) > 1
    settings = loaded["settings"]
    assert settings["phone"] == {
        "name": "Test iPhone",
        "type": "iphone",
        "os_version": "17.7.2",
        "os_build": "21H221",
    }
    assert settings["compute_units"] == "CPU_AND_NE"
    assert set(settings["ops_by_unit"]) == {"ane", "cpu"}
    assert settings["ops_by_unit"]["cpu"] == 1
    assert only(events, "warning")["kind"] == "fallback"
    # The Mac's heat and load are not the phone's.
    assert [set(e) for e in named(events, "conditions")] == [{"event", "when"}] * 2
    log = commands_of(phone)
    assert sum(line.startswith("xcodebuild") for line in log) == 1
    assert not list((Path(mac["XDG_CACHE_HOME"]) / "edgevit" / "phone").iterdir())


@pytest.mark.slow
def test_wrong_outputs_on_the_phone_are_never_timed(
    open_session: OpenSession, subject: Subject, mac: dict[str, str], phone: Path, tmp_path: Path
) -> None:
    golden = wrong_golden(subject, tmp_path)
    events = run(open_session(mac), Job("time", (replace(subject, golden=str(golden)),)))
    assert only(events, "error")["kind"] == "mismatch"
    assert not named(events, "samples")


@pytest.mark.slow
def test_the_app_is_built_once_and_serves_all_subjects(
    open_session: OpenSession, subject: Subject, mac: dict[str, str], phone: Path
) -> None:
    other = with_options(subject, "other", "coreml-phone", compute_unit="cpu")
    session = open_session(mac | {"EDGEVIT_DEVELOPMENT_TEAM": "ABCDE12345"})
    events = run(session, Job("check", (subject, other)))
    assert {e["id"]: e["ok"] for e in named(events, "checked")} == {"small": True, "other": True}
    assert not named(run(session, Job("check", (subject,))), "error")
    log = commands_of(phone)
    (build,) = [line for line in log if line.startswith("xcodebuild")]
    assert "DEVELOPMENT_TEAM=ABCDE12345" in build
    assert sum("process launch" in line for line in log) == 2, "one a job"


def test_memory_of_the_phone_is_not_told(
    open_session: OpenSession, subject: Subject, mac: dict[str, str]
) -> None:
    error = only(run(open_session(mac), Job("memory", (subject,))), "error")
    assert (error["kind"], error["message"]) == (
        "unsupported",
        "coreml-phone runs on another device",
    )


def failing(
    open_session: OpenSession, subject: Subject, environment: dict[str, str]
) -> tuple[str, str]:
    """Kind and message of the error that a check ends with."""
    error = only(run(open_session(environment), Job("check", (subject,))), "error")
    return error["kind"], error["message"]


def test_no_phone_attached(
    open_session: OpenSession, subject: Subject, mac: dict[str, str], phone: Path
) -> None:
    attach(phone, [])
    kind, message = failing(open_session, subject, mac)
    assert (kind, message) == ("phone", "no iPhone is attached to this Mac; there are: none")


@pytest.mark.slow
def test_another_phone_attached(
    open_session: OpenSession, subject: Subject, mac: dict[str, str], phone: Path
) -> None:
    wanted = replace(subject, options={"device": "Somebody's"})
    kind, message = failing(open_session, wanted, mac)
    assert kind == "phone"
    assert message.startswith("no iPhone Somebody's is attached to this Mac; there are: Test iPho")
    attach(phone, [iphone(), iphone(identifier="other")])
    kind, message = failing(open_session, subject, mac)
    assert (kind, message.partition(",")[0]) == ("phone", "several are attached")


@pytest.mark.slow
def test_a_phone_that_is_away_or_asleep(
    open_session: OpenSession, subject: Subject, mac: dict[str, str], phone: Path
) -> None:
    attach(phone, [iphone(state="disconnected")])
    kind, message = failing(open_session, subject, mac)
    assert (kind, message) == (
        "phone",
        "Test iPhone is disconnected: plug it in, unlock it, and let it trust this Mac",
    )
    attach(phone, [iphone(state="disconnected", asleep=True)])
    assert only(run(open_session(mac), Job("check", (subject,))), "checked")["ok"]


@pytest.mark.slow
def test_developer_mode_off(
    open_session: OpenSession, subject: Subject, mac: dict[str, str], phone: Path
) -> None:
    attach(phone, [iphone(developer_mode="disabled")])
    kind, message = failing(open_session, subject, mac)
    assert kind == "phone"
    assert message.startswith("Developer Mode of Test iPhone is off: Settings")


@pytest.mark.slow
def test_a_locked_phone(
    open_session: OpenSession, subject: Subject, mac: dict[str, str], phone: Path
) -> None:
    kind, message = failing(open_session, subject, mac | {"STANDIN_LOCKED": "1"})
    assert kind == "phone"
    assert message.startswith("the phone is locked: unlock it and keep it so")
    attempts = [line for line in commands_of(phone) if "device copy" in line]
    assert len(attempts) < 5, "nobody waits for an app that is gone"


@pytest.mark.slow
def test_an_app_that_cannot_be_signed(
    open_session: OpenSession, subject: Subject, mac: dict[str, str]
) -> None:
    kind, message = failing(open_session, subject, mac | {"STANDIN_NO_TEAM": "1"})
    assert kind == "phone"
    assert "could not build the runner app (exit status 65)" in message
    assert "EDGEVIT_DEVELOPMENT_TEAM" in message


@pytest.mark.slow
def test_a_mac_without_xcode(
    open_session: OpenSession, subject: Subject, mac: dict[str, str], tmp_path: Path
) -> None:
    tools = Path(mac["PATH"].split(":")[0])
    (tools / "devicectl").unlink()
    (tools / "xcrun").write_text("#!/bin/sh\nexit 72\n")
    kind, message = failing(open_session, subject, mac)
    assert (kind, "install Xcode 15" in message) == ("runtime-missing", True)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (b"The device was not, or could not be, unlocked (Locked)", "the phone is locked"),
        (b"Developer Mode is disabled", "Developer Mode is off"),
        (b"invalid code signature, inadequate entitlements", "the phone does not trust"),
        (b"something else", "something else"),
    ],
)
def test_what_devicectl_says_is_explained(text: bytes, start: str) -> None:
    from coremltools.models.ml_program.experimental.remote_device import _DeviceCtlError

    error = explained(_DeviceCtlError(message=text, error_code=1), "")
    assert error.kind == "phone"
    assert error.message.startswith(start)


def test_errors_of_our_own_stay_as_they_are() -> None:
    own = AgentError("phone", "the phone is gone")
    assert explained(own, "") is own


def test_the_library_has_what_the_agent_calls() -> None:
    from coremltools.models.ml_program.experimental import perf_utils, remote_device
    from coremltools.models.ml_program.experimental.async_wrapper import MLModelAsyncWrapper

    benchmarker, device = perf_utils.MLModelBenchmarker, remote_device.Device
    for function, arguments in [
        (benchmarker, {"model": None, "device": None}),
        (benchmarker.benchmark_load, {"self": None, "iterations": 1}),
        (benchmarker.benchmark_predict, {"self": None, "inputs": {}, "iterations": 1}),
        (device.get_devices, {}),
        (device.prepare_for_model_debugging,
         {"self": None, "credentials": None, "working_directory": ""}),
        (MLModelAsyncWrapper.predict, {"self": None, "inputs": {}, "state": None}),
        (MLModelAsyncWrapper.retrieve_compute_plan, {"self": None}),
        (remote_device.AppSigningCredentials,
         {"development_team": "", "provisioning_profile_uuid": None, "bundle_identifier": None}),
    ]:  # fmt: skip
        inspect.signature(function).bind(**arguments)
    assert {"name", "identifier", "udid", "type", "state", "os_version", "os_build_number",
            "developer_mode_state", "session"} <= set(device.__dataclass_fields__)  # fmt: skip
    assert {"IPHONE", "IPAD"} <= set(remote_device.DeviceType.__members__)
    assert remote_device.DeviceState("connected") == remote_device.DeviceState.CONNECTED
    assert inspect.iscoroutinefunction(benchmarker.benchmark_load)
    assert "_loaded_model" in attributes_of(benchmarker)
    assert {"_process", "working_directory"} <= attributes_of(remote_device._AppSession)
    assert remote_device._AppBuilder.Error.__qualname__.endswith("Builder.Error")


def attributes_of(kind: type[Any]) -> set[str]:
    """Names that a class's constructor assigns to its objects."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.__init__)))
    stores = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    return {n.attr for n in stores if isinstance(n.ctx, ast.Store)}


def test_tools_are_found_where_xcode_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_, xcode = tmp_path / "bin", tmp_path / "Xcode"
    for folder, name, script in (
        (bin_, "xcrun", f"echo {xcode}/devicectl"),
        (bin_, "xcodebuild", ""),
        (xcode, "devicectl", ""),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_))
    coreml_phone.find_tools()
    assert shutil.which("devicectl") == str(xcode / "devicectl")
    (bin_ / "xcodebuild").unlink()
    with pytest.raises(AgentError, match="no xcodebuild"):
        coreml_phone.find_tools()
