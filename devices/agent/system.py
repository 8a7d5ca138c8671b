"""Files and commands of the machine, any of which may be absent.

``EDGEVIT_SYSROOT`` moves the root that they are looked for under.
"""

import glob
import os
import re
import shutil
import subprocess
from typing import Any, Dict, List, Optional, Sequence

COMMAND_SECONDS = 5


def sysroot() -> str:
    """Where the machine's files are: normally nothing in front of them."""
    return os.environ.get("EDGEVIT_SYSROOT", "").rstrip("/")


def read(path: str) -> Optional[str]:
    """A small text file without white space and NULs at its ends; None if it cannot be read."""
    try:
        with open(sysroot() + path, "rb") as stream:
            return stream.read().decode("utf-8", "replace").strip("\0 \n\t")
    except OSError:
        return None


def link(path: str) -> Optional[str]:
    """Where a symbolic link leads; None if there is none."""
    try:
        return os.readlink(sysroot() + path)
    except OSError:
        return None


def read_int(path: str) -> Optional[int]:
    """A file that holds one whole number; None if it does not."""
    text = read(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def find(pattern: str) -> List[str]:
    """Paths that match a shell-style pattern, without the sysroot, in natural order."""
    root = sysroot()
    return sorted((path[len(root) :] for path in glob.glob(root + pattern)), key=_natural)


def which(name: str) -> Optional[str]:
    """The path of a command."""
    root = sysroot()
    path = os.pathsep.join(root + p for p in ("/usr/bin", "/bin", "/usr/sbin")) if root else None
    return shutil.which(name, path=path)


def run(command: Sequence[str]) -> Optional[str]:
    """What a command prints; None if it is absent, fails or does not end."""
    program = which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program] + list(command[1:]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()


def key_values(text: Optional[str], separator: str) -> Dict[str, str]:
    """Lines of ``key separator value`` as a dict; the first of equal keys counts."""
    pairs: Dict[str, str] = {}
    for line in (text or "").splitlines():
        key, found, value = line.partition(separator)
        if found:
            pairs.setdefault(key.strip(), value.strip())
    return pairs


def _natural(path: str) -> List[Any]:
    """Sort key that puts cpu2 before cpu10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
