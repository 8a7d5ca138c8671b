"""Telling somebody how far long work has come. The library is silent; the command line is not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["Progress"]


class Progress:
    """Listens to long work and says nothing; subclasses show it, and are called from any thread."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of known name and unknown length begins, and ends with the block."""
        yield

    def advance(self, name: str, done: float, total: float, detail: str = "") -> None:
        """Work of known length has come to ``done`` of ``total``; ``detail``: its present step."""

    def over(self, name: str) -> None:
        """Nothing more will be said of the work of that name."""

    def note(self, message: str) -> None:
        """Something the user should know."""
