"""Which of several hosts answer, asked all at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from devices.hosts import Host
from devices.resolve import device_of
from edgevit.errors import EdgevitError

__all__ = ["State", "probe"]


@dataclass(frozen=True)
class State:
    """Whether a host answers.

    Args:
        reachable: a session could be opened; None if nobody looked.
        seconds: that it took.
        reason: why not.
        hint: what to do.
    """

    reachable: bool | None = None
    seconds: float | None = None
    reason: str | None = None
    hint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return asdict(self)


def probe(hosts: Iterable[Host], *, timeout_s: float = 5.0) -> dict[str, State]:
    """Open and close a session with each host at the same time.

    Args:
        hosts: whom to ask.
        timeout_s: how long to wait for all of them; who has not answered by then counts as silent.
    """
    states: dict[str, State] = {}
    threads = {}
    for host in hosts:
        # A thread that hangs must not keep the process.
        threads[host.name] = threading.Thread(target=_ask, args=(host, states), daemon=True)
        threads[host.name].start()
    end = time.monotonic() + timeout_s
    for thread in threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    silent = State(False, reason=f"no answer in {timeout_s:g} s")
    return {name: states.get(name, silent) for name in threads}


def _ask(host: Host, states: dict[str, State]) -> None:
    start = time.monotonic()
    try:
        session = device_of(host).open()
        state = State(True, seconds=time.monotonic() - start)
        states[host.name] = state
        session.close()
    except EdgevitError as error:
        states.setdefault(host.name, State(False, reason=error.message, hint=error.hint))
    except Exception as error:  # a thread has nobody to tell
        states.setdefault(host.name, State(False, reason=f"{type(error).__name__}: {error}"))
