"""The two ends of the line to the host: events out, one job and the word to stop in."""

import json
import os
import sys
import threading
import time
from typing import Any, Dict, Optional

from .errors import AgentError, Stopped

#: How long the running inference may still take once the host said stop or is gone.
GRACE_SECONDS = 2.0


def claim_stdout() -> int:
    """A descriptor of the original stdout; from now on what is printed goes to stderr."""
    sys.stdout.flush()
    stream = os.dup(1)
    os.dup2(2, 1)
    return stream


class EventStream:
    """Writes events as JSON lines, whole ones, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event. Without a reader the agent has nothing left to do, and ends."""
        data = json.dumps(dict(fields, event=event), sort_keys=True, allow_nan=False) + "\n"
        with self._lock:
            self._write(data.encode("utf-8"))

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            os._exit(1)


class Control:
    """Reads the job from stdin, and then waits there for the host's word, or its end.

    The waiting thread blocks in a system call: it takes no time from what is measured.
    """

    def __init__(self, events: EventStream, fd: int = 0, grace: float = GRACE_SECONDS) -> None:
        self._events = events
        self._fd = fd
        self._grace = grace
        self._buffer = b""
        self._stop = threading.Event()
        self._watching = False

    def read_job(self) -> Optional[Dict[str, Any]]:
        """The job; None if stdin ended before one came.

        Raises:
            AgentError: the line is no JSON object.
        """
        line = self._line()
        if line is None:
            return None
        try:
            job = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise AgentError("protocol", "the job is no JSON: {}".format(error)) from None
        if not isinstance(job, dict):
            raise AgentError("protocol", "the job is no JSON object")
        return job

    def watch(self) -> None:
        """Start waiting for the host's word in a thread of its own."""
        self._watching = True
        threading.Thread(target=self._watch, daemon=True).start()

    def checkpoint(self) -> None:
        """Called wherever the agent may end.

        Raises:
            Stopped: the host said so.
        """
        if self._stop.is_set():
            raise Stopped

    def interrupt(self, *_: Any) -> None:
        """Signal handler: end at the next checkpoint, or at once while waiting for a job."""
        self._stop.set()
        if not self._watching:
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep, unless told to stop.

        Raises:
            Stopped: the host said so.
        """
        self._stop.wait(seconds)
        self.checkpoint()

    def _line(self) -> Optional[bytes]:
        while b"\n" not in self._buffer:
            chunk = os.read(self._fd, 1 << 16)
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _watch(self) -> None:
        line = self._line()
        while line is not None and not _says_stop(line):
            line = self._line()
        self._stop.set()
        # The main thread ends the process at its next checkpoint; a long inference does not let it.
        time.sleep(self._grace)
        if line is not None:
            self._events.emit("done", stopped=True)
        os._exit(1)


def _says_stop(line: bytes) -> bool:
    try:
        message = json.loads(line.decode("utf-8"))
    except ValueError:
        return False
    return isinstance(message, dict) and message.get("command") == "stop"
