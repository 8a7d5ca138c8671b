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


def run_all(works: Sequence[DeviceRun]) -> None:
    """Run all in threads of their own; Ctrl-C ends them, and what they have is written."""
    workers = [threading.Thread(target=work.run, daemon=True) for work in works]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            _join(workers, 0.1)
            if any(_is_fatal(work.error) for work in works):
                break
    except KeyboardInterrupt:
        _end(works, workers)
        raise
    finally:
        if any(worker.is_alive() for worker in workers):
            _end(works, workers)


def _end(works: Sequence[DeviceRun], workers: Sequence[threading.Thread]) -> None:
    """Ask all to end, and leave those that do not."""
    for work in works:
        work.stop()
    deadline = time.monotonic() + GRACE_S
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C waits no longer
        while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
            _join(workers, 0.1)
    for work in works:
        work.abandon()
    _join(workers, 5.0)


def _join(workers: Sequence[threading.Thread], seconds: float) -> None:
    for worker in workers:
        worker.join(seconds)


def _is_fatal(error: BaseException | None) -> bool:
    """Whether it concerns more than its own device."""
    return error is not None and not isinstance(error, DeviceError)
