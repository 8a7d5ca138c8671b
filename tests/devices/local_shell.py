"""A board's shell that is this machine, with a home of its own; nothing is remote about it.

And wheels of nothing, with the real pip to install them.
"""

import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgevit.errors import DeviceError


@dataclass(frozen=True)
class Ended:
    status: int
    stdout: bytes
    stderr: bytes


@dataclass
class LocalShell:
    """Runs commands here. ``before`` is called with every command, and may break it off.

    ``path`` replaces PATH; ``answers`` gives answers in place of commands, by their first word.
    """

    home: str
    before: Callable[[Sequence[str]], None] = lambda argv: None
    path: str | None = None
    answers: dict[str, Ended] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)

    def execute(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout_s: float = 60,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        self.before(argv)
        self.commands.append(list(argv))
        if argv[0] in self.answers:
            return self.answers[argv[0]]
        variables = {**os.environ, **(environment or {})}
        if self.path is not None:
            variables["PATH"] = self.path
        try:
            done = subprocess.run(
                list(argv), input=input, capture_output=True, timeout=timeout_s, env=variables,
                check=False,
            )  # fmt: skip
        except FileNotFoundError as error:
            return Ended(127, b"", str(error).encode())
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{argv[0]} did not end in {timeout_s:g} s") from error
        return Ended(done.returncode, done.stdout, done.stderr)

    def put(self, local: Path, remote: str) -> None:
        self.before(["put", remote])
        assert remote.startswith(f"{self.home}/"), "never outside its folder"
        shutil.copyfile(local, remote)
        self.sent.append(Path(remote).name)


def board(**changes: Any) -> Any:
    """A Raspberry Pi 4 of Debian 12, or what differs from it."""
    from devices.remote import Board

    values: dict[str, Any] = {
        "python": (3, 11, 2), "implementation": "cpython", "bits": 64,
        "executable": "/usr/bin/python3", "system": "Linux", "release": "6.1.0",
        "machine": "aarch64", "libc": "glibc", "libc_version": "2.36", "venv": True,
        "free_bytes": 10 * 2**30, "holder": None, "time": 0.0,
    }  # fmt: skip
    return Board(**{**values, **changes})


def make_wheel(folder: Path, name: str, *needs: str) -> Path:
    """A wheel of one empty module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {
        f"{name}.py": f"'''{name}'''\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


def real_pip() -> Path:
    """The wheel of pip that every Python carries."""
    import ensurepip

    folder = Path(ensurepip.__file__).parent / "_bundled"
    (found,) = folder.glob("pip-*.whl")
    return found
