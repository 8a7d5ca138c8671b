"""Waiting for devices, and ending them on Ctrl-C."""

from __future__ import annotations

import _thread
import threading
import time
from dataclasses import dataclass, field

import pytest

from edgevit.errors import DeviceError, OutputError
from edgevit.verbs import crew


@dataclass
class Work:
    """Stands for a device's part: lasts until it is told to stop, and then takes a while to end."""

    ending_s: float = 0.0
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    let_go: bool = False
    ended: bool = False

    def run(self) -> None:
        if self.error is None:
            self.asked.wait(30)
            time.sleep(self.ending_s)
        self.ended = True
        self.over.set()

    def stop(self) -> None:
        self.asked.set()

    def abandon(self) -> None:
        self.let_go = True


def interrupt_after(seconds: float) -> None:
    threading.Timer(seconds, _thread.interrupt_main).start()


def test_ctrl_c_waits_for_what_is_still_being_written() -> None:
    works = [Work(ending_s=0.6), Work(ending_s=0.1)]
    interrupt_after(0.25)
    with pytest.raises(KeyboardInterrupt):
        crew.run_all(works)  # type: ignore[arg-type]
    assert all(work.ended for work in works)


def test_what_does_not_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "GRACE_S", 0.2)
    monkeypatch.setattr(crew, "LAST_S", 0.1)
    stuck, quick = Work(ending_s=3), Work()
    interrupt_after(0.2)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        crew.run_all([stuck, quick])  # type: ignore[list-item]
    assert time.monotonic() - start < 2.5
    assert (quick.ended, stuck.ended, stuck.let_go) == (True, False, True)


def test_what_concerns_all_ends_all() -> None:
    failed, other = Work(error=OutputError("disk full")), Work()
    crew.run_all([failed, other])  # type: ignore[list-item]
    assert other.asked.is_set()
    assert other.ended


def test_a_device_that_failed_leaves_the_others_alone() -> None:
    failed, other = Work(error=DeviceError("gone")), Work()
    threading.Timer(0.5, other.asked.set).start()
    start = time.monotonic()
    crew.run_all([failed, other])  # type: ignore[list-item]
    assert time.monotonic() - start > 0.4
    assert not other.let_go
