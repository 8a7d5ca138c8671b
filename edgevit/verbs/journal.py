"""How a bench that was cut short goes on: what is done stands in a file beside its results.

A journal belongs to one set of measurements, told apart by everything that decides them (files,
devices, threads, batch, schedule, seed). A measurement is *settled* when nothing is to be gained by
doing it again: measured, or found wrong. One that was stopped, or whose device went away, is not.
When all are settled the journal goes, and the same command starts anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgevit.errors import EdgevitError, OutputError
from edgevit.measure.results import Result, write_atomically

__all__ = ["Journal", "digest"]

VERSION = 1


def digest(parts: Any) -> str:
    """A short name for whatever JSON can hold."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Journal:
    """What one bench has settled.

    Args:
        file: where it is kept; None keeps nothing.
        keys: of all that is to be measured.
        started: UTC time of the first start, ISO 8601.
        settled: names of result files in the same folder, by key.
    """

    file: Path | None
    keys: tuple[str, ...]
    started: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat())
    settled: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, keys: Iterable[str], *, fresh: bool = False) -> Journal:
        """The journal of these measurements in a folder, as an unfinished bench left it, or new.

        Args:
            folder: of the results; None keeps nothing.
            keys: what decides each measurement, in one word.
            fresh: forget what an unfinished bench left.
        """
        own = tuple(keys)
        if folder is None:
            return cls(None, own)
        file = folder / f".bench-{digest(sorted(own))}.journal"
        if fresh:
            file.unlink(missing_ok=True)
        found = _read(file)
        if found is None:
            return cls(file, own)
        settled = {key: name for key, name in found["settled"].items() if key in own}
        return cls(file, own, found["started"], settled)

    def result(self, key: str, protocol: Mapping[str, Any]) -> Result | None:
        """The result that settled a measurement; None if there is none, or it is gone.

        Args:
            key: of the measurement.
            protocol: that the result has to follow; a later bench may have written over it.
        """
        name = self.settled.get(key)
        if name is None or self.file is None:
            return None
        with contextlib.suppress(EdgevitError):
            found = Result.read(self.file.with_name(name))
            if dict(found.protocol) == dict(protocol):
                return found
        return None

    def settle(self, key: str, written: Path) -> None:
        """Note that a measurement is done; its result is on disk already.

        Raises:
            OutputError: the disk refuses.
        """
        self.settled[key] = written.name
        if self.file is None:
            return
        text = json.dumps({"version": VERSION, "started": self.started, "settled": self.settled})
        try:
            write_atomically(self.file, text)
        except OSError as error:
            raise OutputError(f"cannot write {self.file}: {error.strerror}") from error

    def finish(self) -> None:
        """Remove the file if nothing is left to be done."""
        if self.file is not None and self.settled.keys() >= set(self.keys):
            self.file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[Journal]:
        """Keep the same bench from running twice at a time into the same folder.

        Raises:
            OutputError: it runs already.
        """
        from filelock import FileLock, Timeout
        from platformdirs import user_cache_path

        if self.file is None:
            yield self
            return
        # The lock lives in the cache, so that nothing is left beside the results.
        locks = user_cache_path("edgevit") / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"bench-{digest(str(self.file.resolve()))}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"this very bench is running already, into {self.file.parent}",
                hint="wait for it, or choose another -o",
            ) from None
        try:
            yield self
        finally:
            lock.release()


def _read(file: Path) -> dict[str, Any] | None:
    """The content of a journal; None if there is none, or it is damaged or of another version."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        return None
    settled = found.get("settled")
    whole = isinstance(found.get("started"), str) and isinstance(settled, dict)
    return found if whole else None
