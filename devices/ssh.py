"""A board that is reached over SSH: a device like others, which also runs commands.

What edgevit keeps on a board lies in one folder, ``~/.cache/edgevit`` (or ``EDGEVIT_HOME``, among
the host's variables):

    agent/agent-<hash>.pyz     the agent; versions that nobody used for a day are removed
    store/files/<sha256>       contents of bundles, each once, checked there by their hash
    store/<sha256>/            a bundle: its own names for its contents
    venv/                      runtimes, by ``edgevit devices setup``; its Python runs the agent

A job runs as ``python -u agent.pyz`` with the library's thread variables, those of the profile and
those of the host. Its stdin is the channel: when the connection or this process ends, so does the
agent. One agent at a time measures there, whoever started it (``devices.agent.lock``).

A connection that is lost in a job is that job's last event, an error of kind ``"connection"``. The
session may be used again: it reconnects once, and the next job begins with a warning of that kind.
An agent that lived on over there, because the board could not notice, is ended first.
"""

from __future__ import annotations

import importlib.util
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from devices.agent_archive import archive_bytes, archive_name
from devices.agent_process import AgentProcess, read_facts
from devices.base import SILENCE_S, Event, Job, thread_environment
from devices.hosts import Host
from devices.profile import DeviceProfile, load_profile
from devices.remote import ENCODING
from devices.wheels import BY_HAND, ON_DEMAND
from edgevit.errors import DeviceError, MissingExtraError

if TYPE_CHECKING:
    from devices.ssh_connection import RemoteCommand, SshConnection
    from devices.ssh_line import SshLine
    from devices.ssh_login import Patience
    from devices.ssh_store import Progress

__all__ = ["Completed", "SshDevice", "SshSession"]

T = TypeVar("T")

#: What the store may take of a board's disk.
STORE_BYTES = 4 * 2**30
FACTS_S = 120.0
#: How runtimes refuse files that are newer than they.
TOO_NEW = re.compile(r"opset|IR version|not a registered (function|op)", re.IGNORECASE)

HOME = (
    r'home=${EDGEVIT_HOME:-"$HOME/.cache/edgevit"}; printf "%s\n" "$home"; '
    r'if [ -x "$home/venv/bin/python" ]; then echo venv; else echo none; fi'
)
#: The end of the input may be that of the connection: only a whole file gets the name.
PUT = (
    r'cat >"$1.$$" && [ $(wc -c <"$1.$$") -eq "$2" ] && mv -f "$1.$$" "$1" '
    r'|| { rm -f "$1.$$"; exit 1; }'
)


@dataclass(frozen=True)
class Completed:
    """A command that ended on the board.

    Args:
        status: its exit status; negative is the signal that ended it.
        stdout: what it printed, without what the login shell had to say before.
        stderr: what it said besides.
    """

    status: int
    stdout: bytes
    stderr: bytes


class SshDevice:
    """A configured host.

    Args:
        host: what the user told of it.
        patience: how long to wait for it.
    """

    def __init__(self, host: Host, *, patience: Patience | None = None) -> None:
        self.host = host
        self.name = host.name
        self.emulated = host.emulated
        self._patience = patience
        # Agents that may have outlived their connection: process numbers and a word of theirs.
        self._left: list[tuple[int, str]] = []

    @property
    def profile(self) -> DeviceProfile:
        """As the host was configured."""
        return load_profile(self.host.profile)

    def open(self) -> SshSession:
        """Reach the board.

        Raises:
            DeviceError: it does not answer, is not to be trusted, or refuses; the message says.
            MissingExtraError: asyncssh is not installed.
        """
        if importlib.util.find_spec("asyncssh") is None:
            raise MissingExtraError(f"device {self.name}", ["asyncssh"], "ssh")
        from devices.ssh_connection import SshConnection
        from devices.ssh_login import Patience

        connection = SshConnection(self.host, self._patience or Patience())
        session = SshSession(connection, self.profile, self._left)
        try:
            session.connect()
        except BaseException:
            session.close()
            raise
        return session


