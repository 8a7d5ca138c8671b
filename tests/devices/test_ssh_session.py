"""A session with a board: commands and files arrive as they are, and jobs run there."""

import os
import sys
import time
from pathlib import Path

import pytest
from devices_kit import QUICK, interpreter, named, only
from sshd_kit import Boards, Sshd
from test_agent_lifetime import LONG, alive, gone_within, upto

from devices.agent_archive import archive_name
from devices.base import Device, Job, Session, Subject
from devices.ssh import PUT, SshSession
from edgevit.errors import DeviceError

OLD_PYTHONS = {version: interpreter(version) for version in ("2.7", "3.6")}
AWKWARD = ("", " ", "a b", "'", '"', "$HOME", "`id`", "; id", "-n", "\\", "*", "é", "a\nb", "!!")


@pytest.fixture
def board(boards: Boards) -> SshSession:
    return boards.open()


def test_it_is_a_device_like_others(boards: Boards) -> None:
    device: Device = boards.device(emulated=True)
    session: Session = boards.open()
    assert (device.name, device.emulated) == ("board", True)
    assert device.profile.name == "generic-x86-64"
    assert session is not None


# -- commands and files ----------------------------------------------------------------------------


def test_every_word_of_a_command_arrives_as_it_is(board: SshSession) -> None:
    script = "import os, sys; os.write(1, '\\0'.join(sys.argv[1:]).encode('utf-8'))"
    words = [sys.executable, "-c", script, *AWKWARD]
    environment = {"LC_ALL": "C.UTF-8", "ODD": "x'; id #"}
    done = board.execute(words, environment=environment)
    assert (done.status, done.stderr) == (0, b"")
    assert tuple(done.stdout.decode().split("\0")) == AWKWARD
    assert board.execute(["printenv", "ODD"], environment=environment).stdout == b"x'; id #\n"


def test_status_output_and_input(board: SshSession) -> None:
    done = board.execute(["sh", "-c", "cat; echo problem >&2; exit 7"], input=b"\x00\xff" * 300_000)
    assert (done.status, done.stderr) == (7, b"problem\n")
    assert done.stdout == b"\x00\xff" * 300_000
    assert board.execute(["nothing-of-that-name"]).status == 127
    assert board.execute(["sh", "-c", "kill -SEGV $$"]).status == -11


def test_a_command_that_reads_nothing_of_its_input(board: SshSession) -> None:
    assert board.execute(["true"], input=bytes(10_000_000)).status == 0


def test_a_command_that_does_not_end_is_killed(board: SshSession) -> None:
    sleep = f"sleep 60.{os.getpid()}"  # nobody else's
    words = ["sh", "-c", f"{sleep} & wait"]
    with pytest.raises(DeviceError, match=r"board: sh did not end within 0\.5 s; killed"):
        board.execute(words, timeout_s=0.5)
    assert board.execute(["pgrep", "-f", f"^{sleep}$"]).stdout == b""


def test_files_go_there_and_back(board: SshSession, tmp_path: Path) -> None:
    local, back = tmp_path / "file", tmp_path / "back"
    local.write_bytes(os.urandom(1_000_000))
    for name in ("plain", "with 'quotes' and $HOME"):
        remote = f"{tmp_path}/{name}"
        board.put(local, remote)
        board.fetch(remote, back)
        assert back.read_bytes() == local.read_bytes()
    with pytest.raises(DeviceError, match="cannot read /nowhere: cat: /nowhere: No such file"):
        board.fetch("/nowhere", back)
    with pytest.raises(DeviceError, match="board: cannot write /nowhere/at/all: "):
        board.put(local, "/nowhere/at/all")
    assert not list(tmp_path.glob("*.part"))


def test_half_a_file_never_gets_the_name(board: SshSession, tmp_path: Path) -> None:
    # What a connection leaves that is cut: the input ends early, in good order.
    words = ["sh", "-c", PUT, "sh", f"{tmp_path}/file", "6"]
    assert board.execute(words, input=b"half").status == 1
    assert not list(tmp_path.glob("file*"))
    assert board.execute(words, input=b"whole.").status == 0
    assert (tmp_path / "file").read_bytes() == b"whole."


def test_a_shell_that_greets(
    boards: Boards, user_home: Path, tmp_path: Path, dense: Subject
) -> None:
    with Sshd(tmp_path / "greeting") as sshd:
        # What this prints, at the start of every command, ends without a new line.
        noise = 'echo Welcome; echo mind the step >&2; printf \'{"event": "done"} 100%%\''
        (sshd.home / ".bashrc").write_text(noise)
        with Boards(sshd, user_home, tmp_path / "b", sys.executable, {}) as greeting:
            session = greeting.open()
            done = session.execute(["echo", "hello"])
            assert done.stdout == b"hello\n"
            if b"mind the step" not in done.stderr:
                pytest.skip("this shell reads no start file for commands")
            events = list(session.run(Job("check", (dense,))))
    assert only(events, "checked")["ok"]
    assert not named(events, "warning")


def test_a_plain_posix_shell(
    boards: Boards, user_home: Path, tmp_path: Path, dense: Subject
) -> None:
    if not Path("/bin/dash").exists():
        pytest.skip("there is no dash")
    with (
        Sshd(tmp_path / "s", 'ForceCommand exec dash -c "$SSH_ORIGINAL_COMMAND"\n') as sshd,
        Boards(sshd, user_home, tmp_path / "b", sys.executable, {}) as plain,
    ):
        session = plain.open()
        said = session.execute(["printf", "%s|", *AWKWARD]).stdout.decode()
        assert tuple(said.split("|")[:-1]) == AWKWARD
        session.put(Path(__file__), f"{tmp_path}/copy")
        assert only(list(session.run(Job("check", (dense,)))), "checked")["ok"]


