"""What a board is before anything is brought there. Arguments: the folder of edgevit there."""

import json
import os
import platform
import shutil
import sys
import tempfile
import time


def has(module: str) -> bool:
    """Whether it can be imported."""
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def libc() -> str:
    """Such as ``glibc 2.36``; an old ``platform.libc_ver`` tells what Python was built for."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError, AttributeError):
        return ""


def free_bytes(folder: str) -> int:
    """Room where the folder is, or will be."""
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free


def holder() -> "object":
    """What the agent that holds this machine's lock wrote there; null if nobody holds it."""
    try:
        import fcntl

        with open(os.path.join(tempfile.gettempdir(), "edgevit-agent.lock")) as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                return json.loads(stream.read() or "{}")
    except ValueError:
        return {}
    except (ImportError, OSError):
        return None


def main() -> None:
    """Print it."""
    name, _, version = libc().partition(" ")
    told = {
        "python": list(sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "executable": sys.executable,
        "system": platform.system(),
        "release": platform.mac_ver()[0] or platform.release(),
        "machine": platform.machine(),
        "libc": name,
        "libc_version": version,
        "venv": has("venv"),
        "free_bytes": free_bytes(sys.argv[1]),
        "holder": holder(),
        "time": time.time(),
    }
    print(json.dumps(told))


main()
