"""The host's end of the line: start an agent, send it a job, read its events, see it end.

Whatever the command is (Python here, or ssh to a Python elsewhere), stdin and stdout are the
agent's. It runs in a process group of its own, so that Ctrl-C reaches it through
:meth:`AgentProcess.end` alone, and it ends by itself when stdin ends, so that nothing lives on if
this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import IO, Any

from devices.base import SILENCE_S, Event, Job
from edgevit.errors import DeviceError

__all__ = ["FIELDS", "AgentProcess", "parse_event"]

#: Fields that an event cannot be without, by its name.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "facts": ("agent", "machine", "os", "python", "runtimes", "cpu", "clock"),
    "progress": ("id", "stage"),
    "loaded": ("id", "load_ns", "first_ns", "runtime", "settings", "region"),
    "checked": ("id", "ok", "outputs", "reason"),
    "conditions": ("when",),
    "warmed": ("id", "runs", "ns", "inner"),
    "samples": ("id", "round", "inner", "ns"),
    "memory": ("id", "method", "baseline_bytes", "peak_bytes"),
    "warning": ("kind", "message"),
    "error": ("id", "kind", "message"),
    "done": ("stopped",),
}

#: Seconds that an agent has to end by itself: its own grace, and some.
END_S = 4.0
STDERR_LINES = 40


def parse_event(line: bytes) -> Event | None:
    """The event in a line; None if the line is no JSON object (a login shell's greeting).

    Raises:
        ValueError: it is an object, but no event of this protocol; the message says why.
    """
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict):
        return None
    name = event.get("event")
    if not isinstance(name, str) or name not in FIELDS:
        raise ValueError(f"unknown event {name!r}")
    if missing := [field for field in FIELDS[name] if field not in event]:
        raise ValueError(f"event {name} lacks {', '.join(missing)}")
    return event


class AgentProcess:
    """A running agent.

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
        self._where = where
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
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._said: deque[str] = deque(maxlen=STDERR_LINES)
        self._readers = [self._read(self._pump_stdout), self._read(self._pump_stderr)]

    @property
    def pid(self) -> int:
        """Of the process that was started here."""
        return self._process.pid

    def run(self, job: Job, *, silence_s: float = SILENCE_S) -> Generator[Event, None, None]:
        """Send the job and yield its events; see :meth:`devices.base.Session.run`."""
        watch = _Attribution(job)
        try:
            self._send(job.to_json())
            while True:
                event = self._next(silence_s, watch)
                watch.see(event)
                yield event
                if watch.ended:
                    return
        finally:
            self.end()

    def stop(self) -> None:
        """Ask the agent to end after the block it is in."""
        self._send({"command": "stop"})

    def end(self) -> None:
        """End the agent: by the end of its stdin, or else by force. Does nothing a second time."""
        with contextlib.suppress(OSError):
            self._pipe(self._process.stdin).close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._kill()
        for reader in self._readers:
            reader.join(END_S)
        for stream in (self._process.stdout, self._process.stderr):
            self._pipe(stream).close()

    def _next(self, silence_s: float, watch: _Attribution) -> Event:
        """The next event, or the error event that says why there will be none."""
        try:
            line = self._lines.get(timeout=silence_s)
        except queue.Empty:
            self._kill()
            return watch.error("hang", f"{self._where}: no word for {silence_s:g} s; killed")
        if line is None:
            return watch.error("crash", self._obituary())
        try:
            event = parse_event(line)
        except ValueError as error:
            self._kill()
            return watch.error("protocol", f"{self._where}: {error}")
        if event is None:
            text = line.decode("utf-8", "replace").strip()
            return {"event": "warning", "id": None, "kind": "noise",
                    "message": f"not from the agent: {text[:200]}"}  # fmt: skip
        return event

    def _obituary(self) -> str:
        """How the agent died, with the end of what it said on stderr."""
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._kill()
            return f"{self._where}: the agent closed its stdout and stayed; killed"
        self._readers[1].join(END_S)
        said = "\n".join(self._said)
        return f"{self._where}: the agent {_ending(code)}" + (f"\n{said}" if said else "")

    def _send(self, message: Mapping[str, Any]) -> None:
        # An agent that is gone cannot be told anything; its exit status says why.
        with contextlib.suppress(OSError, ValueError):
            stream = self._pipe(self._process.stdin)
            stream.write(json.dumps(message, allow_nan=False).encode() + b"\n")
            stream.flush()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self, pump: Any) -> threading.Thread:
        thread = threading.Thread(target=pump, daemon=True)
        thread.start()
        return thread

    def _pump_stdout(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._pipe(self._process.stdout):
                self._lines.put(line)
        self._lines.put(None)

    def _pump_stderr(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._pipe(self._process.stderr):
                self._said.append(line.decode("utf-8", "replace").rstrip())

    @staticmethod
    def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None  # all three are pipes
        return stream


class _Attribution:
    """Keeps track of which subject the agent is busy with, to name it if the agent dies."""

    def __init__(self, job: Job) -> None:
        self._only = job.subjects[0].id if len(job.subjects) == 1 else None
        self._current = self._only
        self.ended = False

    def see(self, event: Event) -> None:
        if event["event"] == "progress":
            self._current = event["id"] or self._only
        elif event["event"] == "samples":
            self._current = self._only
        self.ended = self.ended or event["event"] == "done"

    def error(self, kind: str, message: str) -> Event:
        self.ended = True
        return {"event": "error", "id": self._current, "kind": kind, "message": message}


def _ending(code: int) -> str:
    """An exit status in words; shells report signals as 128 and up."""
    number = -code if code < 0 else code - 128
    if code < 0 or 128 < code < 160:
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"ended with exit status {code} before it was done"
