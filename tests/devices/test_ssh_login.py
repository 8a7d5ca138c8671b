"""The way to a board: the user's configuration counts, and each way to fail says what it is."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd_kit import Boards, Sshd, free_port, make_key

from devices.hosts import Host
from devices.ssh import SshDevice
from devices.ssh_login import Patience
from edgevit.errors import DeviceError, MissingExtraError

QUICK = Patience(connect_s=1.0)


def refused(device: SshDevice) -> DeviceError:
    """The error of a board that cannot be opened."""
    with pytest.raises(DeviceError) as caught:
        device.open().close()
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("board")
    assert caught.value.hint
    return caught.value


def known(home: Path) -> Path:
    return home / ".ssh" / "known_hosts"


def configure(home: Path, text: str) -> None:
    (home / ".ssh" / "config").write_text(text)


# -- ways that lead there --------------------------------------------------------------------------


def test_a_board_is_reached_by_what_was_configured_here(boards: Boards) -> None:
    with boards.open() as session:
        assert session.home == str(boards.home)
        assert session.execute(["echo", "up"]).stdout == b"up\n"


def test_the_users_configuration_tells_the_rest(boards: Boards, user_home: Path) -> None:
    sshd = boards.sshd
    me = session_user(boards)
    configure(
        user_home,
        f"Host attic\n HostName 127.0.0.1\n Port {sshd.port}\n User {me}\n"
        f" IdentityFile /nowhere/key\n IdentityFile {sshd.key}\n",
    )
    session = boards.open(address="attic", port=None, identity=None)
    assert session.execute(["id", "-un"]).stdout.decode().strip() == me


def session_user(boards: Boards) -> str:
    return boards.open().execute(["id", "-un"]).stdout.decode().strip()


def test_other_files_of_known_hosts(boards: Boards, user_home: Path) -> None:
    known(user_home).rename(user_home / "elsewhere")
    configure(user_home, f"Host *\n UserKnownHostsFile /nowhere {user_home}/elsewhere\n")
    boards.open()


def test_known_hosts_with_lines_that_nobody_understands(boards: Boards, user_home: Path) -> None:
    text = known(user_home).read_text()
    known(user_home).write_text(f"garbage\n@odd thing x y\n\xff\n{text}# remark\n")
    boards.open()


def test_hashed_known_hosts(boards: Boards, user_home: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-H", "-f", known(user_home)], check=True, capture_output=True
    )
    assert "127.0.0.1" not in known(user_home).read_text()
    boards.open()


def test_through_a_jump_host(boards: Boards, user_home: Path, tmp_path: Path) -> None:
    with Sshd(tmp_path / "inner") as inner:
        known(user_home).write_text(boards.sshd.host_key + inner.host_key)
        configure(
            user_home,
            f"Host gate\n HostName 127.0.0.1\n Port {boards.sshd.port}\n"
            f" IdentityFile {boards.sshd.key}\n"
            f"Host inside\n HostName 127.0.0.1\n Port {inner.port}\n ProxyJump gate\n",
        )
        fields = {"address": "inside", "port": None, "identity": str(inner.key)}
        session = boards.open(**fields)
        port = session.execute(["sh", "-c", 'echo "$SSH_CONNECTION"']).stdout.split()[-1]
        assert int(port) == inner.port
        session.close()
        # Whatever bars the way says at which of the two.
        known(user_home).write_text(inner.host_key)
        error = refused(boards.device(**fields))
    assert error.message.startswith("board, jump host gate: the host key of 127.0.0.1 is not known")


def test_jump_hosts_in_a_circle(boards: Boards, user_home: Path) -> None:
    configure(user_home, "Host *\n ProxyJump gate\n")
    assert "in a circle" in refused(boards.device()).message


@pytest.fixture
def ssh_agent(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    program = shutil.which("ssh-agent")
    if program is None:
        pytest.skip("ssh-agent is not installed")
    path = user_home / "agent.sock"
    agent = subprocess.Popen([program, "-D", "-a", path], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    while not path.exists():
        assert agent.poll() is None
    yield
    agent.kill()
    agent.wait()


def test_the_ssh_agent_has_the_key(boards: Boards, ssh_agent: None) -> None:
    subprocess.run(["ssh-add", "-q", boards.sshd.key], check=True, capture_output=True)
    boards.open(identity=None)


# -- ways that do not ------------------------------------------------------------------------------


def test_nothing_listens(boards: Boards) -> None:
    error = refused(boards.device(port=free_port()))
    assert "nothing listens at 127.0.0.1" in error.message
    assert "(connection refused)" in error.message


def test_nothing_listens_at_any_of_its_addresses(boards: Boards) -> None:
    error = refused(boards.device(address="localhost", port=free_port()))
    assert "nothing listens at localhost" in error.message


def test_no_answer(boards: Boards) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = refused(boards.device(QUICK, port=silent.getsockname()[1]))
    assert "no answer from 127.0.0.1" in error.message
    assert error.message.endswith("within 1 s")


def test_no_route(boards: Boards) -> None:
    # The broadcast address takes no connections: the system itself says so, at once.
    error = refused(boards.device(QUICK, address="255.255.255.255"))
    assert "255.255.255.255, port" in error.message
    assert "cannot be reached: " in error.message


def test_a_name_that_does_not_resolve(boards: Boards) -> None:
    error = refused(boards.device(address="board.invalid"))
    assert error.message.startswith("board: the name board.invalid cannot be resolved (")


def test_something_else_answers(boards: Boards) -> None:
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 1000)
                connection.recv(1000)

        threading.Thread(target=greet, daemon=True).start()
        error = refused(boards.device(QUICK, port=server.getsockname()[1]))
    assert "broke off before the login" in error.message


def test_a_key_that_the_board_does_not_accept(boards: Boards, tmp_path: Path) -> None:
    key = make_key(tmp_path / "other key")
    error = refused(boards.device(identity=str(key)))
    assert "@127.0.0.1 refuses the login" in error.message
    assert f"ssh-copy-id -i '{key}'" in str(error.hint)


def test_no_key_at_all(boards: Boards) -> None:
    error = refused(boards.device(identity=None))
    assert "it accepts none of the keys that were offered" in error.message
    assert "`ssh-copy-id " in str(error.hint)


def test_a_key_that_is_not_there(boards: Boards) -> None:
    assert "there is no key /nowhere/key" in refused(boards.device(identity="/nowhere/key")).message


def test_a_key_with_a_passphrase(boards: Boards, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", passphrase="secret")
    error = refused(boards.device(identity=str(key)))
    assert "refuses the login" in error.message
    assert error.hint == f"{key} has a passphrase: `ssh-add {key}` unlocks it"


def test_a_user_who_may_not_log_in(boards: Boards) -> None:
    assert "nobody@127.0.0.1 refuses the login" in refused(boards.device(user="nobody")).message


def fingerprint(public_key: Path) -> str:
    done = subprocess.run(
        ["ssh-keygen", "-lf", public_key], check=True, capture_output=True, text=True
    )
    return done.stdout.split()[1]


@pytest.mark.parametrize("text", [None, "", "otherhost ssh-ed25519 AAAA\n"])
def test_an_unknown_host_key(boards: Boards, user_home: Path, text: str | None) -> None:
    known(user_home).unlink()
    if text is not None:
        known(user_home).write_text(text)
    error = refused(boards.device())
    sshd = boards.sshd
    shown = fingerprint(sshd.folder / "host_key.pub")
    assert error.message == (
        f"board: the host key of 127.0.0.1 is not known: {shown} (ssh-ed25519)"
    )
    assert "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`" in str(error.hint)
    assert f"`ssh -p {sshd.port} 127.0.0.1` and yes accepts it" in str(error.hint)
    after = known(user_home).read_text() if known(user_home).exists() else None
    assert after == text, "nothing is accepted for the user"


def test_no_check_of_host_keys_is_not_taken_over(boards: Boards, user_home: Path) -> None:
    configure(user_home, "Host *\n StrictHostKeyChecking no\n UserKnownHostsFile none\n")
    assert "is not known" in refused(boards.device()).message


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_changed_host_key(boards: Boards, user_home: Path, tmp_path: Path, kind: str) -> None:
    make_key(tmp_path / "before", kind=kind)
    public = " ".join((tmp_path / "before.pub").read_text().split()[:2])
    port = boards.sshd.port
    known(user_home).write_text(f"[127.0.0.1]:{port} {public}\n")
    error = refused(boards.device())
    assert "WARNING: the host key of 127.0.0.1 has changed" in error.message
    assert error.message.count(fingerprint(tmp_path / "before.pub")) == 1
    assert fingerprint(boards.sshd.folder / "host_key.pub") in error.message
    assert f"`ssh-keygen -R '[127.0.0.1]:{port}'`" in str(error.hint)


def test_a_configuration_that_cannot_be_read(boards: Boards, user_home: Path) -> None:
    configure(user_home, "Host *\n Port many\n")
    error = refused(boards.device(port=None))
    assert "~/.ssh/config cannot be used" in error.message


def test_without_asyncssh(boards: Boards, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(MissingExtraError, match="asyncssh") as caught:
        boards.device().open()
    assert "edgevit[ssh]" in str(caught.value.hint)


def test_nothing_stays_behind_where_nothing_was_reached(boards: Boards) -> None:
    import threading
    import time

    def held() -> list[int]:
        return [threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))]

    before = held()
    refused(boards.device(port=free_port()))
    end = time.monotonic() + 2
    while held() != before and time.monotonic() < end:
        time.sleep(0.05)
    assert held() == before


def test_the_line_that_is_told_to_the_user_is_quoted() -> None:
    from devices.ssh_login import Way

    way = Way.to(Host("b", "generic-x86-64", "a;reboot", user="x$y", port=5))
    assert way.ssh_command == "ssh -p 5 'x$y@a;reboot'"
