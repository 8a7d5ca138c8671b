"""What may go wrong with a board in the middle of things: each is caused, named, and survived."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from devices_kit import QUICK, make_dense, make_subject, named, only, shadow, write_onnx
from sshd_kit import Boards, Sshd
from test_agent_lifetime import LONG, alive, gone_within, upto

from devices.base import Event, Job, Subject
from devices.ssh import SshSession
from devices.ssh_login import Patience
from edgevit.errors import DeviceError

onnx = pytest.importorskip("onnx")


@pytest.fixture
def own(user_home: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[Boards]:
    """A board behind a server that only this test has, to do with as it likes."""
    with (
        Sshd(tmp_path / "sshd") as sshd,
        Boards(sshd, user_home, tmp_path / "board", sys.executable, environment) as boards,
    ):
        yield boards


def last_error(events: list[Event], kind: str) -> str:
    """The message of a job's last event, which is an error of that kind."""
    assert (events[-1]["event"], events[-1]["kind"]) == ("error", kind), events[-1]
    return str(events[-1]["message"])


# -- the connection --------------------------------------------------------------------------------


def test_the_connection_is_cut_before_a_job(own: Boards, dense: Subject) -> None:
    session = own.open()
    assert own.sshd.cut()
    events = list(session.run(Job("check", (dense,))))
    assert events[0]["event"] == "warning"
    assert events[0]["kind"] == "connection"
    assert events[0]["message"] == (
        "board: the connection was lost before this job; reached the board again"
    )
    assert only(events, "checked")["ok"]
    assert not named(list(session.run(Job("check", (dense,)))), "warning"), "said once"


