"""Several models at a time: each for itself, nothing half-written, no process left."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from edgevit.bundle import Bundle
from edgevit.errors import (
    ConversionError,
    MissingExtraError,
    OptionError,
    UnavailableError,
    UnknownNameError,
    UsageError,
    VerificationError,
)
from edgevit.progress import Progress
from edgevit.verbs.export_many import Exported, chosen_models, exit_code, export_many

#: Factories that the workers import; what some of them do is meant to be an accident.
FACTORIES = """
import os
import signal
import time

import torch
from torch import nn


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def other():
    return small()


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


class Slow(nn.Module):
    def forward(self, x):
        if torch.compiler.is_exporting():
            open(os.environ["SLOW"], "w").close()
            time.sleep(300)
        return x


def slow():
    return Slow()


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def branching():
    return Branching()


def talks():
    print("a converter's own words")
    return small()
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of factories that this process and its workers can import."""
    (tmp_path / "many_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda name: f"many_factories:{name}"


def is_gone(group, patience_s=10.0):
    """Whether no process of a group is left; Python's bookkeeper of them ends a moment later."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


class Heard(Progress):
    def __init__(self):
        self.steps, self.ended, self.notes = [], [], []

    def advance(self, name, done, total, detail=""):
        assert 0 <= done <= total
        self.steps.append((name, detail))

    def over(self, name):
        self.ended.append(name)

    def note(self, message):
        self.notes.append(message)


def test_names_are_filled_in_once_and_in_order():
    found = chosen_models(["hybrid_vin", "efficientvit_m[01]", "efficientvit_m0", "a.b:make"])
    assert found[1:] == ["efficientvit_m0", "efficientvit_m1", "a.b:make"]
    assert found[0] in chosen_models(["*"])
    assert chosen_models(["deit_small+xca"]) == ["deit_small+xca"]


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["efficientvit_m0", "efficientvit_mo"], UnknownNameError),
        (["nothing_*"], UnknownNameError),
        (["a:make", "b:make"], UsageError),
    ],
)
def test_names_that_cannot_be(names, error):
    with pytest.raises(error):
        chosen_models(names)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"jobs": 0}, OptionError),
        ({"name": "x"}, UsageError),
        ({"weights": "x.safetensors"}, UsageError),
        ({"formats": ["onyx"]}, UnknownNameError),
        ({"options": {"onnx": {"opset": 3}}}, OptionError),
        ({"passes": ["no_such_pass"]}, UnknownNameError),
    ],
)
def test_what_no_model_could_be_exported_with_is_refused_at_once(options, error, tmp_path):
    with pytest.raises(error):
        export_many(["efficientvit_m0", "elevit"], output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_told_once(monkeypatch, tmp_path):
    from exporters.base import exporters

    monkeypatch.setattr(type(exporters.get("tflite")), "missing", lambda _: ["litert_torch"])
    with pytest.raises(MissingExtraError):
        export_many(["efficientvit_m0", "elevit"], output=tmp_path, formats=["tflite"])


def test_one_that_fails_does_not_stop_the_others(factories, tmp_path):
    heard, out = Heard(), tmp_path / "out"
    names = [factories(n) for n in ("small", "branching", "dies", "no_such", "other")]
    outcomes = export_many(
        names, jobs=2, output=out, formats=["torch"], image_size=16, progress=heard
    )
    assert [o.model for o in outcomes] == names
    small, branching, dies, missing, other = outcomes
    assert small.error is None
    assert other.error is None
    assert isinstance(branching.error, ConversionError)
    assert isinstance(dies.error, UnavailableError)
    assert "exit code -9" in dies.error.message
    assert missing.error.exit_code == 2
    assert exit_code(outcomes) == 2
    assert sorted(p.name for p in out.iterdir()) == ["other", "small"]
    for outcome in (small, other):
        bundle = Bundle.open(outcome.path)
        assert bundle.manifest["artifacts"]["torch"]["verification"]["status"] == "verified"
        assert bundle.manifest == outcome.manifest
    assert (names[0], "capture") in heard.steps
    assert sorted(heard.ended) == sorted(names)
    assert sum(note.startswith("[5/5]") for note in heard.notes) == 1


def test_the_exit_code_is_the_gravest():
    failed = [
        Exported("a", 1.0, error=ConversionError("x")),
        Exported("b", 1.0, error=VerificationError("x")),
        Exported("c", 1.0),
    ]
    assert exit_code(failed) == 1
    assert exit_code(failed[:1]) == 3
    assert exit_code(failed[2:]) == 0


@pytest.mark.slow
def test_the_command_prints_one_document(factories, tmp_path):
    names = [factories("talks"), factories("branching")]
    command = [sys.executable, "-m", "edgevit", "export", *names, "-f", "torch", "--json"]
    command += ["--image-size", "16", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert [entry["status"] for entry in found["models"]] == ["ok", "failed"]
    assert found["models"][0]["manifest"]["artifacts"]["torch"]["file"]
    assert found["models"][1]["error"]["error"] == "ConversionError"
    assert found["models"][1]["manifest"] is None


@pytest.mark.slow
def test_the_command_prints_a_table(factories, tmp_path):
    names = [factories("small"), factories("other")]
    command = [sys.executable, "-m", "edgevit", "export", *names, "-f", "torch"]
    command += ["--image-size", "16", "-o", str(tmp_path / "out"), "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verified (torch") == 2
    assert f"{names[0]}: write torch" in done.stderr
    assert f"[2/2] {names[1]} done" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_the_workers_and_leaves_nothing(factories, tmp_path, monkeypatch):
    slow = tmp_path / "slow"
    monkeypatch.setenv("SLOW", str(slow))
    out = tmp_path / "out"
    names = [factories("small"), factories("slow")]
    command = [sys.executable, "-m", "edgevit", "export", *names, "-f", "torch", "--jobs", "2"]
    command += ["--image-size", "16", "-o", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (slow.exists() and (out / "small").exists()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    assert any(p.name.startswith(".slow.partial-") for p in out.iterdir())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert [p.name for p in out.iterdir()] == ["small"]
    assert is_gone(process.pid)
