"""OpenVINO in the agent: real models in the real runtime."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from devices_kit import QUICK, make_subject, named, only, run, shadow

from devices.base import Job, Subject
from devices.local import LocalSession

OpenSession = Callable[..., LocalSession]
pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs edgevit[openvino]")

#: Written in a process of its own, in which OpenVINO has no telemetry.
WRITE = """
import sys
sys.modules["openvino_telemetry"] = None
import numpy as np
import openvino as ov
from openvino import opset13 as op

batch, path = int(sys.argv[1]), sys.argv[2]
a = op.parameter([batch, 6], np.float32, name="a")
b = op.parameter([batch, 6], np.float32, name="b")
both = op.tanh(op.subtract(a, b))
model = ov.Model([both], [a, b], "tiny")
for port, name in zip((*model.inputs, *model.outputs), ("a", "b", "y")):
    port.get_tensor().set_names({name})
ov.save_model(model, path, compress_to_fp16=False)
"""


def make_difference(folder: Path, *, batch: int = 1, sign: int = 1) -> Subject:
    """``tanh(a - b)`` in a folder as the exporter writes it; the subject has ``b`` first."""
    path = folder / "model.openvino"
    path.mkdir()
    command = [sys.executable, "-c", WRITE, str(batch), str(path / "model.xml")]
    subprocess.run(command, check=True, capture_output=True)
    a, b = np.random.default_rng(0).standard_normal((2, 3, 1, 6)).astype(np.float32)
    inputs, outputs = {"b": b, "a": a}, {"y": sign * np.tanh(a - b)}
    return make_subject("difference", path, inputs, outputs, backend="openvino")


@pytest.fixture
def difference(tmp_path: Path) -> Subject:
    return make_difference(tmp_path)


def test_it_is_checked_and_timed(session: LocalSession, difference: Subject) -> None:
    events = run(session, Job("time", (difference,), schedule=QUICK))
    assert not named(events, "error")
    assert only(events, "checked")["ok"]
    assert named(events, "samples")
    loaded = only(events, "loaded")
    version = session.facts()["runtimes"]["openvino"]
    assert loaded["runtime"] == {"name": "openvino", "version": version}
    settings = loaded["settings"]
    assert (settings["threads"], settings["streams"], settings["precision"]) == (1, 1, "f32")


def test_another_result_is_no_match(session: LocalSession, tmp_path: Path) -> None:
    wrong = make_difference(tmp_path, sign=-1)
    events = run(session, Job("time", (wrong,), schedule=QUICK))
    assert only(events, "error")["kind"] == "mismatch"
    assert not named(events, "samples")


@pytest.mark.parametrize("batch", [1, 3])
def test_an_open_batch_is_fixed_at_load(session: LocalSession, tmp_path: Path, batch: int) -> None:
    subject = replace(make_difference(tmp_path, batch=-1), batch=batch)
    events = run(session, Job("check", (subject,)))
    assert only(events, "checked")["ok"]


def test_a_fixed_batch_is_not_changed(session: LocalSession, difference: Subject) -> None:
    error = only(run(session, Job("check", (replace(difference, batch=2),))), "error")
    assert error["message"] == "input b takes 1x6, got 2x6"


def test_a_file_by_itself_is_read_too(session: LocalSession, dense: Subject) -> None:
    subject = replace(dense, backend="openvino")  # which reads ONNX files as well
    assert only(run(session, Job("check", (subject,))), "checked")["ok"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp32"}, "precision must be f32 or f16 or bf16 or null, got 'fp32'"),
        ({"pinning": "yes"}, "pinning must be true, false or null, got 'yes'"),
        ({"threads": 2}, "backend openvino has no option threads; it has: pinning, precision"),
    ],
)
def test_bad_options_are_refused(
    session: LocalSession, difference: Subject, options: dict[str, object], message: str
) -> None:
    error = only(run(session, Job("check", (replace(difference, options=options),))), "error")
    assert (error["kind"], error["message"]) == ("protocol", message)


def test_options_reach_the_runtime(session: LocalSession, difference: Subject) -> None:
    subject = replace(difference, options={"precision": None, "pinning": False}, tolerance=0.1)
    events = run(session, Job("check", (subject,), threads=2))
    settings = only(events, "loaded")["settings"]
    assert (settings["threads"], settings["pinning"]) == (2, False)
    assert settings["precision"] in ("f32", "bf16", "f16")


def test_without_it_its_absence_is_told(
    open_session: OpenSession, difference: Subject, tmp_path: Path
) -> None:
    hidden = shadow(tmp_path, "openvino", "raise ImportError('not for this board')")
    error = only(run(open_session(hidden), Job("check", (difference,))), "error")
    assert error["kind"] == "runtime-missing"
    assert "not for this board" in error["message"]


def test_nothing_is_kept_in_the_users_home(
    open_session: OpenSession, difference: Subject, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    events = run(open_session({"HOME": str(home)}), Job("check", (difference,)))
    assert only(events, "checked")["ok"]
    assert not (home / "intel").exists()