def test_the_connection_is_cut_in_a_job(own: Boards, dense: Subject) -> None:
    session = own.open()
    events = session.run(Job("time", (dense,), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    upto(events, "samples")
    own.sshd.cut()
    rest = list(events)
    assert last_error(rest, "connection") == "board: the connection was cut"
    assert rest[-1]["id"] == "dense"
    assert not named(rest, "done")
    assert gone_within(pid, 4), "the agent ends when its stdin does"
    again = list(session.run(Job("time", (dense,), schedule=QUICK)))
    assert again[0]["kind"] == "connection"
    assert named(again, "samples")[-1]["finished"]


def test_the_connection_is_cut_after_a_job(own: Boards, dense: Subject) -> None:
    session = own.open()
    events = list(session.run(Job("time", (dense,), schedule=QUICK)))
    own.sshd.cut()
    assert events[-1] == {"event": "done", "stopped": False}
    assert session.execute(["echo", "up"]).stdout == b"up\n"
    assert only(list(session.run(Job("check", (dense,)))), "warning")["kind"] == "connection"
    own.sshd.cut()
    session.close()


def test_the_board_restarts_in_a_job(own: Boards, dense: Subject) -> None:
    session = own.open()
    events = session.run(Job("time", (dense,), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    upto(events, "samples")
    own.sshd.stop()
    assert "the connection was cut" in last_error(list(events), "connection")
    assert gone_within(pid, 1)
    with pytest.raises(DeviceError, match=r"nothing listens at .* \(connection refused\)"):
        session.run(Job("check", (dense,)))
    shutil.rmtree(own.home)  # what it had not yet written is gone
    own.sshd.start()
    again = list(session.run(Job("check", (dense,))))
    assert again[0]["kind"] == "connection"
    assert only(again, "checked")["ok"]


def test_a_board_that_no_longer_answers(own: Boards, dense: Subject) -> None:
    device = own.device(Patience(keepalive_s=0.3, keepalives=2))
    session = own.keep(device.open())
    events = session.run(Job("time", (dense,), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    upto(events, "samples")
    stopped = own.sshd.signal_connections(signal.SIGSTOP)
    try:
        start = time.monotonic()
        message = last_error(list(events), "connection")
        assert message == "board: the connection was lost: the board no longer answers"
        assert time.monotonic() - start < 8
        # The board did not notice: its agent lives on and would keep others waiting.
        assert alive(pid)
        session.close()
        second = own.keep(device.open())
        assert gone_within(pid, 2)
        assert not named(list(second.run(Job("time", (dense,), schedule=QUICK))), "warning")
    finally:
        for number in stopped:
            os.kill(number, signal.SIGKILL)


def test_a_number_that_is_another_process_by_now_is_let_be(own: Boards) -> None:
    device = own.device()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        device._left.append((bystander.pid, "session-0123"))
        own.keep(device.open())
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


class Meddler:
    """Somebody on the way who passes everything on, and changes one byte when told to."""

    def __init__(self, port: int) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.server.getsockname()[1]
        self.meddle = threading.Event()
        self._target = port
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:  # closed
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for ends in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, may_meddle: bool) -> None:
        with source, target, contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if may_meddle and self.meddle.is_set():
                    self.meddle.clear()
                    data = data[:-1] + bytes([data[-1] ^ 1])
                target.sendall(data)


def test_data_is_damaged_on_the_way(own: Boards, user_home: Path, dense: Subject) -> None:
    meddler = Meddler(own.sshd.port)
    known = user_home / ".ssh" / "known_hosts"
    known.write_text(known.read_text().replace(f":{own.sshd.port}", f":{meddler.port}"))
    with meddler.server:
        session = own.open(port=meddler.port)
        events = session.run(Job("time", (dense,), schedule=LONG))
        upto(events, "samples")
        meddler.meddle.set()
        message = last_error(list(events), "connection")
        assert message == "board: the connection was cut: data was damaged on the way"
        assert only(list(session.run(Job("check", (dense,)))), "checked")["ok"]


# -- the agent -------------------------------------------------------------------------------------


@pytest.fixture
def board(boards: Boards) -> SshSession:
    return boards.open()


CRASH = """
    import ctypes

    class InferenceSession:
        def __init__(self, *_, **__):
            ctypes.string_at(0)

    class Any:
        def __getattr__(self, name):
            return self

        def __call__(self, *_):
            return self

    def get_available_providers():
        return ["CPUExecutionProvider"]

    SessionOptions = GraphOptimizationLevel = ExecutionMode = Any()
    __version__ = "1"
"""


def test_a_file_that_crashes_its_runtime(boards: Boards, dense: Subject, tmp_path: Path) -> None:
    session = boards.open(environment=shadow(tmp_path, "onnxruntime", textwrap.dedent(CRASH)))
    events = list(session.run(Job("check", (dense,))))
    message = last_error(events, "crash")
    assert message.startswith("board: the agent was killed by SIGSEGV before it was done\n")
    assert "in load" in message, "the agent says where it was"
    assert events[-1]["id"] == "dense"


def test_the_agent_hangs(board: SshSession, dense: Subject) -> None:
    events = board.run(Job("time", (dense,), schedule=LONG), silence_s=1)
    pid = upto(events, "facts")["pid"]
    upto(events, "samples")
    os.kill(pid, signal.SIGSTOP)
    assert last_error(list(events), "hang") == "board: no word for 1 s; killed"
    assert gone_within(pid, 1)
    assert only(list(board.run(Job("check", (dense,)))), "checked")["ok"]


def make_hungry(folder: Path, gigabytes: float) -> Subject:
    """A tiny file whose inference fills that much memory."""
    count = int(gigabytes * 2**30 / 4)
    nodes = [
        onnx.helper.make_node("ConstantOfShape", ["shape"], ["much"]),
        onnx.helper.make_node("ReduceSum", ["much"], ["sum"], keepdims=0),
        onnx.helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    shape = {"shape": np.array([count], dtype=np.int64)}
    path = write_onnx(folder / "hungry.onnx", nodes, {"x": [1, 6]}, {"y": [1, 6]}, shape)
    x = np.ones((1, 1, 6), dtype=np.float32)
    # Not folded when it is loaded, but computed in each inference.
    subject = make_subject("hungry", path, {"x": x}, {"y": x})
    return replace(subject, options={"optimization": "none"})


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[str]:
    """An interpreter that the kernel gives 400 MB of memory."""
    place = next(filter(Path.is_dir, map(Path, ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"))), None)
    if place is None:
        pytest.skip("there are no control groups here")
    group = place / f"edgevit-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if place.name == "memory" else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(400 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho $$ >{group}/cgroup.procs\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    yield str(python)
    end = time.monotonic() + 5
    while (group / "cgroup.procs").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    group.rmdir()


def test_the_agent_is_killed_for_memory(
    boards: Boards, dense: Subject, small_memory: str, tmp_path: Path
) -> None:
    session = boards.open(python=small_memory)
    events = list(session.run(Job("check", (dense, make_hungry(tmp_path, 2.0)))))
    assert only(events, "checked")["id"] == "dense"
    message = last_error(events, "crash")
    assert message.splitlines()[0] == (
        "board: the agent was killed by SIGKILL before it was done; its system does that when "
        "memory runs out: see `dmesg` there"
    )
    assert events[-1]["id"] == "hungry"


def test_memory_that_the_system_refuses(boards: Boards, dense: Subject, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -v 3000000\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    session = boards.open(python=str(python))
    events = list(session.run(Job("check", (make_hungry(tmp_path, 4.0), dense))))
    (error,) = named(events, "error")
    assert (error["id"], error["kind"]) == ("hungry", "run")
    assert "allocate memory" in error["message"] or "bad_alloc" in error["message"]
    assert only(events, "checked")["id"] == "dense", "the next file is not lost"


def test_a_runtime_that_is_not_there(boards: Boards, dense: Subject, tmp_path: Path) -> None:
    absent = shadow(tmp_path, "onnxruntime", "raise ImportError(\"No module named 'onnxruntime'\")")
    session = boards.open(environment=absent)
    error = only(list(session.run(Job("check", (dense,)))), "error")
    assert error["kind"] == "runtime-missing"
    assert error["message"].endswith(
        "No module named 'onnxruntime'; `edgevit devices setup board` brings the runtimes"
    )


@pytest.mark.parametrize(("opset", "ir"), [(99, 7), (13, 99)], ids=["opset", "IR"])
def test_a_file_that_is_too_new_for_the_runtime(
    board: SshSession, dense: Subject, tmp_path: Path, opset: int, ir: int
) -> None:
    from edgevit.bundle import hash_file

    model = onnx.load(dense.file)
    model.opset_import[0].version = opset
    model.ir_version = ir
    onnx.save(model, dense.file)
    newer = replace(dense, sha256=hash_file(Path(dense.file)))
    error = only(list(board.run(Job("check", (newer,)))), "error")
    assert error["kind"] == "load"
    assert "`edgevit export ... --for generic-x86-64` writes what it reads" in error["message"]


def test_wrong_results_are_never_timed(boards: Boards, dense: Subject, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    wrong = make_dense(tmp_path / "w", "wrong", golden_scale=1.01)
    events = list(boards.open().run(Job("time", (wrong, dense), schedule=QUICK)))
    assert (only(events, "error")["id"], only(events, "error")["kind"]) == ("wrong", "mismatch")
    assert {event["id"] for event in named(events, "samples")} == {"dense"}


def test_a_clock_that_jumps_changes_no_time(boards: Boards, dense: Subject, tmp_path: Path) -> None:
    jumping = """
        import random, time
        time.time = lambda: random.uniform(0, 4e9)
        time.time_ns = lambda: int(time.time() * 1e9)
        time.strftime = lambda *_: "whenever"
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(jumping))
    session = boards.open(environment={"PYTHONPATH": str(tmp_path / "site")})
    start = time.perf_counter_ns()
    (moved,) = boards.bring(session, Path(dense.file).parent, dense)
    events = list(session.run(Job("time", (moved,), schedule=QUICK)))
    spent = time.perf_counter_ns() - start
    assert not named(events, "error")
    times = [e["ns"] for e in named(events, "samples")]
    assert all(0 < ns < spent for block in times for ns in block)
    assert 0 < only(events, "warmed")["ns"] < spent
    assert 0 < only(events, "loaded")["load_ns"] < spent


# -- others ----------------------------------------------------------------------------------------


def test_a_second_bench_on_the_same_board(boards: Boards, dense: Subject, tmp_path: Path) -> None:
    first, second, third = boards.open(), boards.open(), boards.open()
    running = first.run(Job("time", (dense,), schedule=LONG))
    upto(running, "samples")
    (tmp_path / "o").mkdir()
    waiting = second.run(Job("time", (make_dense(tmp_path / "o", "other"),), schedule=QUICK))
    warning = upto(waiting, "warning")
    assert warning["kind"] == "busy"
    assert warning["message"].startswith("another measurement has run on this device for ")
    assert f", process {os.getpid()} there; waiting for its end" in warning["message"]
    assert warning["holder"]["pid"] == os.getpid()
    error = only(list(third.run(Job("time", (dense,), schedule=QUICK, wait_s=0.1))), "error")
    assert error["kind"] == "busy"
    assert error["message"].endswith("there; waited 0 s for its end")
    first.stop()
    assert list(running)[-1] == {"event": "done", "stopped": True}
    assert named(list(waiting), "samples")[-1]["finished"]


def test_a_bench_whose_agent_was_killed_holds_no_lock(boards: Boards, dense: Subject) -> None:
    running = boards.open().run(Job("time", (dense,), schedule=LONG))
    pid = upto(running, "facts")["pid"]
    upto(running, "samples")
    os.kill(pid, signal.SIGKILL)
    assert gone_within(pid, 2)
    assert not named(list(boards.open().run(Job("time", (dense,), schedule=QUICK))), "warning")


HOST = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from devices_kit import make_dense, make_endless
    from test_agent_lifetime import LONG
    from devices.base import Job
    from devices.hosts import Host
    from devices.ssh import SshDevice

    folder = Path({folder!r})
    subject = {make}
    with SshDevice(Host(**{host!r})).open() as session:
        for event in session.run(Job("time", (subject,), schedule=LONG)):
            if event["event"] == "facts":
                print(event["pid"], flush=True)
            if event["event"] in ("samples", "progress"):
                print(event["event"], flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(
    ("make", "until"),
    [('make_dense(folder, "d")', "samples"), ("make_endless(folder)", "progress")],
    ids=["between inferences", "inside one"],
)
def test_nothing_keeps_running_there_when_this_end_is_gone(
    boards: Boards, tmp_path: Path, number: signal.Signals, make: str, until: str
) -> None:
    host = {**boards.host().to_json(), "name": "board"}
    tests = str(Path(__file__).parent)
    (tmp_path / "f").mkdir()
    script = textwrap.dedent(HOST).format(
        tests=tests, folder=str(tmp_path / "f"), make=make, host=host
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    while process.stdout.readline().strip() != until:
        assert process.poll() is None
    time.sleep(0.3)
    assert alive(pid)
    process.send_signal(number)
    assert gone_within(pid, 6)
    assert process.wait(10) == -number
    process.stdout.close()
