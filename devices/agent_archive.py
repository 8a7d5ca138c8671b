"""The agent as the one file that travels: a zip archive that Python runs.

The same sources give the same bytes, on every machine, so its hash names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

from platformdirs import user_cache_path

from edgevit.errors import OutputError

__all__ = ["agent_archive", "archive_bytes", "archive_name"]

SOURCES = Path(__file__).with_name("agent")
PACKAGE = "edgevit_agent"
TIMESTAMP = (1980, 1, 1, 0, 0, 0)

# Any Python can read this much, and say that it is too old.
MAIN = f"""\
import sys

if sys.version_info < (3, 6):
    sys.exit("the agent needs Python 3.6, this is " + sys.version.split()[0])

from {PACKAGE}.main import main

main()
"""


@lru_cache(maxsize=1)
def archive_bytes() -> bytes:
    """The archive: stored, sorted, every entry of the same time and mode."""
    content = {"__main__.py": MAIN.encode()}
    content |= {f"{PACKAGE}/{name}": data for name, data in _sources().items()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, TIMESTAMP)
            entry.create_system = 3  # Unix, wherever it is made
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content[name])
    return stream.getvalue()


def archive_name() -> str:
    """``agent-<hash>.pyz``."""
    return f"agent-{hashlib.sha256(archive_bytes()).hexdigest()[:16]}.pyz"


def agent_archive() -> Path:
    """The archive on this machine's disk, in the user's cache.

    Raises:
        OutputError: the cache cannot be written.
    """
    folder = user_cache_path("edgevit") / "agent"
    path, data = folder / archive_name(), archive_bytes()
    try:
        if not path.is_file() or path.read_bytes() != data:
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, data)
    except OSError as error:
        raise OutputError(
            f"cannot write the agent to {path}: {(error.strerror or str(error)).lower()}",
            hint="make the folder writable, or point XDG_CACHE_HOME to one that is",
        ) from error
    return path


def _write(path: Path, data: bytes) -> None:
    """Write beside the place and rename, so that nobody runs half a file."""
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(partial).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(partial).unlink()
        raise


def _sources() -> dict[str, bytes]:
    # A checkout may have other line ends; the bytes must not depend on that.
    return {
        file.relative_to(SOURCES).as_posix(): file.read_bytes().replace(b"\r\n", b"\n")
        for file in SOURCES.rglob("*.py")
    }
