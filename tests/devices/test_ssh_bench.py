"""Benches on boards that have accidents: what was measured stays, and the rest is measured."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from devices_kit import QUICK
from sshd_kit import Boards, Sshd
from test_agent_lifetime import gone_within
from test_ssh_store import small_disk

from devices.hosts import save_host
from edgevit.measure.results import Result, read_results
from edgevit.progress import Progress
from edgevit.source import BlockSpec
from edgevit.verbs import runs
from edgevit.verbs.bench import bench

GOOD = ("ok", "unstable")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two blocks as ONNX."""
    from edgevit.verbs.export import export

    folder = tmp_path_factory.mktemp("exports")
    specs = BlockSpec("softmax", 16, 8, 2), BlockSpec("sima", 16, 8, 2)
    return [export(spec, output=folder, formats=["onnx"]).path for spec in specs]


@pytest.fixture
def own(user_home: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[Boards]:
    """A board behind a server that only this test has."""
    with (
        Sshd(tmp_path / "sshd") as sshd,
        Boards(sshd, user_home, tmp_path / "board", sys.executable, environment) as boards,
    ):
        yield boards


class Told(Progress):
    """Keeps the notes."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def note(self, message: str) -> None:
        self.notes.append(message)


class Accident(Progress):
    """Something that happens once, in the middle of timing."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what
        self.happened = False
        self.notes: list[str] = []

    def advance(self, name: str, done: float, total: float, detail: str = "") -> None:
        if not self.happened and 0 < done < total:
            self.happened = True
            self.what()

    def note(self, message: str) -> None:
        self.notes.append(message)


def measured(results: list[Result]) -> bool:
    return all(r.status in GOOD and r.statistics is not None for r in results)


def test_the_connection_is_cut_in_a_bench(own: Boards, bundles: list[Path], tmp_path: Path) -> None:
    accident = Accident(own.sshd.cut)
    results = bench(
        bundles, device=own.device(), output=tmp_path / "out", memory=False, schedule=QUICK,
        progress=accident,
    )  # fmt: skip
    assert accident.happened
    assert measured(results)
    assert any("the connection was cut" in note for note in accident.notes)
    assert len(read_results(tmp_path / "out")) == len(results) == 2


def test_the_board_restarts_in_a_bench(
    own: Boards, bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PATIENCE_S", (0, 0.5, 2, 4))
    finished = threading.Event()

    def start_later() -> None:
        time.sleep(1.0)
        own.sshd.start()
        finished.wait()  # the server ends with the thread that started it

    up_again = threading.Thread(target=start_later, daemon=True)

    def restart() -> None:
        own.sshd.stop()
        up_again.start()

    accident = Accident(restart)
    results = bench(
        bundles, device=own.device(), output=tmp_path / "out", schedule=QUICK, progress=accident
    )
    finished.set()
    up_again.join()
    assert accident.happened
    assert measured(results)
    assert all(r.memory for r in results)


def test_a_board_that_stays_away_keeps_what_was_measured(
    own: Boards, bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PATIENCE_S", (0,))
    bench(bundles[:1], device=own.device(), output=tmp_path / "out", schedule=QUICK)
    (before,) = (tmp_path / "out").glob("*.json")
    kept = before.read_bytes()
    accident = Accident(own.sshd.stop)
    results = bench(
        bundles, device=own.device(), output=tmp_path / "out", schedule=QUICK, progress=accident
    )
    assert [r.status for r in results] == ["failed", "failed"]
    assert "nothing listens at 127.0.0.1" in str(results[0].reason)
    assert before.read_bytes() == kept
    own.sshd.start()  # the same command again goes on
    assert measured(bench(bundles, device=own.device(), output=tmp_path / "out", schedule=QUICK))


def test_the_boards_clock_has_no_say(own: Boards, bundles: list[Path], tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    jumping = "import random, time\ntime.time = lambda: random.uniform(0, 4e9)\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(jumping)
    device = own.device(environment={"PYTHONPATH": str(tmp_path / "site")})
    start = datetime.now(timezone.utc)
    clock = time.perf_counter()
    (result,) = bench(bundles[:1], device=device, output=None, memory=False, schedule=QUICK)
    spent_ms = (time.perf_counter() - clock) * 1e3
    assert measured([result])
    created = datetime.fromisoformat(result.context.created)
    assert start.replace(microsecond=0) <= created <= datetime.now(timezone.utc)
    assert result.statistics is not None
    assert 0 < result.statistics.median_ms < spent_ms


def test_a_full_disk_in_a_bench(
    own: Boards, bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(runs, "PATIENCE_S", ())  # nobody is to wait
    with small_disk(own.home, "size=16k"):
        results = bench(
            bundles,
            device=own.device(),
            output=tmp_path / "out",
            memory=False,
            progress=Told(notes),
        )
    assert {r.status for r in results} == {"failed"}
    assert all("the board's disk is full" in str(r.reason) for r in results)
    assert not any("reaching it again" in note for note in notes), "it is there"
    assert all("edgevit devices clean board" in note for note in notes)


def test_a_file_that_the_board_has_no_room_for_leaves_the_others(
    own: Boards, bundles: list[Path], tmp_path: Path
) -> None:
    from edgevit.verbs.export import export

    large = export(BlockSpec("softmax", 1024, 64, 8), output=tmp_path, formats=["onnx"]).path
    notes: list[str] = []

    def measure() -> list[str]:
        results = bench(
            [large, *bundles], device=own.device(), output=tmp_path / "out", runs=5,
            progress=Told(notes),
        )  # fmt: skip
        return [r.status if r.status not in GOOD else "good" for r in results]

    with small_disk(own.home, "size=2m"):
        assert measure() == ["failed", "good", "good"]
    (note,) = notes
    assert note.startswith("board: the board's disk is full: ")
    assert measure() == ["good", "good", "good"], "with room, the same command goes on"
    assert any("2 of 3 results are there" in note for note in notes)


def test_a_board_gets_what_it_runs_and_no_more(
    own: Boards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevit.verbs.export import export

    spec = BlockSpec("sima", 16, 8, 2)
    bundle = export(spec, output=tmp_path, formats=["onnx", "torch"]).path
    (result,) = bench([bundle], device=own.device(), formats="onnx", runs=5, output=None)
    assert result.status in GOOD, result.reason
    store = own.home / "store"
    files = {p.name for p in store.rglob("*") if p.is_file() and p.parent.parent == store}
    assert {n for n in files if "." in n} == {"model.onnx", "golden.npz"}


def test_ctrl_c_leaves_nothing_running_there(
    own: Boards, bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    save_host(own.host())
    start = "from edgevit.cli.app import main; main()"
    command = [sys.executable, "-c", start, "bench", str(bundles[0])]
    command += ["--device", "board", "--runs", "100000000", "-o", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    told = wait_for_samples(tmp_path / "tmp" / "edgevit-agent.lock", process)
    assert f" bench {bundles[0]} --device board" in told["command"]
    assert told["pid"] == process.pid
    process.send_signal(signal.SIGINT)
    assert gone_within(told["agent_pid"], 10)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    results = read_results(tmp_path / "out")
    assert [r.status for r in results] == ["stopped"]
    assert results[0].samples_ns, "what was measured stays"


def wait_for_samples(lock: Path, process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Who holds the lock, once something must have been timed."""
    held = 0
    while held < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.5)
        held += lock.exists() and lock.stat().st_size > 0
    told: dict[str, Any] = json.loads(lock.read_text())
    return told
