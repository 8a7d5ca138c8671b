"""The agent under the oldest Python it promises, one between, and the newest; real runtimes."""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from devices_kit import QUICK, interpreter, named, only, run

from devices.base import Job, Subject
from devices.local import LocalSession

OpenSession = Callable[..., LocalSession]
PACKAGES = ("numpy", "onnxruntime")


def environment_of(version: str) -> str:
    """The interpreter of an environment with numpy and onnxruntime, made once and kept."""
    from filelock import FileLock

    base = interpreter(version)
    if base is None:
        pytest.skip(f"there is no Python {version} here")
    folder = Path(tempfile.gettempdir()) / f"edgevit-floor-{version}"
    python = folder / "bin" / "python"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            install(base, folder, version)
            (folder / "complete").touch()
    return str(python)


def install(base: str, folder: Path, version: str) -> None:
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    steps = [[base, "-m", "venv", "--clear", str(folder)], [*pip, *PACKAGES]]
    if version == "3.6":  # its pip knows no wheel of onnxruntime
        steps.insert(1, [*pip, "-U", "pip<22"])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(f"{' '.join(step[1:])}: {done.stderr.strip()[-300:]}")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.6", "3.8", "3.13"])
def test_the_agent_runs(version: str, open_session: OpenSession, dense: Subject) -> None:
    session = open_session(python=environment_of(version))
    told = session.facts()
    assert told["python"]["version"].startswith(f"{version}.")
    assert told["runtimes"].keys() >= set(PACKAGES)
    events = run(session, Job("time", (dense,), schedule=QUICK))
    assert not named(events, "error")
    assert only(events, "checked")["ok"]
    assert only(events, "loaded")["runtime"]["version"] == told["runtimes"]["onnxruntime"]
    assert len([ns for event in named(events, "samples") for ns in event["ns"]]) >= QUICK.min_runs
    assert only(run(session, Job("memory", (dense,))), "memory")["peak_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.6", "3.13"])
def test_a_wrong_file_is_not_timed(version: str, open_session: OpenSession, tmp_path: Path) -> None:
    from devices_kit import make_dense

    session = open_session(python=environment_of(version))
    wrong = make_dense(tmp_path, "wrong", golden_scale=1.01)
    events = run(session, Job("time", (wrong,), schedule=QUICK))
    assert only(events, "error")["kind"] == "mismatch"
    assert not named(events, "samples")


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9", "3.10", "3.12", "3.13"])
def test_facts_need_nothing_but_python(version: str, open_session: OpenSession) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    told = open_session(python=python).facts()
    assert told["python"]["version"].startswith(f"{version}.")
    assert told["clock"]["resolution_ns"] > 0
