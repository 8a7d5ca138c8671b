"""Names to things, through entry points: how exporters, devices, models and blocks are found.

A registry knows its names from the installed metadata alone; the module behind a name is imported
when somebody asks for that name, so listing stays instant. Reading the metadata of everything that
is installed takes longer than the rest of a listing, so what was found is kept in the user's cache
until one of the folders on the import path changes.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from edgevit.errors import UnknownNameError

__all__ = ["PluginRegistry", "entry_points", "load_object", "match_names"]

T = TypeVar("T")

GROUPS = tuple(f"edgevit.{what}" for what in ("models", "blocks", "exporters", "devices"))


def match_names(names: Iterable[str], pattern: str | Iterable[str] | None) -> list[str]:
    """Sorted names that match one of the shell-style patterns; all of them without a pattern."""
    if pattern is None:
        return sorted(names)
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    return sorted(n for n in names if any(fnmatch.fnmatchcase(n, p.lower()) for p in patterns))


def entry_points(group: str) -> Mapping[str, str]:
    """``module`` or ``module:attribute`` by name, of one of our entry-point groups."""
    found: Mapping[str, str] = _all_entry_points()[group]
    return found


def load_object(path: str) -> Any:
    """The module, or the attribute of it, that an entry point names."""
    module, _, attribute = path.partition(":")
    target: Any = importlib.import_module(module)
    return getattr(target, attribute) if attribute else target


@lru_cache(maxsize=1)
def _all_entry_points() -> dict[str, dict[str, str]]:
    file = _cache_file()
    with contextlib.suppress(OSError, ValueError):
        cached = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(cached, dict) and cached.keys() == set(GROUPS):
            return cached
    found = _read_metadata()
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(file)
    return found


def _read_metadata() -> dict[str, dict[str, str]]:
    from importlib import metadata

    return {
        group: {point.name: point.value for point in metadata.entry_points(group=group)}
        for group in GROUPS
    }


def _cache_file() -> Path:
    """Named by what decides the answer: the interpreter and the state of its import path."""
    from platformdirs import user_cache_path

    state = [sys.version, *GROUPS]
    for place in sys.path:
        with contextlib.suppress(OSError):
            state += [place, str(Path(place).stat().st_mtime_ns)]
    name = hashlib.sha256("\0".join(state).encode()).hexdigest()[:24]
    return user_cache_path("edgevit") / "plugins" / f"{name}.json"


class PluginRegistry(Generic[T]):
    """Plugins of one entry-point group, loaded and instantiated on first use.

    Args:
        kind: what a plugin is, in the singular, for error messages (``"format"``).
        group: the entry-point group (``"edgevit.exporters"``).
        listing: the command that lists the plugins, for error messages.
    """

    def __init__(self, kind: str, group: str, *, listing: str | None = None) -> None:
        self.kind, self.group, self.listing = kind, group, listing
        self._loaded: dict[str, T] = {}

    @cached_property
    def _paths(self) -> Mapping[str, str]:
        return entry_points(self.group)

    def names(self, pattern: str | None = None) -> list[str]:
        """Sorted names of the plugins, without importing any."""
        return match_names(self._paths, pattern)

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def get(self, name: str) -> T:
        """The plugin of that name.

        Raises:
            UnknownNameError: no plugin has that name.
        """
        if name not in self._loaded:
            if name not in self:
                raise UnknownNameError(self.kind, name, self.names(), listing=self.listing)
            self._loaded[name] = load_object(self._paths[name])()
        return self._loaded[name]
