"""A real SSH server on loopback, and boards behind it: folders of their own, one user, no PAM.

Its host key, its authorized keys and its port are its own; ``SetEnv HOME`` gives logins a home that
is not the user's. Each connection is a child process, which can be killed or stopped.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devices.base import Subject
from devices.hosts import Host
from devices.ssh import SshDevice, SshSession
from devices.ssh_login import Patience

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
PermitRootLogin yes
MaxStartups 200
MaxSessions 20
Subsystem sftp internal-sftp
SetEnv HOME={folder}/home
"""


def need_sshd() -> None:
    """Skip where no server can be started."""
    for program in (SSHD, shutil.which("ssh-keygen") or "ssh-keygen"):
        if not os.access(program, os.X_OK):
            pytest.skip(f"{program} is not installed")
    if os.getuid() == 0:  # it separates privileges there, and will not start without
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_key(path: Path, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    """A key pair; the private one's path."""
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


class Sshd:
    """A server; a context manager.

    Args:
        folder: where it lives.
        more: lines of its configuration.
    """

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder
        self.more = more
        self.port = free_port()
        self.home = folder / "home"
        self.key = folder / "user_key"
        self.log = folder / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Sshd":
        need_sshd()
        (self.folder / "home").mkdir(parents=True)
        make_key(self.folder / "host_key")
        make_key(self.key)
        public = self.key.with_name("user_key.pub")
        shutil.copy(public, self.folder / "authorized_keys")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it greets."""
        config = self.folder / "sshd_config"
        config.write_text(CONFIG.format(port=self.port, folder=self.folder) + self.more)
        # It ends with whoever started it, however that ends.
        with_us = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
        self._process = subprocess.Popen(
            [*with_us, SSHD, "-D", "-e", "-f", str(config)],
            stdin=subprocess.DEVNULL,
            stderr=self.log.open("ab"),
            start_new_session=True,
        )
        end = time.monotonic() + 20
        while not self._greets():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """Pull the plug: no connection, and nothing that was started over one, lives on."""
        process, self._process = self._process, None
        if process is None:
            return
        pids = [*_descendants(process.pid), process.pid]
        # All stand still first, or a connection could still tell what died before it.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                _signal(pid, number)
        process.wait(10)

    def cut(self) -> list[int]:
        """Kill the child of every connection; their numbers."""
        return self.signal_connections(signal.SIGKILL)

    def signal_connections(self, number: signal.Signals) -> list[int]:
        """Send a signal to the child of every connection."""
        assert self._process is not None
        found = []
        for pid in _descendants(self._process.pid):
            if _name(pid).startswith("sshd"):
                _signal(pid, number)
                found.append(pid)
        return found

    @property
    def host_key(self) -> str:
        """Its public key, as a line of known_hosts."""
        key = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        return f"[127.0.0.1]:{self.port} {key}\n"

    def host(self, name: str = "board", **fields: Any) -> Host:
        """It, as a configured host."""
        values: dict[str, Any] = {
            "profile": "generic-x86-64",
            "address": "127.0.0.1",
            "port": self.port,
            "identity": str(self.key),
        }
        return Host(name=name, **(values | fields))

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


class Boards:
    """Boards behind a server that the user knows; a context manager that closes their sessions.

    Args:
        sshd: the server.
        user_home: of the user here.
        home: edgevit's folder on the board.
        python: interpreter there.
        environment: variables there.
    """

    def __init__(
        self, sshd: Sshd, user_home: Path, home: Path, python: str, environment: dict[str, str]
    ) -> None:
        self.sshd = sshd
        self.home = home
        self._fields: dict[str, Any] = {
            "python": python,
            "environment": {"EDGEVIT_HOME": str(home), **environment},
        }
        (user_home / ".ssh" / "known_hosts").write_text(sshd.host_key)
        self._opened: list[SshSession] = []

    def __enter__(self) -> "Boards":
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._opened:
            session.close()

    def host(self, *, environment: Mapping[str, str] | None = None, **fields: Any) -> Host:
        """A board."""
        given = {**self._fields, **fields}
        given["environment"] = {**self._fields["environment"], **(environment or {})}
        return self.sshd.host(**given)

    def device(self, patience: Patience | None = None, **fields: Any) -> SshDevice:
        """A board as a device; see :meth:`host`."""
        return SshDevice(self.host(**fields), patience=patience)

    def open(self, patience: Patience | None = None, **fields: Any) -> SshSession:
        """A session of a board; see :meth:`host`."""
        return self.keep(self.device(patience, **fields).open())

    def keep(self, session: SshSession) -> SshSession:
        """Have a session closed at the end."""
        self._opened.append(session)
        return session

    def bring(self, session: SshSession, folder: Path, *subjects: Subject) -> list[Subject]:
        """Push a folder; the subjects that lie in it as they are on the board."""
        place = session.push(folder)

        def there(path: str | None) -> str | None:
            return path and f"{place}/{Path(path).relative_to(folder).as_posix()}"

        return [
            replace(subject, file=str(there(subject.file)), golden=there(subject.golden))
            for subject in subjects
        ]


def _descendants(pid: int) -> list[int]:
    """Processes that it started, and theirs, the youngest first."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(place.parent.name))
    found, todo = [], [pid]
    while todo:
        todo += (new := children.get(todo.pop(0), []))
        found += new
    return found[::-1]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
