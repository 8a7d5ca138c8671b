"""A connection to a board, kept; commands run in it, each over a channel of its own.

asyncssh lives on an event loop in a thread of its own; everything here is called from others.

A command is never a string made of names. What is sent is

    exec sh -c 'printf "\\n%s %s\\n" "$1" "$$"; shift; exec "$@"' sh MARKER env NAME=VALUE WORD ...

with every word quoted: whatever the user's shell is, and whatever it prints at its start, the
command's own output begins after the marker, which also tells the process by number. Variables
travel as words since servers take none by themselves.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import secrets
import shlex
import signal
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import asyncssh

from devices.hosts import Host
from devices.ssh_login import Client, Patience, Way, reach
from edgevit.errors import DeviceError

__all__ = ["LostError", "RemoteCommand", "SshConnection"]

T = TypeVar("T")

START = r'printf "\n%s %s\n" "$1" "$$"; shift; exec "$@"'
#: The group that a server starts a command in, else the process; only if it still is that one.
KILL = (
    r'words=$(tr "\000" " " <"/proc/$1/cmdline" 2>/dev/null || ps -o args= -p "$1"); '
    r'case "$words" in *"$2"*) kill -KILL "-$1" 2>/dev/null || kill -KILL "$1";; esac'
)
KILL_S = 5.0
CLOSE_S = 5.0
SETTLE_S = 0.5
#: A greeting longer than this is not kept.
GREETING_BYTES = 1 << 16

Sink = Callable[[bytes], None]


class LostError(DeviceError):
    """The connection is lost, and what was to be started was not."""


class RemoteCommand(asyncssh.SSHClientSession[bytes]):
    """A command on the board. Its sinks are called from the connection's thread.

    Args:
        marker: comes before its output.
        stdout: takes its output; an empty piece is the end.
        stderr: takes what it says besides.
    """

    def __init__(self, marker: str, stdout: Sink, stderr: Sink) -> None:
        self._mark = f"\n{marker} ".encode()
        self._stdout, self._stderr = stdout, stderr
        self._before = b"\n"
        self._over = False
        self._gone = threading.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.channel: asyncssh.SSHClientChannel[bytes] | None = None
        #: Its process number on the board, once it has started.
        self.pid: int | None = None
        #: Exit status; negative is a signal; None if the connection was lost before.
        self.status: int | None = None
        #: Why the connection was lost.
        self.lost: str | None = None

    @property
    def started(self) -> bool:
        """Whether the board's shell came to run it."""
        return self.pid is not None

    @property
    def greeting(self) -> str:
        """What the board's shell printed first."""
        return self._before.decode("utf-8", "replace").strip()

    def wait(self, seconds: float | None) -> bool:
        """Whether it is over within that time."""
        return self._gone.wait(seconds)

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open."""
        self.channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """A piece of its output."""
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            self._stderr(data)
        elif self.pid is not None:
            self._stdout(data)
        else:
            self._look_for_mark(data)

    def eof_received(self) -> bool:
        """It closed its stdout."""
        self._finish()
        return True  # its stdin stays open

    def exit_status_received(self, status: int) -> None:
        """It ended by itself."""
        self.status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """A signal ended it."""
        self.status = -_signal_number(signal)

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed, in good order or not."""
        if self.status is None:
            self.lost = _loss(exc)
        self._writable.set()
        self._finish()
        self._gone.set()

    def pause_writing(self) -> None:
        """Its stdin is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """There is room in its stdin."""
        self._writable.set()

    async def write(self, data: bytes) -> None:
        """Send to its stdin, when there is room.

        Raises:
            OSError: it is over.
        """
        await self._writable.wait()
        if self._gone.is_set() or self.channel is None:
            raise BrokenPipeError
        self.channel.write(data)

    def write_eof(self) -> None:
        """End its stdin."""
        if self.channel is not None and not self._gone.is_set():
            with contextlib.suppress(OSError):
                self.channel.write_eof()

    def abandon(self) -> None:
        """Close its channel."""
        if self.channel is not None:
            self.channel.close()

    def _look_for_mark(self, data: bytes) -> None:
        self._before += data
        before, found, after = self._before.partition(self._mark)
        number, ended, rest = after.partition(b"\n")
        if found and ended:
            self.pid = int(number)
            self._before = before
            if rest:
                self._stdout(rest)
        elif len(self._before) > GREETING_BYTES:
            self._before = self._before[-GREETING_BYTES // 2 :]

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            self._stdout(b"")


class SshConnection:
    """A connection that can be made again; see the module.

    Args:
        host: the board.
        patience: how long to wait for it.
    """

    def __init__(self, host: Host, patience: Patience) -> None:
        self.host = host
        self.patience = patience
        self._loop = asyncio.new_event_loop()
        self._pool = concurrent.futures.ThreadPoolExecutor(2)
        self._loop.set_default_executor(self._pool)
        self._thread = threading.Thread(target=self._live, name=f"ssh {host.name}", daemon=True)
        self._thread.start()
        self._opened: list[asyncssh.SSHClientConnection] = []
        self._connection: asyncssh.SSHClientConnection | None = None
        self._client = Client()

    @property
    def alive(self) -> bool:
        """Whether it was made, and is not known to be lost."""
        return self._connection is not None and not self._connection.is_closed()

    def connect(self) -> None:
        """Reach the board, again if need be.

        Raises:
            DeviceError: see :func:`devices.ssh_login.reach`.
        """
        self._connection = self._call(self._connect())

    def start(
        self,
        argv: Sequence[str],
        *,
        stdout: Sink,
        stderr: Sink,
        environment: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> RemoteCommand:
        """Start a command.

        Args:
            argv: its words.
            stdout: takes its output; an empty piece is the end.
            stderr: takes what it says besides.
            environment: variables on top of those of the login.
            timeout_s: for the board to start it; None waits until the connection counts as lost.

        Raises:
            LostError: the connection is lost.
            DeviceError: the board starts no command.
        """
        marker = f"edgevit-{secrets.token_hex(8)}"
        words = [f"{name}={value}" for name, value in (environment or {}).items()]
        command = ["sh", "-c", START, "sh", marker, *(["env", *words] if words else []), *argv]
        return self._call(self._start(shlex.join(command), marker, stdout, stderr), timeout_s)

    def write(self, command: RemoteCommand, data: bytes) -> None:
        """Send to a command's stdin, and wait until there is room for more.

        Raises:
            OSError: the command is over.
        """
        try:
            self._call(command.write(data))
        except DeviceError as error:
            raise BrokenPipeError from error

    def write_eof(self, command: RemoteCommand) -> None:
        """End a command's stdin."""
        self._tell(command.write_eof)

    def abandon(self, command: RemoteCommand) -> None:
        """Close a command's channel, whatever it does."""
        self._tell(command.abandon)

    def kill(self, command: RemoteCommand) -> None:
        """End a command by force: many servers do not pass signals on."""
        if command.pid is not None and self.alive and not command.wait(0):
            with contextlib.suppress(DeviceError):
                self.kill_process(command.pid, "")
                command.wait(KILL_S)
        self.abandon(command)

    def kill_process(self, pid: int, word: str) -> None:
        """Kill a process of the board, and its group, if those letters are in its command.

        Raises:
            DeviceError: the connection is lost.
        """
        words = ["sh", "-c", KILL, "sh", str(pid), word]
        killing = self.start(words, stdout=_ignore, stderr=_ignore, timeout_s=KILL_S)
        killing.wait(KILL_S)

    def close(self) -> None:
        """Let go of the board. Does nothing a second time; may be called from any thread."""
        if self._loop.is_closed() or not self._thread.is_alive():
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(CLOSE_S)
        self._tell(self._loop.stop)
        self._thread.join(CLOSE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- on the connection's thread ----------------------------------------------------------------

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _connect(self) -> asyncssh.SSHClientConnection:
        self._drop()
        try:
            self._client = Client()
            return await reach(Way.to(self.host), self.patience, self._opened, self._client)
        except BaseException:
            self._drop()
            raise

    async def _start(self, command: str, marker: str, stdout: Sink, stderr: Sink) -> RemoteCommand:
        connection = self._connection
        if connection is None or connection.is_closed():
            raise self._lost()
        try:
            _, session = await connection.create_session(
                lambda: RemoteCommand(marker, stdout, stderr),
                f"exec {command}",
                encoding=None,
                request_pty=False,
                x11_forwarding=False,
            )
        except (asyncssh.Error, OSError) as error:
            # Channels learn of a lost connection before it counts as closed.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(connection.wait_closed(), SETTLE_S)
                raise self._lost() from error
            reason = getattr(error, "reason", None) or str(error)
            raise self._error(f"it starts no command: {reason}") from error
        assert isinstance(session, RemoteCommand)
        return session

    async def _close(self) -> None:
        this = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not this]
        self._drop()
        for connection in self._opened:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.wait_closed(), CLOSE_S / 2)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _drop(self) -> None:
        """Close what is open, the board first, then the jump hosts before it."""
        self._connection = None
        for connection in reversed(self._opened):
            connection.close()
        self._opened.clear()

    # ----------------------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Have the thread do it, and wait."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise self._error("the connection was closed") from error
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError as error:
            raise self._error("the connection was closed") from error
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            if timeout_s is None:
                raise
            raise self._error(f"no answer within {timeout_s:g} s") from error
        except BaseException:
            future.cancel()
            raise

    def _tell(self, what: Callable[[], None]) -> None:
        """Have the thread do it."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)

    def _lost(self) -> LostError:
        self._connection = None
        words = f"{self.host.name}: {_loss(self._client.loss)}"
        return LostError(words, hint="is the board still on, and up?")

    def _error(self, words: str) -> DeviceError:
        return DeviceError(f"{self.host.name}: {words}", hint="is the board still on, and up?")


def _ignore(_: bytes) -> None:
    pass


def _signal_number(name: str) -> int:
    """The number of a signal that a server named, such as ``"KILL"``."""
    try:
        return signal.Signals[f"SIG{name}"].value
    except KeyError:
        return signal.SIGKILL.value


def _loss(error: BaseException | None) -> str:
    """Why a connection was lost."""
    if isinstance(error, asyncssh.MACError):
        return "the connection was cut: data was damaged on the way"
    reason = getattr(error, "reason", None) or str(error or "")
    if "keepalive" in reason:
        return "the connection was lost: the board no longer answers"
    if reason in ("", "Connection lost"):
        return "the connection was cut"
    return f"the connection was cut: {reason}"
