"""One measurement at a time on a device, whoever started it.

The lock is held on a file in the device's temporary folder and goes with the process.
"""

import os
import tempfile
from types import ModuleType
from typing import Callable, Optional

from .clock import clock_ns
from .errors import AgentError

fcntl: Optional[ModuleType] = None
try:
    import fcntl
except ImportError:  # not a Unix: there is no lock
    pass

POLL_SECONDS = 0.25
REMIND_SECONDS = 10.0


def lock_path() -> str:
    """The file that is locked."""
    return os.path.join(tempfile.gettempdir(), "edgevit-agent.lock")


def acquire(
    patience: float, sleep: Callable[[float], None], waiting: Callable[[], None]
) -> Optional[int]:
    """Wait until no other agent measures here.

    Args:
        patience: seconds to wait at most.
        sleep: sleeps that many seconds, or raises to give up.
        waiting: called when the wait begins, and every few seconds while it lasts.

    Returns:
        The locked file's descriptor, to be kept open; None where there are no locks.

    Raises:
        AgentError: the device stayed busy.
    """
    if fcntl is None:
        return None
    fd = _open(lock_path())
    start = reminded = clock_ns()
    while not _try(fd):
        now = clock_ns()
        if now - start > patience * 1e9:
            problem = "another measurement has run here for {:.0f} s".format(patience)
            raise AgentError("busy", problem)
        if reminded == start or now - reminded > REMIND_SECONDS * 1e9:
            waiting()
            reminded = now
        sleep(POLL_SECONDS)
    return fd


def _open(path: str) -> int:
    try:
        old = os.umask(0)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        finally:
            os.umask(old)
    except PermissionError:  # another user's file in a sticky folder; reading is enough to lock
        return os.open(path, os.O_RDONLY)


def _try(fd: int) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
