"""The line to a running agent, whatever it is made of: a child process here, or a channel of SSH.

What the agent says on stdout comes as ``lines``, to whichever thread asks; the end of its stdout is
None. Its stdin is :meth:`Line.send` and :meth:`Line.hang_up`; an agent ends when its stdin does.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from edgevit.errors import DeviceError

__all__ = ["STDERR_LINES", "ChildLine", "Ending", "Line", "ending_of"]

#: So much of what an agent said on stderr is kept, to be told if it dies.
STDERR_LINES = 40
#: Seconds in which what was said before the end has to arrive.
DRAIN_S = 4.0


@dataclass(frozen=True)
class Ending:
    """How an agent ended.

    Args:
        kind: ``"crash"``, or ``"connection"`` if all that is known is that the way there is gone.
        words: the same for a reader, to follow the device's name.
    """

    kind: str
    words: str


class Line(Protocol):
    """An agent's three streams and its end."""

    #: What it says on stdout, then None.
    lines: queue.SimpleQueue[bytes | None]

    @property
    def pid(self) -> int | None:
        """Its process number, where it runs; None if that is not known yet."""
        ...

    def send(self, data: bytes) -> None:
        """Write to its stdin.

        Raises:
            OSError: nobody is there any more.
        """
        ...

    def hang_up(self) -> None:
        """End its stdin."""
        ...

    def wait(self, seconds: float) -> Ending | None:
        """How it ended; None if it has not within that time."""
        ...

    def kill(self) -> None:
        """End it by force."""
        ...

    def said(self) -> str:
        """The last lines of its stderr, once it has ended."""
        ...

    def close(self) -> None:
        """Let go of what is left."""
        ...


def ending_of(status: int) -> str:
    """An exit status in words; negative is a signal, and shells report those as 128 and up."""
    number = -status if status < 0 else status - 128
    if status < 0 or 128 < status < 160:
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"ended with exit status {status}"


class ChildLine:
    """An agent in a child process.

    It has a process group of its own, so that Ctrl-C reaches it through :meth:`hang_up` alone.

    Args:
        command: what starts it.
        environment: variables on top of this process's own.
        where: the device, for messages.

    Raises:
        DeviceError: the command cannot be started.
    """

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], where: str
    ) -> None:
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DeviceError(
                f"{where}: cannot start {command[0]}: {reason}", hint="is it installed there?"
            ) from error
        self.lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._said: deque[str] = deque(maxlen=STDERR_LINES)
        self._readers = [_thread(self._pump_stdout), _thread(self._pump_stderr)]

    @property
    def pid(self) -> int:
        """See :attr:`Line.pid`."""
        return self._process.pid

    def send(self, data: bytes) -> None:
        """See :meth:`Line.send`."""
        stream = _pipe(self._process.stdin)
        try:
            stream.write(data)
            stream.flush()
        except ValueError as error:  # closed
            raise BrokenPipeError from error

    def hang_up(self) -> None:
        """See :meth:`Line.hang_up`."""
        with contextlib.suppress(OSError):
            _pipe(self._process.stdin).close()

    def wait(self, seconds: float) -> Ending | None:
        """See :meth:`Line.wait`."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return Ending("crash", f"the agent {ending_of(status)} before it was done")

    def kill(self) -> None:
        """See :meth:`Line.kill`."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def said(self) -> str:
        """See :meth:`Line.said`."""
        self._readers[1].join(DRAIN_S)
        return "\n".join(self._said)

    def close(self) -> None:
        """See :meth:`Line.close`."""
        for reader in self._readers:
            reader.join(DRAIN_S)
        for stream in (self._process.stdout, self._process.stderr):
            _pipe(stream).close()

    def _pump_stdout(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in _pipe(self._process.stdout):
                self.lines.put(line)
        self.lines.put(None)

    def _pump_stderr(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in _pipe(self._process.stderr):
                self._said.append(line.decode("utf-8", "replace").rstrip())


def _thread(pump: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    return thread


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # all three are pipes
    return stream
