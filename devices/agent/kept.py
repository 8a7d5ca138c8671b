"""What is made of a file once and used again: compiled Core ML models, TensorRT engines.

They lie under the user's cache, named by everything that they depend on. What is made takes its
place in one step, so that nobody loads half of it; the oldest go when there are many.
"""

import contextlib
import hashlib
import os
import shutil
from typing import Any, Callable, Optional, Sequence, Tuple

from .clock import clock_ns

#: How many of a kind are kept.
MOST = 32


def cache_folder(kind: str) -> str:
    """Where things of a kind are kept; made if it is not there."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(base, "edgevit", kind)
    os.makedirs(folder, exist_ok=True)
    return folder


def keep(
    kind: str, key: Sequence[Any], suffix: str, make: Callable[[str], None]
) -> Tuple[str, Optional[int]]:
    """The path of what ``make(path)`` makes, made only if it is not there yet.

    Args:
        kind: names its folder.
        key: everything that it depends on.
        suffix: ends its name.
        make: makes it, a file or a folder, at the path that it is given.

    Returns:
        The path, and the ns that making it took; None if it was there.
    """
    folder = cache_folder(kind)
    name = hashlib.sha256(repr(list(key)).encode("utf-8")).hexdigest()[:24] + suffix
    path = os.path.join(folder, name)
    if os.path.exists(path):
        os.utime(path, None)
        return path, None
    partial = os.path.join(folder, ".{}-{}".format(os.getpid(), name))
    try:
        start = clock_ns()
        make(partial)
        elapsed = clock_ns() - start
        with contextlib.suppress(OSError):  # another process was quicker, and made the same
            os.rename(partial, path)
    finally:
        remove(partial)
    _forget_oldest(folder)
    return path, elapsed


def remove(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.remove(path)


def _forget_oldest(folder: str) -> None:
    paths = [os.path.join(folder, name) for name in os.listdir(folder) if name[0] != "."]
    dated = sorted((os.path.getmtime(path), path) for path in paths if os.path.exists(path))
    for _, path in dated[:-MOST]:
        remove(path)