def test_an_account_without_a_shell(boards: Boards, user_home: Path, tmp_path: Path) -> None:
    refusal = "ForceCommand echo This account is currently not available.; exit 1\n"
    with (
        Sshd(tmp_path / "s", refusal) as sshd,
        Boards(sshd, user_home, tmp_path / "b", sys.executable, {}) as barred,
        pytest.raises(DeviceError) as caught,
    ):
        barred.open()
    assert caught.value.message == (
        "board: the login shell there runs no commands: This account is currently not available."
    )


# -- the interpreter there -------------------------------------------------------------------------


def test_the_environment_of_setup_runs_the_agent_once_it_is_there(
    boards: Boards, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = boards.open(python=None)
    assert session.python == "python3"
    (boards.home / "venv" / "bin").mkdir(parents=True)
    (boards.home / "venv" / "bin" / "python").symlink_to(sys.executable)
    assert session.python == f"{boards.home}/venv/bin/python"
    assert session.facts()["python"]["executable"] == session.python


def test_no_python(boards: Boards, dense: Subject) -> None:
    session = boards.open(python="/nowhere/python3")
    for attempt in (session.facts, lambda: session.push(Path(dense.file).parent)):
        with pytest.raises(DeviceError) as caught:
            attempt()
        assert caught.value.message == "board: there is no /nowhere/python3 on the board"
        assert "apt install python3" in str(caught.value.hint)


def test_too_old_a_python(boards: Boards) -> None:
    if OLD_PYTHONS["2.7"] is None:
        pytest.skip("there is no Python 2.7 here")
    with pytest.raises(DeviceError) as caught:
        boards.open(python=OLD_PYTHONS["2.7"]).facts()
    assert f"{OLD_PYTHONS['2.7']} there is Python 2.7.18; the agent needs 3.6" in str(caught.value)


def test_a_python_that_says_it_is_3_4(boards: Boards, tmp_path: Path) -> None:
    # sitecustomize runs before anything of ours: the nearest to an interpreter of that age.
    (tmp_path / "site").mkdir()
    version = "sys.version_info, sys.version = (3, 4, 10), '3.4.10 (default)'"
    (tmp_path / "site" / "sitecustomize.py").write_text(f"import sys\n{version}\n")
    session = boards.open(environment={"PYTHONPATH": str(tmp_path / "site")})
    with pytest.raises(DeviceError, match=r"there is Python 3\.4\.10; the agent needs 3\.6"):
        session.facts()


def test_the_oldest_python_that_does(boards: Boards, dense: Subject) -> None:
    if OLD_PYTHONS["3.6"] is None:
        pytest.skip("there is no Python 3.6 here")
    session = boards.open(python=OLD_PYTHONS["3.6"])
    assert session.facts()["python"]["version"].startswith("3.6.")
    (moved,) = boards.bring(session, Path(dense.file).parent, dense)
    (error,) = named(list(session.run(Job("check", (moved,)))), "error")
    assert error["kind"] == "runtime-missing"
    assert session.clean() > 0


def test_a_python_that_is_a_broken_program(boards: Boards) -> None:
    with pytest.raises(DeviceError, match=r"board: /bin/false ended with exit status 1"):
        boards.open(python="/bin/false").facts()


# -- jobs ------------------------------------------------------------------------------------------


def test_a_job_runs_there_with_the_variables_of_the_host(boards: Boards, dense: Subject) -> None:
    session = boards.open(environment={"LC_ALL": "C.UTF-8", "EDGEVIT_ODD": "it's"})
    (moved,) = boards.bring(session, Path(dense.file).parent, dense)
    assert moved.file.startswith(f"{boards.home}/store/")
    events = session.run(Job("time", (moved,), threads=2, schedule=LONG))
    pid = upto(events, "facts")["pid"]
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    assert {"OMP_NUM_THREADS=2", "EDGEVIT_ODD=it's", "LC_ALL=C.UTF-8"} <= set(variables)
    assert archive_name() in Path(f"/proc/{pid}/cmdline").read_text()
    upto(events, "samples")
    session.stop()
    assert list(events)[-1] == {"event": "done", "stopped": True}
    assert gone_within(pid, 3)
    finished = list(session.run(Job("time", (moved,), schedule=QUICK)))
    assert only(finished, "checked")["ok"]
    assert named(finished, "samples")[-1]["finished"]


def test_the_agent_of_another_version_does_no_harm_and_is_cleaned_up(boards: Boards) -> None:
    folder = boards.home / "agent"
    folder.mkdir(parents=True)
    for name in ("agent-0123456789abcdef.pyz", "agent-ffffffffffffffff.pyz"):
        (folder / name).write_text("not even an archive")
    # Of our own name, but damaged: it is not believed.
    (folder / archive_name()).write_bytes(b"half of it")
    yesterday = time.time() - 25 * 3600
    os.utime(folder / "agent-0123456789abcdef.pyz", (yesterday, yesterday))
    assert boards.open().facts()["agent"]["protocol"] == 1
    # Another host may be using the one that was used today.
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"agent-ffffffffffffffff.pyz", archive_name()}


def test_leaving_the_loop_ends_the_agent(board: SshSession, dense: Subject) -> None:
    events = board.run(Job("time", (dense,), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    upto(events, "samples")
    assert alive(pid)
    events.close()
    assert gone_within(pid, 3)


def test_closing_the_session_ends_the_agent(board: SshSession, endless: Subject) -> None:
    events = board.run(Job("time", (endless,), schedule=LONG))
    pid = upto(events, "facts")["pid"]
    upto(events, "progress")
    assert alive(pid)
    board.close()
    assert gone_within(pid, 1)
    with pytest.raises(DeviceError, match="the session is closed"):
        board.facts()
