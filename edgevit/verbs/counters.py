"""What counts instructions: valgrind on this machine's processor, qemu for one of arm64.

Both stand in for the interpreter that runs the agent, and log a line ``Collected : N``.

    callgrind   counts what this machine's own libraries execute; x86-64 and arm64 Linux
    qemu        counts an arm64 Python with its runtime, on a Cortex-A72: on an arm64 machine its
                own Python, elsewhere that of a folder with an arm64 system (``sysroot``)

qemu's program sees one processor described like its own: libraries that look up caches and cores
in /sys would otherwise find those of the machine under it, and count otherwise, or crash.
"""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Protocol

from devices.local import LocalDevice
from devices.profile import DeviceProfile, load_profile
from edgevit.errors import OptionError, UnavailableError, UnknownNameError

__all__ = ["COUNTERS", "Callgrind", "Counter", "Qemu", "find_counter"]

COUNTERS = ("callgrind", "qemu")
CPU = "cortex-a72"
#: Pythons of a sysroot, the first that is there.
PYTHONS = ("usr/bin/python3", "usr/local/bin/python3")
#: What a program under qemu reads of its processor, instead of what the machine under it is.
ONE_CPU = {
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
    "sys/devices/system/cpu/online": "0\n",
    "proc/cpuinfo": (
        "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        "CPU part\t: 0xd08\nCPU revision\t: 3\n"
    ),
}


class Counter(Protocol):
    """Something that counts the instructions of the agent."""

    @property
    def varies(self) -> int:
        """By how many instructions two runs of the agent differ that are alike."""
        ...

    @property
    def method(self) -> str:
        """What counts, with its version and for which processor."""
        ...

    @property
    def device(self) -> str:
        """The name that results have."""
        ...

    @property
    def emulated(self) -> bool:
        """Whether the processor is no real one."""
        ...

    @property
    def profile(self) -> DeviceProfile:
        """What it runs."""
        ...

    def interpreter(self, folder: Path) -> Path:
        """A program in that folder that is a Python which is counted, with its logs beside it."""
        ...


@dataclass(frozen=True)
class Callgrind:
    """Valgrind's counter on this machine.

    Args:
        varies: see :class:`Counter`. Five times ``edgevit count efficientvit_m0 --image-size 64
            --num-classes 10`` (100 inferences of 4.23 million), with other addresses (``setarch
            -R``), a larger environment and other OMP settings, while the machine was busy, gave
            counts that lie 44,000 an inference apart: 4.4 million of the run, 1.0 % of the count.
        device: likewise.
        emulated: likewise.

    Raises:
        UnavailableError: by ``method``, if it is not installed.
    """

    varies: int = 5_000_000
    device: str = "local"
    emulated: bool = False

    @property
    def method(self) -> str:
        """See :class:`Counter`."""
        program = shutil.which("valgrind")
        if program is None:
            raise UnavailableError(
                "instructions are counted by valgrind, which is not installed here",
                hint="sudo apt-get install valgrind; there is none for macOS on Apple silicon",
            )
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        return f"callgrind, {told.stdout.strip()}, {platform.machine()}"

    @property
    def profile(self) -> DeviceProfile:
        """See :class:`Counter`."""
        return LocalDevice().profile

    def interpreter(self, folder: Path) -> Path:
        """See :class:`Counter`."""
        return _script(
            folder,
            ["valgrind", "--tool=callgrind", f"--log-file={folder}/log.%p",
             f"--callgrind-out-file={folder}/out.%p", sys.executable],
        )  # fmt: skip


