"""This machine as a device: the agent in a child process."""

from __future__ import annotations

import platform
import sys
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from devices.agent_archive import agent_archive
from devices.agent_process import AgentProcess, read_facts
from devices.base import SILENCE_S, Event, Job, thread_environment
from devices.line import ChildLine
from devices.profile import DeviceProfile, list_profiles, load_profile

__all__ = ["LocalDevice", "LocalSession"]

#: What ``platform.machine()`` calls the architectures of the generic profiles.
ARCHITECTURES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}


class LocalDevice:
    """The machine that edgevit runs on.

    Args:
        python: the interpreter that runs the agent; this one by default.
        environment: variables for the agent, on top of those of this process.
    """

    name = "local"
    emulated = False

    def __init__(
        self, *, python: str | Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._python = str(python or sys.executable)
        self._environment = dict(environment or {})

    @property
    def profile(self) -> DeviceProfile:
        """The generic profile of this machine's architecture."""
        machine = platform.machine().lower()
        arch = ARCHITECTURES.get(machine, machine)
        name = f"generic-{arch}"
        if name in list_profiles():
            return load_profile(name)
        return DeviceProfile(name=name, title=f"{arch} computer", arch=arch)

    def open(self) -> LocalSession:
        """A session; nothing is started before its first job."""
        return LocalSession(self._python, {**self.profile.environment, **self._environment})


class LocalSession:
    """Jobs in child processes of this one, one after another."""

    def __init__(self, python: str, environment: Mapping[str, str]) -> None:
        self._python = python
        self._environment = environment
        self._process: AgentProcess | None = None

    def __enter__(self) -> LocalSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def facts(self) -> dict[str, Any]:
        """See :meth:`devices.base.Session.facts`."""
        hint = f"does `{self._python} --version` say Python 3.6 or newer?"
        return read_facts(self.run(Job("facts"), silence_s=60), where="here", hint=hint)

    def push(self, folder: Path, parts: Iterable[str] | None = None) -> str:
        """The folder itself: it is here already."""
        return str(folder.resolve())

    def run(self, job: Job, *, silence_s: float = SILENCE_S) -> Generator[Event, None, None]:
        """See :meth:`devices.base.Session.run`."""
        self.close()
        line = ChildLine(
            [self._python, "-u", str(agent_archive())],
            environment={**thread_environment(job.threads), **self._environment},
            where="local",
        )
        self._process = AgentProcess(line, where="local")
        return self._process.run(job, silence_s=silence_s)

    def stop(self) -> None:
        """See :meth:`devices.base.Session.stop`."""
        if self._process is not None:
            self._process.stop()

    def close(self) -> None:
        """End the agent if one runs."""
        if self._process is not None:
            self._process.end()
            self._process = None
