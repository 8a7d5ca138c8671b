"""The small programs that a board's own Python runs, under the oldest Python and this one."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from devices_kit import interpreter
from local_shell import Ended, LocalShell

from devices.line import ending_of
from devices.remote import ask, look
from edgevit.errors import DeviceError


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalShell:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # others measure on this machine
    return LocalShell(str(tmp_path / "home"))


@pytest.mark.parametrize("version", ["3.6", "3.11", "3.13"])
def test_a_board_is_looked_at(version: str, shell: LocalShell) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    board = look(shell, python)
    assert board.python_version.startswith(f"{version}.")
    assert (board.bits, board.implementation, board.venv) == (64, "cpython", True)
    assert abs(board.time - time.time()) < 30
    assert board.free_bytes > 0
    assert board.holder is None
    assert not Path(shell.home).exists(), "looking leaves nothing behind"


def test_a_running_measurement_is_seen(shell: LocalShell, tmp_path: Path) -> None:
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "f.write(sys.argv[2]); f.flush(); print('held', flush=True); time.sleep(60)"
    )
    for written, told in (('{"user": "ann"}', {"user": "ann"}), ("", {}), ("{", {})):
        with subprocess.Popen(
            [sys.executable, "-c", holder, str(tmp_path / "edgevit-agent.lock"), written],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert look(shell, sys.executable).holder == told
            process.kill()
        assert look(shell, sys.executable).holder is None


def test_no_python_says_what_to_do(shell: LocalShell) -> None:
    with pytest.raises(DeviceError, match="no /nowhere/python on the board") as caught:
        look(shell, "/nowhere/python")
    assert "apt install python3" in (caught.value.hint or "")


def test_a_python_that_is_too_old(shell: LocalShell) -> None:
    python = interpreter("2.7")
    if python is None:
        pytest.skip("there is no Python 2.7 here")
    with pytest.raises(DeviceError, match=r"is Python 2\.7\.\d+; the agent needs 3\.6"):
        look(shell, python)
    told = look(shell, sys.executable).__dict__ | {"python": [3, 5, 3]}
    shell.answers["python3"] = Ended(0, json.dumps(told).encode(), b"")
    with pytest.raises(DeviceError, match=r"is Python 3\.5\.3; the agent needs 3\.6"):
        look(shell)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Ended(0, b"Welcome to the board\n", b""), "answered 'Welcome to the board', not JSON"),
        (Ended(0, b"", b""), "answered ''"),
        (Ended(1, b"", b"Traceback\n  x\nMemoryError\n"), "ended with exit status 1: MemoryError"),
        (Ended(139, b"", b""), "was killed by SIGSEGV"),
    ],
)
def test_a_python_that_fails(shell: LocalShell, answer: Ended, said: str) -> None:
    shell.answers["python3"] = answer
    with pytest.raises(DeviceError, match=said):
        ask(shell, "python3", "look", shell.home)


def test_a_greeting_before_the_answer_is_no_matter(shell: LocalShell) -> None:
    shell.answers["python3"] = Ended(0, b'Welcome!\n{"a": 1}\n', b"")
    assert ask(shell, "python3", "look") == {"a": 1}


def test_endings_in_words() -> None:
    assert ending_of(-4) == ending_of(132) == "was killed by SIGILL"
    assert ending_of(3) == "ended with exit status 3"


@pytest.mark.parametrize("version", ["3.6", "3.11"])
def test_what_was_sent_is_kept_if_it_is_right(
    version: str, shell: LocalShell, tmp_path: Path
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    good = {name: hashlib.sha256(name.encode()).hexdigest() for name in "abc"}
    (tmp_path / "a").write_text("a")
    (tmp_path / "b.part").write_text("b")
    (tmp_path / "c.part").write_text("damaged")
    (tmp_path / "old").write_text("of another time")
    assert ask(shell, python, "keep", str(tmp_path), "look", data=good) == ["a"]
    assert sorted(ask(shell, python, "keep", str(tmp_path), "keep", data=good)) == ["a", "b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert ask(shell, python, "keep", str(tmp_path), "look", data={"a": "another"}) == []


def test_what_is_installed(shell: LocalShell, tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "mark").write_text('{"base": "x"}')
    told = ask(shell, sys.executable, "installed", str(tmp_path / "mark"))
    assert told["versions"]["numpy"] == np.__version__
    assert "ai-edge-litert" in told["versions"]
    assert told["mark"] == {"base": "x"}
    assert ask(shell, sys.executable, "installed", str(tmp_path / "none"))["mark"] is None


def test_runtimes_are_proved(shell: LocalShell) -> None:
    from devices.remote import run_script

    done = run_script(shell, sys.executable, "prove", "numpy", "onnxruntime")
    assert [json.loads(line) for line in done.stdout.splitlines()] == ["numpy", "onnxruntime"]
    assert run_script(shell, sys.executable, "prove", "numpy", "no_such_module").status == 1
