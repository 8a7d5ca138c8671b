"""The host's side: what a job may be, what an event must be, where devices come from."""

import json
from dataclasses import replace
from typing import Any

import pytest

from devices.agent_process import FIELDS, parse_event
from devices.base import Device, Job, Schedule, Subject, SubjectInput, devices, thread_environment
from devices.local import LocalDevice
from edgevit.errors import DeviceError, OptionError, UnknownNameError


def some_subject(**changes: Any) -> Subject:
    inputs = (SubjectInput("x", (1, 3, 8, 8), "NHWC"),)
    return replace(Subject("a", "onnxruntime", "/a.onnx", inputs, ("y",), 5e-5), **changes)


def test_a_job_is_json_as_the_agent_reads_it() -> None:
    job = Job("time", (some_subject(batch=4),), threads=2, schedule=Schedule(runs=10), id="one")
    data = json.loads(json.dumps(job.to_json(), allow_nan=False))
    assert data["protocol"] == 1
    assert (data["id"], data["mode"], data["threads"]) == ("one", "time", 2)
    assert data["schedule"]["runs"] == 10
    assert data["subjects"] == [
        {
            "id": "a",
            "backend": "onnxruntime",
            "file": "/a.onnx",
            "sha256": None,
            "golden": None,
            "inputs": [{"name": "x", "shape": [1, 3, 8, 8], "layout": "NHWC", "dtype": "float32"}],
            "outputs": [{"name": "y"}],
            "tolerance": {"relative": 5e-5},
            "batch": 4,
            "options": {},
        }
    ]


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Job("measure", (some_subject(),)), "mode"),
        (lambda: Job("time"), "subjects"),
        (lambda: Job("time", (some_subject(), some_subject())), "subjects"),
        (lambda: Job("memory", (some_subject(), some_subject(id="b"))), "subjects"),
        (lambda: Job("time", (some_subject(),), threads=0), "threads"),
        (lambda: some_subject(batch=0), "batch"),
        (lambda: some_subject(inputs=()), "inputs"),
        (lambda: some_subject(outputs=()), "outputs"),
        (lambda: some_subject(tolerance=0.0), "tolerance"),
        (lambda: SubjectInput("x", (1, 3), "NHWC"), "shape"),
        (lambda: SubjectInput("x", (1, 3, 8, 8), "CHWN"), "layout"),
        (lambda: Schedule(runs=0), "runs"),
        (lambda: Schedule(min_runs=0), "min_runs"),
        (lambda: Schedule(block_seconds=0), "block_seconds"),
        (lambda: Schedule(warmup_seconds=-1), "warmup_seconds"),
        (lambda: Schedule(min_seconds=5, max_seconds=1), "max_seconds"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, option: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.option == option


def test_jobs_have_names_of_their_own() -> None:
    assert Job("facts").id != Job("facts").id


@pytest.mark.parametrize("line", [b"Welcome!", b"", b"[1, 2]", b"3", b"\xff\xfe", b'{"event": '])
def test_a_line_that_is_no_object_is_not_from_the_agent(line: bytes) -> None:
    assert parse_event(line) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{}", "unknown event None"),
        (b'{"event": "party"}', "unknown event 'party'"),
        (b'{"event": ["done"]}', "unknown event"),
        (b'{"event": "samples", "id": "a", "round": 0, "inner": 1}', "samples lacks ns"),
    ],
)
def test_an_object_that_is_no_event_is_an_error(line: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_event(line)


@pytest.mark.parametrize("name", FIELDS)
def test_every_event_has_its_fields(name: str) -> None:
    event = {"event": name, **dict.fromkeys(FIELDS[name], 0)}
    assert parse_event(json.dumps(event).encode()) == event
    with pytest.raises(ValueError, match="lacks"):
        parse_event(json.dumps({"event": name}).encode())


def test_the_local_device_is_found_by_its_name() -> None:
    assert "local" in devices.names()
    device: Device = devices.get("local")
    assert isinstance(device, LocalDevice)
    assert device.profile.formats
    with pytest.raises(UnknownNameError):
        devices.get("lokal")


def test_an_interpreter_that_is_not_there() -> None:
    with (
        LocalDevice(python="/nowhere/python").open() as session,
        pytest.raises(DeviceError, match="cannot start /nowhere/python") as caught,
    ):
        session.facts()
    assert caught.value.exit_code == 3


def test_an_interpreter_that_is_none() -> None:
    with (
        LocalDevice(python="/bin/false").open() as session,
        pytest.raises(DeviceError, match="exit status 1 before it was done"),
    ):
        session.facts()


def test_thread_pools_are_set_before_they_exist() -> None:
    assert thread_environment(2)["OMP_NUM_THREADS"] == "2"
    assert set(thread_environment(3).values()) == {"3"}
