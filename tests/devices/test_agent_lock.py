"""The lock of a device: who holds it, and what is not believed."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from devices.agent import lock
from devices.agent.errors import AgentError

HOLD = """
    import sys, time
    from devices.agent import lock
    who = {"user": "anna@laptop", "pid": 7, "command": "edgevit bench"}
    lock.acquire(5, time.sleep, print, who)
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that holds the lock."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOLD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(folder)},
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Path(lock.lock_path())


def refused(patience: float = 0.0) -> str:
    """What somebody is told who does not get it."""
    with pytest.raises(AgentError) as caught:
        lock.acquire(patience, lambda _: None, lambda _: None)
    assert caught.value.kind == "busy"
    return caught.value.message


def test_others_are_told_who_holds_it_and_since_when(path: Path, tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    try:
        message = refused()
        assert "`edgevit bench` of anna@laptop, process 7 there" in message
        assert "has run on this device for 0 s, since 20" in message
        with path.open("rb") as stream:
            told = lock.holder(stream.fileno())
        assert told["agent_pid"] == holder.process.pid
    finally:
        holder.kill()


def test_a_dead_holders_lock_is_free_whatever_the_file_says(path: Path, tmp_path: Path) -> None:
    Holder(tmp_path).kill()
    assert b"anna" in path.read_bytes()
    waited: list[dict[str, Any]] = []
    fd = lock.acquire(0, lambda _: None, waited.append)
    assert fd is not None
    assert not waited
    assert lock.holder(fd)["agent_pid"] == os.getpid()
    os.close(fd)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        '{"agent_pid": 1, "started": "0", "at": 0, "user": "eve"}',
        '{"agent_pid": "x", "started": "0", "at": 0}',
        '{"agent_pid": 999999999, "started": "0", "at": 0, "user": "eve"}',
    ],
)
def test_what_nobody_alive_wrote_is_not_believed(path: Path, tmp_path: Path, text: str) -> None:
    holder = Holder(tmp_path)
    try:
        path.write_text(text)
        assert refused() == "another measurement runs on this device; waited 0 s for its end"
    finally:
        holder.kill()


def test_a_recycled_process_number_is_not_the_holder(path: Path, tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    try:
        told = json.loads(path.read_text())
        assert told["started"]
        path.write_text(json.dumps({**told, "agent_pid": os.getpid()}))
        assert "anna" not in refused()
    finally:
        holder.kill()


def test_another_users_file_is_locked_as_well(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0o444)
    fd = lock.acquire(0, lambda _: None, lambda _: None)
    assert fd is not None
    assert refused().startswith("another measurement")
    os.close(fd)


def test_no_file_is_overwritten_through_a_link(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    path.symlink_to(precious)
    assert "cannot lock" in refused()
    path.unlink()
    path.hardlink_to(precious)
    fd = lock.acquire(0, lambda _: None, lambda _: None)
    assert fd is not None
    os.close(fd)
    assert precious.read_text() == "kept"


@pytest.mark.parametrize(
    ("seconds", "said"), [(59.4, "59 s"), (60, "1 min"), (7199, "119 min"), (7200, "2 h")]
)
def test_durations(seconds: float, said: str) -> None:
    told = {"seconds": seconds, "since": "then", "agent_pid": 3}
    assert lock.describe(told).endswith(f"for {said}, since then (agent 3)")
