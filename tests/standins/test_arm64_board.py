"""The Raspberry Pi stand-in itself: that it is what it says, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arm64.board import Board, ways
from arm64.rootfs import CACHE

pytestmark = pytest.mark.slow

MakeBoard = Callable[..., Board]


def command(board: Board, line: str) -> str:
    """What a shell on the board prints."""
    options = {
        "UserKnownHostsFile": str(board.known_hosts),
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
    }
    done = subprocess.run(
        ["ssh", "-F", "none", "-i", str(board.identity), "-p", str(board.port),
         *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
         f"{board.user}@127.0.0.1", line],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, (done.stderr, board.said())
    return done.stdout


def processes_under(root: Path) -> list[str]:
    """Programs of this machine that live in that folder, use files of it, or name it."""
    return [
        folder.name
        for folder in Path("/proc").glob("[0-9]*")
        if str(root) in _read(folder / "cmdline") + _read(folder / "maps")
        or _link(folder / "root") == str(root)
    ]


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):  # it is gone
        return path.read_bytes().decode(errors="replace")
    return ""


def _link(path: Path) -> str:
    with contextlib.suppress(OSError):  # it is gone, or another user's
        return str(path.readlink())
    return ""


@pytest.fixture(params=["namespace", "proot"])
def way(request: pytest.FixtureRequest, arm64_ways: tuple[str, ...]) -> str:
    if request.param not in arm64_ways:
        pytest.skip(f"{request.param} is refused here")
    name: str = request.param
    return name


@pytest.fixture
def make_board(arm64_ways: tuple[str, ...], tmp_path: Path) -> Iterator[MakeBoard]:
    made: list[Board] = []

    def make(**options: object) -> Board:
        folder = tmp_path / f"board{len(made)}"
        folder.mkdir()
        made.append(Board(folder, **options).__enter__())  # type: ignore[arg-type]
        return made[-1]

    yield make
    for board in made:
        board.close()


def test_it_runs_arm64_programs_and_ends_with_everything_that_it_started(
    make_board: MakeBoard, way: str
) -> None:
    board = make_board(way=way)
    assert command(board, "uname -m; id -un").split() == ["aarch64", "pi"]
    code = "import platform, numpy; print(platform.machine(), numpy.linalg.inv([[2.0]])[0, 0])"
    assert command(board, f"python3 -c '{code}'").split() == ["aarch64", "0.5"]
    command(board, "nohup sleep 300 >/dev/null 2>&1 &")
    assert len(processes_under(board.root)) > 1
    board.stop()
    assert processes_under(board.root) == []
    assert str(board.folder) not in Path("/proc/mounts").read_text()
    board.start()
    assert command(board, "echo back").strip() == "back"
    board.close()
    assert not board.root.exists()
    assert processes_under(board.root) == []


def test_what_it_tells_of_itself_can_be_changed_while_it_runs(make_board: MakeBoard) -> None:
    board = make_board()
    look = "vcgencmd get_throttled; cat /sys/class/thermal/thermal_zone0/temp /sys/devices/system/"
    look += "cpu/cpu3/cpufreq/scaling_governor /sys/firmware/devicetree/base/model | tr '\\0' '\\n'"
    said = ["throttled=0x0", "45000", "performance", "Raspberry Pi 4 Model B Rev 1.4"]
    assert command(board, look).splitlines() == said
    board.throttled(0x50005)
    board.heat(82.5)
    board.governor("powersave")
    board.model("Raspberry Pi 5 Model B Rev 1.0")
    said = ["throttled=0x50005", "82500", "powersave", "Raspberry Pi 5 Model B Rev 1.0"]
    assert command(board, look).splitlines() == said


def test_it_dies_with_the_process_that_started_it(tmp_path: Path, way: str) -> None:
    code = f"""
import pathlib, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from arm64.board import Board
board = Board(pathlib.Path({str(tmp_path)!r}), way={way!r}).__enter__()
print("up", flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(CACHE.parent)},
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        assert processes_under(tmp_path / "root")
        owner.send_signal(signal.SIGKILL)
    assert _gone(tmp_path / "root")


def _gone(root: Path) -> bool:
    deadline = time.monotonic() + 20
    while processes_under(root) and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes_under(root) == []


def test_a_bare_one_has_python_and_no_runtime(make_board: MakeBoard) -> None:
    board = make_board(bare=True)
    names = ("numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime", "venv", "ensurepip")
    code = f"from importlib.util import find_spec as f; print([n for n in {names} if f(n)])"
    assert command(board, f'python3 -c "{code}"').strip() == "['numpy', 'venv', 'ensurepip']"


def test_the_best_way_comes_first(arm64_ways: tuple[str, ...]) -> None:
    assert arm64_ways == ways()
    assert list(arm64_ways) == sorted(arm64_ways, key=["namespace", "proot"].index)
