"""The agent's end: asked for, forced, or because nobody is there any more."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from devices_kit import QUICK, make_dense, named, only, run, shadow

from devices.agent_archive import agent_archive
from devices.base import Event, Job, Schedule, Subject
from devices.local import LocalSession

OpenSession = Callable[..., LocalSession]
LONG = Schedule(
    min_runs=10**9, max_seconds=600, warmup_runs=1, warmup_seconds=0, block_seconds=0.01
)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def upto(events: Iterator[Event], name: str) -> Event:
    """The next event of that name."""
    return next(event for event in events if event["event"] == name)


def test_stop_gives_what_was_measured_and_done(session: LocalSession, dense: Subject) -> None:
    events = session.run(Job("time", (dense,), schedule=LONG))
    upto(events, "samples")
    session.stop()
    rest = list(events)
    assert rest[-1] == {"event": "done", "stopped": True}
    assert not named(rest, "error")


def test_stop_inside_a_long_inference(session: LocalSession, endless: Subject) -> None:
    events = session.run(Job("time", (endless,), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    upto(events, "progress")
    time.sleep(1)  # into the first inference
    session.stop()
    assert list(events)[-1] == {"event": "done", "stopped": True}
    assert gone_within(pid, 2)


def test_leaving_the_loop_ends_the_agent(session: LocalSession, dense: Subject) -> None:
    events = session.run(Job("time", (dense,), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    upto(events, "samples")
    assert alive(pid)
    events.close()
    assert not alive(pid)


def test_closing_the_session_ends_the_agent(open_session: OpenSession, endless: Subject) -> None:
    with open_session() as session:
        events = session.run(Job("time", (endless,), schedule=LONG))
        pid = upto(events, "facts")["pid"]
        assert alive(pid)
    assert not alive(pid)


HOST = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from devices_kit import make_dense, make_endless
    from test_agent_lifetime import LONG
    from devices.base import Job
    from devices.local import LocalDevice

    folder = Path({folder!r})
    subject = {make}
    with LocalDevice(environment={{"TMPDIR": {folder!r}}}).open() as session:
        for event in session.run(Job("time", (subject,), schedule=LONG)):
            if event["event"] == "facts":
                print(event["pid"], flush=True)
            if event["event"] in ("samples", "progress"):
                print(event["event"], flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize(
    ("make", "until"),
    [('make_dense(folder, "d")', "samples"), ("make_endless(folder)", "progress")],
    ids=["between inferences", "inside one"],
)
def test_no_agent_outlives_its_host(
    tmp_path: Path, number: signal.Signals, make: str, until: str
) -> None:
    tests = str(Path(__file__).parent)
    script = textwrap.dedent(HOST).format(tests=tests, folder=str(tmp_path), make=make)
    host = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert host.stdout is not None
    pid = int(host.stdout.readline())
    while host.stdout.readline().strip() != until:
        assert host.poll() is None
    time.sleep(0.5)
    assert alive(pid)
    host.send_signal(number)
    assert gone_within(pid, 6)
    assert host.wait(10) == (-signal.SIGINT if number == signal.SIGINT else -signal.SIGKILL)
    host.stdout.close()


def test_a_segmentation_fault_is_told_by_name(session: LocalSession, endless: Subject) -> None:
    events = session.run(Job("time", (endless,), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    upto(events, "progress")
    time.sleep(0.5)
    os.kill(pid, signal.SIGSEGV)
    (error,) = list(events)
    assert (error["event"], error["kind"], error["id"]) == ("error", "crash", "endless")
    assert "SIGSEGV" in error["message"]
    assert "Current thread" in error["message"], "the agent says where it was"


def test_a_crash_names_the_subject_that_was_loading(
    open_session: OpenSession, dense: Subject, endless: Subject
) -> None:
    events = open_session().run(Job("time", (dense, endless), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    next(e for e in events if e["event"] == "progress" and e["id"] == "endless")
    os.kill(pid, signal.SIGKILL)
    assert list(events)[-1]["id"] == "endless"


def test_a_hang_is_noticed_and_ended(session: LocalSession, dense: Subject) -> None:
    events = session.run(Job("time", (dense,), schedule=LONG), silence_s=1)
    pid = upto(events, "facts")["pid"]
    upto(events, "samples")
    os.kill(pid, signal.SIGSTOP)
    stopped_at = time.monotonic()
    last = list(events)[-1]
    assert 0.9 < time.monotonic() - stopped_at < 15
    assert (last["event"], last["kind"]) == ("error", "hang")
    assert "no word for 1 s" in last["message"]
    assert not alive(pid)


def test_what_libraries_print_does_not_reach_the_events(
    open_session: OpenSession, dense: Subject, tmp_path: Path
) -> None:
    noisy = """
        import ctypes, importlib, os, sys, threading
        print("printed")
        os.system("echo from a shell")
        def chatter():
            while True:
                ctypes.CDLL(None).puts(b"native words without end")
                os.write(1, b"half a line")
        threading.Thread(target=chatter, daemon=True).start()
        del sys.modules["onnxruntime"]
        sys.path.remove(os.path.dirname(os.path.dirname(__file__)))
        real = importlib.import_module("onnxruntime")
        globals().update(vars(real))
    """
    session = open_session(shadow(tmp_path, "onnxruntime", textwrap.dedent(noisy)))
    events = run(session, Job("time", (dense,), schedule=QUICK))
    assert not named(events, "warning")
    assert named(events, "samples")
    assert events[-1] == {"event": "done", "stopped": False}


def test_a_greeting_before_the_agent_is_a_warning(
    open_session: OpenSession, dense: Subject, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("print('Welcome to the board')")
    session = open_session({"PYTHONPATH": str(tmp_path / "site")})
    events = run(session, Job("check", (dense,)))
    assert only(events, "warning")["kind"] == "noise"
    assert "Welcome to the board" in only(events, "warning")["message"]
    assert only(events, "checked")["ok"]


def test_one_measurement_at_a_time(
    open_session: OpenSession, dense: Subject, tmp_path: Path
) -> None:
    first, second = open_session(), open_session()
    running = first.run(Job("time", (dense,), schedule=LONG))
    upto(running, "samples")
    other = second.run(Job("time", (make_dense(tmp_path, "other"),), schedule=QUICK))
    assert upto(other, "warning")["kind"] == "busy"
    first.stop()
    list(running)
    rest = list(other)
    assert named(rest, "samples")
    assert not named(rest, "error")


def test_waiting_for_the_other_measurement_has_an_end(
    open_session: OpenSession, dense: Subject
) -> None:
    running = open_session().run(Job("time", (dense,), schedule=LONG))
    upto(running, "samples")
    events = run(open_session(), Job("time", (dense,), schedule=QUICK, wait_s=0.1))
    assert only(events, "error")["kind"] == "busy"
    assert not named(events, "samples")


def test_checking_need_not_wait(open_session: OpenSession, dense: Subject) -> None:
    running = open_session().run(Job("time", (dense,), schedule=LONG))
    upto(running, "samples")
    assert only(run(open_session(), Job("check", (dense,))), "checked")["ok"]


def talk(text: str, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and stdout of an agent that is told this and nothing more."""
    done = subprocess.run(
        [sys.executable, "-u", str(agent_archive())],
        input=text,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout


def test_without_a_job_the_agent_says_nothing(environment: dict[str, str]) -> None:
    assert talk("", environment) == (0, "")


def test_an_agent_without_a_job_can_be_ended(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", str(agent_archive())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    time.sleep(1.5)
    process.terminate()
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert output == b'{"event": "done", "stopped": true}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "the job is no JSON"),
        ("[]", "no JSON object"),
        ("{}", "needs int 'protocol', got None"),
        ('{"protocol": 2, "mode": "time"}', "speaks protocol 2"),
        ('{"protocol": 1, "mode": "fly"}', "no mode 'fly'"),
        ('{"protocol": 1, "mode": "time"}', "needs int 'threads'"),
        ('{"protocol": 1, "mode": "time", "threads": true}', "needs int 'threads', got True"),
        (
            '{"protocol": 1, "mode": "time", "threads": 1, "subjects": [{"id": "a"}]}',
            "subject 'a' needs str 'backend'",
        ),
        (
            '{"protocol": 1, "mode": "time", "threads": 1, "subjects": [], "schedule": {"x": 1}}',
            "schedule: ",
        ),
    ],
)
def test_a_job_that_makes_no_sense(environment: dict[str, str], line: str, said: str) -> None:
    import json

    process = subprocess.Popen(
        [sys.executable, "-u", str(agent_archive())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()  # and stays open
    events = [json.loads(text) for text in process.stdout]
    process.stdin.close()
    process.stdout.close()
    assert process.wait(10) == 0
    assert events[-1] == {"event": "done", "stopped": False}
    assert events[-2]["kind"] == "protocol"
    assert said in events[-2]["message"]


def test_sigterm_ends_the_agent_in_good_order(session: LocalSession, dense: Subject) -> None:
    events = session.run(Job("time", (dense,), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    upto(events, "samples")
    os.kill(pid, signal.SIGTERM)
    assert list(events)[-1] == {"event": "done", "stopped": True}