@dataclass(frozen=True)
class Qemu:
    """qemu's user-mode emulator of a Cortex-A72, with a plugin that counts.

    Args:
        sysroot: folder of an arm64 system with Python, numpy and the runtime; None on arm64, where
            this interpreter runs.
        varies: see :class:`Counter`. Starts alone were seen to differ by 0.3 million; it is
            valgrind's until more is known.
        device: likewise.
        emulated: likewise.

    Raises:
        OptionError: there is no Python in the folder.
        UnavailableError: qemu, its plugins or a compiler are not installed, or no sysroot is given
            on a machine that is not arm64.
    """

    sysroot: Path | None = None
    varies: int = 5_000_000
    device: str = f"qemu-{CPU}"
    emulated: bool = True

    def __post_init__(self) -> None:
        if self.sysroot is None and platform.machine() not in ("aarch64", "arm64"):
            raise UnavailableError(
                f"qemu needs an arm64 Python, and this machine is {platform.machine()}",
                hint="--sysroot FOLDER: an arm64 system (mmdebstrap makes one) with Python, numpy "
                "and onnxruntime; or count with callgrind",
            )
        self._python()

    @property
    def method(self) -> str:
        """See :class:`Counter`."""
        return f"qemu, {self._version()}, {CPU}"

    @property
    def profile(self) -> DeviceProfile:
        """See :class:`Counter`."""
        return load_profile("generic-arm64")

    def interpreter(self, folder: Path) -> Path:
        """See :class:`Counter`."""
        plugin = self._plugin(folder)
        command = [_qemu(), "-cpu", CPU, "-L", str(self._seen(folder)), "-plugin", str(plugin),
                   "-d", "plugin", "-D", f"{folder}/log.%d", str(self._python())]  # fmt: skip
        return _script(folder, command)

    def _python(self) -> Path:
        if self.sysroot is None:
            return Path(sys.executable)
        for name in PYTHONS:
            if (self.sysroot / name).exists():
                return (self.sysroot / name).absolute()
        expected = f"a folder of an arm64 system, with {' or '.join(PYTHONS)}"
        raise OptionError("--sysroot", expected=expected, got=str(self.sysroot))

    def _version(self) -> str:
        told = subprocess.run([_qemu(), "--version"], capture_output=True, text=True, check=True)
        found = re.search(r"version (\d\S*)", told.stdout)
        return found[1] if found else "of unknown version"

    def _plugin(self, folder: Path) -> Path:
        """The plugin, compiled there."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise UnavailableError(
                "qemu's counter is a plugin in C, and there is no compiler here",
                hint="sudo apt-get install gcc libc6-dev",
            )
        major = re.match(r"\d+", self._version())
        api = 2 if major and int(major[0]) >= 9 else 1
        made = folder / "count.so"
        with as_file(files("edgevit") / "data" / "count_instructions.c") as source:
            command = [compiler, "-shared", "-fPIC", "-O2", f"-DAPI={api}", "-o", str(made)]
            done = subprocess.run([*command, str(source)], capture_output=True, text=True)
        if done.returncode:
            raise UnavailableError(f"qemu's counter was not compiled: {done.stderr.strip()[-300:]}")
        return made

    def _seen(self, folder: Path) -> Path:
        """The system that the program sees: the sysroot's folders, and one processor."""
        seen = folder / "seen"
        for name, text in ONE_CPU.items():
            place = seen / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        for entry in self.sysroot.absolute().iterdir() if self.sysroot else ():
            if entry.name not in ("sys", "proc", "dev", "tmp"):
                (seen / entry.name).symlink_to(entry)
        return seen


def find_counter(name: str | None, sysroot: Path | None) -> Counter:
    """The counter of that name; without one, qemu if there is a sysroot, else callgrind.

    Args:
        name: one of :data:`COUNTERS`.
        sysroot: of qemu.

    Raises:
        UnknownNameError: there is none of that name.
        OptionError: callgrind and a sysroot do not go together, or the sysroot is none.
        UnavailableError: it cannot count here.
    """
    chosen = name or ("qemu" if sysroot is not None else "callgrind")
    if chosen not in COUNTERS:
        raise UnknownNameError("counter", chosen, COUNTERS)
    if chosen == "qemu":
        return Qemu(sysroot)
    if sysroot is not None:
        raise OptionError("--sysroot", expected="--counter qemu with it", got="callgrind")
    return Callgrind()


def _qemu() -> str:
    """The dynamic emulator: static ones load no plugin."""
    program = shutil.which("qemu-aarch64")
    if program is None:
        raise UnavailableError(
            "qemu's user-mode emulator of arm64 is not installed here",
            hint="sudo apt-get install --no-install-recommends qemu-user; qemu-user-static loads "
            "no plugins",
        )
    return program


def _script(folder: Path, command: Sequence[str]) -> Path:
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o755)
    return script
