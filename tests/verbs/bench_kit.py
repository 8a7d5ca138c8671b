"""Boards for the tests of bench: this machine under other names, with accidents to order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from devices.base import SILENCE_S, Event, Job, Schedule
from devices.local import LocalDevice, LocalSession
from devices.profile import DeviceProfile, RuntimeProfile
from edgevit.errors import DeviceError
from edgevit.progress import Progress

QUICK = Schedule(
    min_runs=20, min_seconds=0, max_seconds=20, warmup_runs=2, warmup_seconds=0, block_seconds=0.01
)
Happening = Callable[["Session", Job, Event], None]


class Board(LocalDevice):
    """A device beside others on this machine: real agents, a lock of its own.

    Args:
        name: of the device.
        folder: where its lock is.
        happens: called after every event of every job, before the host sees it.
        profile: what is known of it.
        environment: variables of its agents.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        happens: Happening | None = None,
        profile: DeviceProfile | None = None,
        **environment: str,
    ) -> None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        super().__init__(environment={"TMPDIR": str(folder / name), **environment})
        self.name = name  # type: ignore[misc]
        self.happens = happens
        self.jobs: list[Job] = []
        self.opened = 0
        #: Why it cannot be reached, if so.
        self.unreachable: str | None = None
        self._own = profile

    @property
    def profile(self) -> DeviceProfile:
        return self._own or super().profile

    def open(self) -> Session:
        if self.unreachable is not None:
            raise DeviceError(self.unreachable, hint="is it switched on?")
        self.opened += 1
        return Session(self, super().open())


class Session:
    """A local session in which things happen."""

    def __init__(self, board: Board, session: LocalSession) -> None:
        self.board = board
        self.local = session

    def run(self, job: Job, *, silence_s: float = SILENCE_S) -> Iterator[Event]:
        self.board.jobs.append(job)
        with closing(self.local.run(job, silence_s=silence_s)) as events:
            for event in events:
                if self.board.happens is not None:
                    self.board.happens(self, job, event)
                yield event

    def kill(self) -> None:
        """Kill the running agent, as the system does when memory runs out."""
        process = self.local._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.local, name)


class Listener(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[str, str]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, name: str, done: float, total: float, detail: str = "") -> None:
        assert 0 <= done <= total
        self.steps.append((name, detail))


def limited(name: str, **limits: Any) -> DeviceProfile:
    """A profile of a board that runs ONNX, with limits."""
    runtime = RuntimeProfile(formats=("onnx",), version="1.10.0", **limits)
    return DeviceProfile(
        name, f"board {name}", "x86-64", cores=1, runtimes={"onnxruntime": runtime}
    )


def modes(board: Board) -> list[tuple[str, tuple[str, ...]]]:
    """What jobs it had, and of which files."""
    return [(job.mode, tuple(s.id for s in job.subjects)) for job in board.jobs]
