"""Names to things, through entry points: how exporters, devices, models and blocks are found.

A registry knows its names from the installed metadata alone; the module behind a name is imported
when somebody asks for that name, so listing stays instant.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from edgevit.errors import UnknownNameError

__all__ = ["PluginRegistry", "match_names"]

T = TypeVar("T")


def match_names(names: Iterable[str], pattern: str | Iterable[str] | None) -> list[str]:
    """Sorted names that match one of the shell-style patterns; all of them without a pattern."""
    if pattern is None:
        return sorted(names)
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    return sorted(n for n in names if any(fnmatch.fnmatchcase(n, p.lower()) for p in patterns))


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
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def names(self, pattern: str | None = None) -> list[str]:
        """Sorted names of the plugins, without importing any."""
        return match_names(self._entry_points, pattern)

    def __contains__(self, name: object) -> bool:
        return name in self._entry_points

    def get(self, name: str) -> T:
        """The plugin of that name.

        Raises:
            UnknownNameError: no plugin has that name.
        """
        if name not in self._loaded:
            point = self._entry_points.get(name)
            if point is None:
                raise UnknownNameError(self.kind, name, self.names(), listing=self.listing)
            factory: Any = point.load()
            self._loaded[name] = factory()
        return self._loaded[name]