class SshSession:
    """A board at hand; see the module."""

    def __init__(
        self, connection: SshConnection, profile: DeviceProfile, left: list[tuple[int, str]]
    ) -> None:
        self._connection = connection
        self._host = connection.host
        self._profile = profile
        self._left = left
        self._home = ""
        self._has_venv = False
        self._agent: str | None = None
        self._process: AgentProcess | None = None
        self._line: SshLine | None = None
        self._word = ""
        self._warnings: list[Event] = []
        self._closed = False

    def __enter__(self) -> SshSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the session of every device ---------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """See :meth:`devices.base.Session.facts`."""
        events = self.run(Job("facts"), silence_s=FACTS_S)
        hint = f"`edgevit devices check {self._host.name}` looks the board over"
        return read_facts(events, where=f"on {self._host.name}", hint=hint)

    def push(
        self,
        folder: Path,
        parts: Iterable[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> str:
        """Bring a bundle to the board; see :meth:`devices.base.Session.push`.

        Contents that are there already, from whatever bundle, are not sent again.

        Args:
            folder: the bundle.
            parts: files and folders in it that are needed; all if None.
            progress: called with bytes sent, and bytes that are to be sent.

        Raises:
            DeviceError: the board is gone.
            RefusedError: its disk is full, or it damages files; no Python there.
        """
        from devices.ssh_store import Shipment

        shipment = Shipment.of_folder(folder, STORE_BYTES, parts)
        return self._reliably(lambda: self._ship(shipment, progress))

    def run(self, job: Job, *, silence_s: float = SILENCE_S) -> Generator[Event, None, None]:
        """See :meth:`devices.base.Session.run`."""
        self._end()
        self._reliably(lambda: self._start(self._bring_agent(), job))
        assert self._process is not None
        warnings, self._warnings = self._warnings, []
        return self._events(warnings, self._process.run(job, silence_s=silence_s))

    def stop(self) -> None:
        """See :meth:`devices.base.Session.stop`."""
        if self._process is not None:
            self._process.stop()

    def close(self) -> None:
        """End the agent if one runs, and let go of the board. May be called from any thread."""
        self._closed = True
        self._end()
        self._connection.close()

    # -- what only a board with a shell has --------------------------------------------------------

    @property
    def home(self) -> str:
        """Edgevit's folder on the board, absolute."""
        return self._home

    @property
    def python(self) -> str:
        """The interpreter there: the host's, else of the environment of setup, else python3."""
        if self._host.python:
            return self._host.python
        if not self._has_venv:
            self._look_around()
        return f"{self._home}/venv/bin/python" if self._has_venv else "python3"

    def execute(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout_s: float = 60,
        environment: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command to its end. Its words arrive as they are, whatever is in them.

        Args:
            argv: the command.
            input: its stdin.
            timeout_s: after so long it is killed.
            environment: variables on top of those of the host's login.

        Raises:
            DeviceError: the board is gone, or the command did not end in time.
        """
        return self._reliably(
            lambda: self._execute(argv, input=input, timeout_s=timeout_s, environment=environment)
        )

    def put(self, local: Path, remote: str) -> None:
        """Bring a file to the board: there whole or not at all.

        Raises:
            DeviceError: the board is gone, or its disk is full.
        """
        data = local.read_bytes()
        words = ["sh", "-c", PUT, "sh", remote, str(len(data))]
        done = self.execute(words, input=data, timeout_s=60 + len(data) / 50_000)
        if done.status:
            raise self._file_error(f"cannot write {remote}", done)

    def fetch(self, remote: str, local: Path) -> None:
        """Bring a file from the board.

        Raises:
            DeviceError: the board is gone, or there is no such file.
        """
        done = self.execute(["cat", "--", remote], timeout_s=3600)
        if done.status:
            raise self._file_error(f"cannot read {remote}", done)
        partial = local.with_name(local.name + ".part")
        partial.write_bytes(done.stdout)
        partial.replace(local)

    def clean(self, *, everything: bool = False) -> int:
        """Remove bundles and agents from the board; the bytes that were freed.

        Args:
            everything: also the environment that setup made.

        Raises:
            DeviceError: the board is gone, or has no Python.
        """
        from devices.ssh_store import python_words

        folders = ["venv"] if everything else []
        words = python_words(self.python, "clean", self._home, *folders)
        done = self.execute(words, timeout_s=300)
        self._agent, self._has_venv = None, False  # looked for when it is needed
        if done.status:
            raise self._file_error("cannot clean up", done)
        return int(done.stdout.split()[-1])

    # -- connection --------------------------------------------------------------------------------

    def connect(self) -> None:
        """Reach the board, again if need be.

        Raises:
            DeviceError: it cannot be reached.
        """
        self._connection.connect()
        self._agent = None
        self._look_around()
        while self._left:
            pid, word = self._left.pop()
            self._connection.kill_process(pid, word)

    def _reliably(self, work: Callable[[], T]) -> T:
        """Do it over a connection; over a new one if the loss shows before anything started."""
        from devices.ssh_connection import LostError

        self._ready()
        try:
            return work()
        except LostError:
            self._ready()
            return work()

    def _ready(self) -> None:
        """Have a connection: the one there is, or a new one, once."""
        if self._closed:
            raise DeviceError(f"{self._host.name}: the session is closed")
        if self._connection.alive:
            return
        self._note_loss()
        self.connect()
        message = "the connection was lost before this job; reached the board again"
        self._warnings.append(
            {"event": "warning", "id": None, "kind": "connection",
             "message": f"{self._host.name}: {message}"}
        )  # fmt: skip

    def _look_around(self) -> None:
        done = self._execute(["sh", "-c", HOME], environment=self._host.environment)
        home, _, venv = done.stdout.decode("utf-8", "surrogateescape").strip().rpartition("\n")
        if done.status or not home.startswith("/"):
            raise self._file_error("the board does not tell its home folder", done)
        self._home, self._has_venv = home, venv == "venv"

    def _execute(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout_s: float = 60,
        environment: Mapping[str, str] | None = None,
    ) -> Completed:
        from devices.ssh_line import Collector

        stdout, stderr = Collector(), Collector()
        command = self._connection.start(
            argv, stdout=stdout, stderr=stderr, environment=environment
        )
        try:
            self._feed(command, input)
            if not command.wait(timeout_s):
                name = self._host.name
                raise DeviceError(f"{name}: {argv[0]} did not end within {timeout_s:g} s; killed")
        finally:
            if not command.wait(0):
                self._connection.kill(command)
        self._check(command)
        assert command.status is not None
        return Completed(command.status, stdout.content(), stderr.content())

    def _feed(self, command: RemoteCommand, data: bytes | None) -> None:
        from devices.ssh_store import CHUNK

        try:
            for start in range(0, len(data or b""), CHUNK):
                self._connection.write(command, (data or b"")[start : start + CHUNK])
        except OSError:
            return  # it ended without reading everything: its status says why
        self._connection.write_eof(command)

    def _check(self, command: RemoteCommand) -> None:
        """Raise if the command did not come to run, or nobody knows how it ended."""
        from devices.ssh_line import not_started

        name = self._host.name
        if command.lost is not None:
            raise DeviceError(f"{name}: {command.lost}", hint="is the board still on, and up?")
        if not command.started:
            raise DeviceError(f"{name}: {not_started(command)}", hint="`chsh` there sets another")

    # -- agent -------------------------------------------------------------------------------------

    def _ship(self, shipment: Any, progress: Progress | None = None) -> str:
        from devices.ssh_store import ship

        return ship(
            self._connection,
            shipment,
            home=self._home,
            python=self.python,
            environment=self._environment(1),
            progress=progress,
        )

    def _bring_agent(self) -> str:
        """The agent's path on the board; it is brought once a connection."""
        from devices.ssh_store import Content, Shipment

        if self._agent is None:
            content = Content.of_bytes(archive_bytes(), archive_name())
            self._agent = self._ship(Shipment("agent", archive_name(), (content,)))
        return self._agent

    def _start(self, agent: str, job: Job) -> None:
        from devices.ssh_line import SshLine

        self._word = f"session-{secrets.token_hex(8)}"
        # The last word is not the agent's; it tells its process from others.
        words = [self.python, "-u", agent, self._word]
        self._line = SshLine(self._connection, words, self._environment(job.threads))
        self._process = AgentProcess(self._line, where=self._host.name)

    def _events(
        self, warnings: Sequence[Event], events: Generator[Event, None, None]
    ) -> Generator[Event, None, None]:
        try:
            yield from warnings
            for event in events:
                yield self._advised(event)
        finally:
            events.close()
            self._note_loss()

    def _advised(self, event: Event) -> Event:
        """An error with what to do about it, where that is known."""
        kind, message = event.get("kind"), str(event.get("message"))
        if event["event"] != "error":
            return event
        if kind == "runtime-missing" and any(f"'{name}'" in message for name in BY_HAND):
            advice = f"set-up leaves it to you: install it for {self.python} there"
        elif kind == "runtime-missing":
            asked = next((f" --runtime {name}" for name in ON_DEMAND if f"'{name}'" in message), "")
            advice = f"`edgevit devices setup {self._host.name}{asked}` brings " + (
                "it" if asked else "the runtimes"
            )
        elif kind == "load" and TOO_NEW.search(message):
            advice = f"`edgevit export ... --for {self._host.profile}` writes what it reads"
        elif kind == "crash" and "SIGKILL" in message:
            advice = "its system does that when memory runs out: see `dmesg` there"
        else:
            return event
        first, *rest = message.split("\n", 1)
        return {**event, "message": "\n".join([f"{first}; {advice}", *rest])}

    def _environment(self, threads: int) -> dict[str, str]:
        return {
            **ENCODING,
            **thread_environment(threads),
            **self._profile.environment,
            **self._host.environment,
        }

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
            self._note_loss()

    def _note_loss(self) -> None:
        """Remember an agent whose end nobody saw."""
        line, self._line = self._line, None
        if line is None:
            return
        if line.command.lost is not None and line.command.pid is not None:
            self._left.append((line.command.pid, self._word))

    def _file_error(self, what: str, done: Completed) -> DeviceError:
        from devices.remote import last_line

        full = b"No space left" in done.stderr
        hint = "the board's disk is full: make room there" if full else None
        return DeviceError(f"{self._host.name}: {what}: {last_line(done.stderr)}", hint=hint)
