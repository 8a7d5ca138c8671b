"""What setting a board up and looking it over need of a session: commands, files, a folder.

``devices.board`` holds the programs that the board's own Python runs for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from platformdirs import user_cache_path

from devices.line import ending_of
from edgevit.errors import DeviceError

__all__ = [
    "ENCODING",
    "Board",
    "Completed",
    "RemoteShell",
    "ThisMachine",
    "ask",
    "last_line",
    "look",
    "run_script",
]

#: Python 3.6 takes the encoding of its streams from the locale, which SSH may leave as ASCII.
ENCODING = {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8"}
NOT_FOUND = 127


class Completed(Protocol):
    """A command that ended."""

    @property
    def status(self) -> int:
        """Its exit status; negative, or 128 and more, if a signal ended it."""
        ...

    @property
    def stdout(self) -> bytes:
        """What it printed."""
        ...

    @property
    def stderr(self) -> bytes:
        """What it said besides."""
        ...


class RemoteShell(Protocol):
    """A session that runs commands and takes files; every word of a command arrives as it is."""

    @property
    def home(self) -> str:
        """Edgevit's folder on the board, absolute. Nothing is written outside it."""
        ...

    def execute(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout_s: float = 60,
        environment: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command to its end.

        Raises:
            DeviceError: the board is gone, or the command did not end in time.
        """
        ...

    def put(self, local: Path, remote: str) -> None:
        """Bring a file to the board.

        Raises:
            DeviceError: the board is gone, or its disk is full.
        """
        ...


class ThisMachine:
    """The shell of this machine, to look it over as if it were a board."""

    @property
    def home(self) -> str:
        """See :class:`RemoteShell`."""
        return str(user_cache_path("edgevit"))

    def execute(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout_s: float = 60,
        environment: Mapping[str, str] | None = None,
    ) -> Completed:
        """See :class:`RemoteShell`."""
        try:
            done = subprocess.run(
                list(argv), input=input, capture_output=True, timeout=timeout_s, check=False,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        except FileNotFoundError as error:
            return _Ended(NOT_FOUND, b"", str(error).encode())
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeviceError(f"cannot run {argv[0]} here: {error}") from error
        return _Ended(done.returncode, done.stdout, done.stderr)

    def put(self, local: Path, remote: str) -> None:
        """See :class:`RemoteShell`."""
        shutil.copyfile(local, remote)


@dataclass(frozen=True)
class _Ended:
    status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class Board:
    """What a board tells before anything was brought there.

    Args:
        python: major, minor, micro.
        implementation: ``"cpython"``, ...
        bits: of that Python, 64 or 32.
        executable: that Python, absolute.
        system: ``"Linux"``, ``"Darwin"``.
        release: of the kernel, or of macOS.
        machine: ``"aarch64"``, ``"arm64"``, ``"x86_64"``, ...
        libc: ``"glibc"``, or empty.
        libc_version: of it.
        venv: whether that Python can make environments.
        free_bytes: room where edgevit's folder is.
        holder: who measures there now, as far as is known (``user``, ``command``, ``since``); None
            if nobody does.
        time: its clock, seconds since 1970.
    """

    python: tuple[int, int, int]
    implementation: str
    bits: int
    executable: str
    system: str
    release: str
    machine: str
    libc: str
    libc_version: str
    venv: bool
    free_bytes: int
    holder: Mapping[str, Any] | None
    time: float

    @property
    def python_version(self) -> str:
        """``"3.11.2"``."""
        return ".".join(map(str, self.python))

    @property
    def busy(self) -> str | None:
        """Who measures there now, in words; None if nobody does."""
        told = self.holder
        if told is None:
            return None
        who = f" by {told['user']}: `{told.get('command')}`" if told.get("user") else ""
        since = f", since {told['since']} by its clock" if told.get("since") else ""
        return f"a measurement runs there{who}{since}"


def look(shell: RemoteShell, python: str = "python3") -> Board:
    """See what the board is.

    Args:
        shell: an open session.
        python: the interpreter to ask, and to ask about.

    Raises:
        DeviceError: there is no such Python, or it is too old for anything.
    """
    told = ask(shell, python, "look", shell.home)
    board = Board(**{**told, "python": tuple(told["python"])})
    if board.python < (3, 6):
        raise _too_old(python, board.python_version)
    return board


def _too_old(python: str, version: str) -> DeviceError:
    return DeviceError(
        f"{python} on the board is Python {version}; the agent needs 3.6",
        hint="install a newer one there and name it with --python",
    )


def run_script(
    shell: RemoteShell,
    python: str,
    script: str,
    *arguments: str,
    data: object = None,
    timeout_s: float = 120,
    environment: Mapping[str, str] | None = None,
) -> Completed:
    """Run a program of ``devices.board`` with that Python; its stdin brings ``data`` as JSON."""
    source = (files("devices") / "board" / f"{script}.py").read_text(encoding="utf-8")
    return shell.execute(
        [python, "-c", source, *arguments],
        input=json.dumps(data).encode(),
        timeout_s=timeout_s,
        environment={**ENCODING, **(environment or {})},
    )


def ask(shell: RemoteShell, python: str, script: str, *arguments: str, data: object = None) -> Any:
    """What such a program prints, as JSON.

    Raises:
        DeviceError: there is no such Python, or the program failed.
    """
    done = run_script(shell, python, script, *arguments, data=data)
    if done.status == NOT_FOUND:
        raise DeviceError(
            f"there is no {python} on the board",
            hint="`sudo apt install python3` there, or name another with --python",
        )
    if done.status and b"SyntaxError" in done.stderr:
        version = shell.execute([python, "-c", "import sys; print(sys.version.split()[0])"])
        raise _too_old(python, last_line(version.stdout))
    if done.status:
        raise DeviceError(
            f"{python} on the board {ending_of(done.status)}: {last_line(done.stderr)}"
        )
    try:
        # A login shell may greet first.
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stdout.decode("utf-8", "replace").strip()[-200:]
        raise DeviceError(f"{python} on the board answered {said!r}, not JSON") from None


def last_line(output: bytes) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")
