"""The host's end of the conversation: send an agent a job, read its events, see it end.

It is the same whatever the line is, a child process here or a channel of SSH (``devices.line``). An
agent ends by itself when its stdin ends, so that nothing lives on if this process is killed.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import queue
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from devices.base import SILENCE_S, Event, Job
from devices.line import Line
from edgevit.errors import DeviceError

__all__ = ["FIELDS", "AgentProcess", "holder", "parse_event", "read_facts"]

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
    "profile": ("id", "method", "resolution_ns", "plain_ns", "profiled_ns", "ops"),
    "peak": ("threads", "flops", "bytes"),
    "warning": ("kind", "message"),
    "error": ("id", "kind", "message"),
    "done": ("stopped",),
}

#: Seconds that an agent has to end by itself: its own grace, and some.
END_S = 4.0
#: So much of the command line is told to others.
COMMAND_CHARACTERS = 200


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
        line: to the agent.
        where: the device, for messages.
    """

    def __init__(self, line: Line, *, where: str) -> None:
        self._line = line
        self._where = where

    @property
    def pid(self) -> int | None:
        """The agent's process number, where it runs; None if that is not known yet."""
        return self._line.pid

    def run(self, job: Job, *, silence_s: float = SILENCE_S) -> Generator[Event, None, None]:
        """Send the job and yield its events; see :meth:`devices.base.Session.run`."""
        watch = _Attribution(job)
        try:
            self._send({**job.to_json(), "holder": holder()})
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
        self._line.hang_up()
        if self._line.wait(END_S) is None:
            self._line.kill()
        self._line.close()

    def _next(self, silence_s: float, watch: _Attribution) -> Event:
        """The next event, or the error event that says why there will be none."""
        try:
            line = self._line.lines.get(timeout=silence_s)
        except queue.Empty:
            self._line.kill()
            return watch.error("hang", f"{self._where}: no word for {silence_s:g} s; killed")
        if line is None:
            return watch.error(*self._obituary())
        try:
            event = parse_event(line)
        except ValueError as error:
            self._line.kill()
            return watch.error("protocol", f"{self._where}: {error}")
        if event is None:
            text = line.decode("utf-8", "replace").strip()
            return {"event": "warning", "id": None, "kind": "noise",
                    "message": f"not from the agent: {text[:200]}"}  # fmt: skip
        return event

    def _obituary(self) -> tuple[str, str]:
        """How the agent ended, kind and words, with the end of what it said on stderr."""
        ending = self._line.wait(END_S)
        if ending is None:
            self._line.kill()
            return "crash", f"{self._where}: the agent closed its stdout and stayed; killed"
        said = self._line.said() if ending.kind == "crash" else ""
        return ending.kind, f"{self._where}: {ending.words}" + (f"\n{said}" if said else "")

    def _send(self, message: Mapping[str, Any]) -> None:
        # An agent that is gone cannot be told anything; its exit status says why.
        with contextlib.suppress(OSError):
            self._line.send(json.dumps(message, allow_nan=False).encode() + b"\n")


def holder() -> dict[str, Any]:
    """Who measures, for others who find the device busy."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        user = str(os.getuid())
    return {
        "user": f"{user}@{platform.node()}",
        "pid": os.getpid(),
        "command": command[:COMMAND_CHARACTERS],
    }


def read_facts(events: Generator[Event, None, None], *, where: str, hint: str) -> dict[str, Any]:
    """The facts event of a job of that mode.

    Args:
        events: of the job.
        where: ``"here"``, or ``"on "`` and the device.
        hint: what to do if there is none.

    Raises:
        DeviceError: the agent told none.
    """
    problem = "it told no facts"
    with contextlib.closing(events):
        for event in events:
            if event["event"] == "facts":
                return event
            if event["event"] == "error":
                problem = event["message"]
    raise DeviceError(f"the agent cannot run {where}: {problem}", hint=hint)


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
