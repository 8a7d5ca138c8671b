"""Lines to programs on a board: the agent's, and that of the store's other end."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping, Sequence

from devices.line import STDERR_LINES, Ending, ending_of
from devices.remote import last_line
from devices.ssh_connection import RemoteCommand, SshConnection
from edgevit.errors import DeviceError

__all__ = ["Collector", "SshLine", "not_started"]

#: Of what a program says on stderr, so much is kept.
STDERR_BYTES = 1 << 16
#: Seconds in which the board's word of an end has to arrive after its cause.
DRAIN_S = 4.0


class Collector:
    """Keeps what a command says; at most so many bytes, the last ones."""

    def __init__(self, most: int | None = None) -> None:
        self._pieces = bytearray()
        self._most = most
        self._guard = threading.Lock()

    def __call__(self, data: bytes) -> None:
        """A piece more."""
        with self._guard:
            self._pieces += data
            if self._most is not None and len(self._pieces) > 2 * self._most:
                del self._pieces[: -self._most]

    def content(self) -> bytes:
        """All that came."""
        with self._guard:
            return bytes(self._pieces)


class SshLine:
    """A program on a board; see :class:`devices.line.Line`.

    Args:
        connection: to the board.
        argv: the program.
        environment: variables for it.

    Raises:
        DeviceError: the connection is lost, or the board starts no command.
    """

    def __init__(
        self, connection: SshConnection, argv: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._rest = b""
        self._said = Collector(STDERR_BYTES)
        self._connection = connection
        self._program = argv[0]
        self.command: RemoteCommand = connection.start(
            argv, stdout=self._split, stderr=self._said, environment=environment
        )

    @property
    def pid(self) -> int | None:
        """See :attr:`devices.line.Line.pid`."""
        return self.command.pid

    def send(self, data: bytes) -> None:
        """See :meth:`devices.line.Line.send`."""
        self._connection.write(self.command, data)

    def hang_up(self) -> None:
        """See :meth:`devices.line.Line.hang_up`."""
        self._connection.write_eof(self.command)

    def wait(self, seconds: float) -> Ending | None:
        """See :meth:`devices.line.Line.wait`."""
        if not self.command.wait(seconds):
            return None
        if self.command.lost is not None:
            return Ending("connection", self.command.lost)
        if self.command.started:
            status = self.command.status or 0
            if status == 127:
                return Ending("crash", f"there is no {self._program} on the board")
            return Ending("crash", f"the agent {ending_of(status)} before it was done")
        return Ending("crash", not_started(self.command))

    def kill(self) -> None:
        """See :meth:`devices.line.Line.kill`."""
        self._connection.kill(self.command)
        self.command.wait(DRAIN_S)

    def said(self) -> str:
        """See :meth:`devices.line.Line.said`."""
        text = self._said.content().decode("utf-8", "replace").strip()
        return "\n".join(text.splitlines()[-STDERR_LINES:])

    def close(self) -> None:
        """See :meth:`devices.line.Line.close`."""
        with contextlib.suppress(DeviceError):
            self._connection.abandon(self.command)

    def _split(self, data: bytes) -> None:
        """Pieces to lines; an empty piece is the end."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self.lines.put(line + b"\n")
        if not data:
            if self._rest:
                self.lines.put(self._rest)
            self.lines.put(None)


def not_started(command: RemoteCommand) -> str:
    """Why the board's login shell did not come to run a command."""
    said = last_line(command.greeting.encode())
    return f"the login shell there runs no commands: {said}"
