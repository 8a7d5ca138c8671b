"""Several devices at work at the same time, and how they end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from edgevit.errors import DeviceError
from edgevit.verbs.runs import DeviceRun

__all__ = ["run_all"]

#: Seconds that devices have to end after Ctrl-C.
GRACE_S = 20.0
#: Seconds that they have after they were let go of.
LAST_S = 5.0


def run_all(works: Sequence[DeviceRun]) -> None:
    """Run all in threads of their own; Ctrl-C ends them, and what they have is written."""
    # What is waited for are events of our own: a Thread.join() that Ctrl-C interrupts takes the
    # thread for ended (Python 3.11), and an interpreter that leaves working threads may abort.
    workers = [threading.Thread(target=work.run, daemon=True) for work in works]
    try:
        for worker in workers:
            worker.start()
        while not _wait(works, 0.1):
            if any(_is_fatal(work.error) for work in works):
                break
    finally:
        if not _wait(works, 0):
            _end(works)
        for work, worker in zip(works, workers, strict=True):
            if work.over.is_set():
                worker.join()


def _end(works: Sequence[DeviceRun]) -> None:
    """Ask all to end, and leave those that do not."""
    for work in works:
        work.stop()
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C waits no longer
        _wait(works, GRACE_S)
    for work in works:
        work.abandon()
    _wait(works, LAST_S)


def _wait(works: Sequence[DeviceRun], seconds: float) -> bool:
    """Whether all are over within that time."""
    deadline = time.monotonic() + seconds
    return all(work.over.wait(max(0.0, deadline - time.monotonic())) for work in works)


def _is_fatal(error: BaseException | None) -> bool:
    """Whether it concerns more than its own device."""
    return error is not None and not isinstance(error, DeviceError)
