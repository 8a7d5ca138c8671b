"""One measurement at a time on a device, whoever started it.

The lock is held on a file in the device's temporary folder and goes with the process, however that
ends. The file says who holds it. That is for readers alone: what a dead holder left there is not
believed, and a lock that nobody holds is free whatever the file says.
"""

import json
import os
import tempfile
import time
from types import ModuleType
from typing import Any, Callable, Dict, Optional

from . import system
from .clock import clock_ns
from .errors import AgentError

fcntl: Optional[ModuleType] = None
try:
    import fcntl
except ImportError:  # not a Unix: there is no lock
    pass

POLL_SECONDS = 0.25
REMIND_SECONDS = 10.0
#: More than any holder writes.
MOST_BYTES = 1 << 16


def lock_path() -> str:
    """The file that is locked."""
    return os.path.join(tempfile.gettempdir(), "edgevit-agent.lock")


def acquire(
    patience: float,
    sleep: Callable[[float], None],
    waiting: Callable[[Dict[str, Any]], None],
    who: Optional[Dict[str, Any]] = None,
) -> Optional[int]:
    """Wait until no other agent measures here.

    Args:
        patience: seconds to wait at most.
        sleep: sleeps that many seconds, or raises to give up.
        waiting: called with the holder when the wait begins, and every few seconds while it lasts.
        who: the host's ``user``, ``pid`` and ``command``, for others to read.

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
            problem = "{}; waited {:.0f} s for its end".format(describe(holder(fd)), patience)
            raise AgentError("busy", problem)
        if reminded == start or now - reminded > REMIND_SECONDS * 1e9:
            waiting(holder(fd))
            reminded = now
        sleep(POLL_SECONDS)
    _sign(fd, who or {})
    return fd


def holder(fd: int) -> Dict[str, Any]:
    """Who holds the lock, as far as a living process says so; empty if nobody knows.

    Fields: ``user`` and ``pid`` of the host's end, its ``command``, ``since`` (by this machine's
    clock), ``seconds`` held so far, ``agent_pid``.
    """
    try:
        told = json.loads(os.pread(fd, MOST_BYTES, 0).decode("utf-8"))
        pid, started, at = told["agent_pid"], told.pop("started"), told.pop("at")
        if started != _started(pid):  # it died, and its number may be another's
            return {}
        told["seconds"] = max(0.0, time.monotonic() - at)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return dict(told)


def describe(told: Dict[str, Any]) -> str:
    """The holder as a sentence."""
    if not told:
        return "another measurement runs on this device"
    text = "another measurement has run on this device for {}, since {}".format(
        _duration(told["seconds"]), told.get("since")
    )
    if not told.get("user"):
        return "{} (agent {})".format(text, told["agent_pid"])
    return "{}: `{}` of {}, process {} there".format(
        text, told.get("command"), told["user"], told.get("pid")
    )


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    if not minutes:
        return "{:.0f} s".format(seconds)
    return "{} min".format(minutes) if minutes < 120 else "{} h".format(minutes // 60)


def _sign(fd: int, who: Dict[str, Any]) -> None:
    """Write down who we are; a full disk or another's file does not keep us from measuring."""
    pid = os.getpid()
    told = {name: who.get(name) for name in ("user", "pid", "command")}
    told.update(
        agent_pid=pid,
        started=_started(pid),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        at=time.monotonic(),
    )
    try:
        if os.fstat(fd).st_nlink != 1:  # somebody made it another name of a file of ours
            return
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(told).encode("utf-8"), 0)
    except OSError:
        pass


def _started(pid: int) -> Optional[str]:
    """When a process began, as its system tells it; None if it is no more."""
    try:
        with open("/proc/{}/stat".format(int(pid)), "rb") as stream:
            # The name may hold anything, but no field after it holds a parenthesis.
            fields = stream.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, IndexError):
        if os.path.exists("/proc/self/stat"):
            return None
    return system.run(["ps", "-o", "lstart=", "-p", str(int(pid))]) or None


def _open(path: str) -> int:
    problem: Optional[OSError] = None
    for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            return _open_for_all(path, flags)
        # Another user's file in a sticky folder: systems may refuse to open it to be created.
        except OSError as error:  # noqa: PERF203
            problem = error
    raise AgentError("busy", "cannot lock {}: {}".format(path, problem))


def _open_for_all(path: str, flags: int) -> int:
    old = os.umask(0)
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    finally:
        os.umask(old)


def _try(fd: int) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
