"""Programs that the agent runs: they never outlive it."""

import ctypes
import signal
import subprocess
import sys
import tempfile
from typing import Any, Callable, List, Sequence, Tuple

PULSE_SECONDS = 0.25
PR_SET_PDEATHSIG = 1


def run_child(command: Sequence[str], pulse: Callable[[], None]) -> Tuple[int, str]:
    """Run a program to its end.

    Args:
        command: what to run.
        pulse: called again and again while it runs; if it raises, the program is killed.

    Returns:
        Exit status (negative: the signal that ended it), and what it said on stdout and stderr.
    """
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent(),
        )
        try:
            status = _wait(child, pulse)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        said.seek(0)
        return status, said.read().decode("utf-8", "replace")


def last_lines(text: str, count: int = 12) -> str:
    """The end of what a program said."""
    lines: List[str] = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-count:])


def _wait(child: Any, pulse: Callable[[], None]) -> int:
    while True:
        try:
            return int(child.wait(PULSE_SECONDS))
        except subprocess.TimeoutExpired:  # noqa: PERF203
            pulse()


def _die_with_parent() -> Any:
    """For Linux: the kernel kills the child when this process ends, however that comes."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
