"""What commands share: consoles, progress, parsing of option values.

Results go to stdout; everything else goes to stderr, so that a pipe gets results alone.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edgevit.errors import OptionError
from edgevit.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "CliProgress",
    "error_console",
    "out_console",
    "parse_ints",
    "parse_options",
    "parse_size",
    "print_json",
    "split_list",
]


@lru_cache(maxsize=1)
def error_console() -> Console:
    """Messages and progress."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


@lru_cache(maxsize=1)
def out_console() -> Console:
    """Results."""
    from rich.console import Console

    return Console(soft_wrap=True)


def print_json(data: Any) -> None:
    """A result as JSON on stdout."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


class CliProgress(Progress):
    """Stages and bars on a terminal, plain lines elsewhere; on stderr. Threads may share one."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, str] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A spinner while the stage lasts, then a line with its seconds."""
        if self.quiet:
            yield
            return
        console, start = error_console(), time.perf_counter()
        with console.status(name) if console.is_terminal else contextlib.nullcontext():
            yield
        seconds = time.perf_counter() - start
        console.print(f"  {name:<28} {seconds:6.1f} s", highlight=False, style="dim", markup=False)

    def advance(self, name: str, done: float, total: float, detail: str = "") -> None:
        """A bar for each name on a terminal; elsewhere a line for each step."""
        if self.quiet:
            return
        with self._lock:
            if error_console().is_terminal:
                self._bar(name, done, total, detail)
            elif self._said.get(name) != detail:
                self._said[name] = detail
                line = f"  {name}: {detail or 'done'}"
                error_console().print(line, highlight=False, markup=False)

    def _bar(self, name: str, done: float, total: float, detail: str) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bars

        if self._bars is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[detail]}", style="dim", markup=False),
            )
            # Drawing seldom: what is measured may be measured on this very machine.
            self._bars = Bars(
                *columns, console=error_console(), transient=True, refresh_per_second=2
            )
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, detail=detail)
        self._bars.update(self._tasks[name], completed=done, total=total, detail=detail)

    def over(self, name: str) -> None:
        """Take one bar off the terminal."""
        with self._lock:
            if name in self._tasks:
                self._bars.remove_task(self._tasks.pop(name))

    def note(self, message: str) -> None:
        """A line of its own."""
        if not self.quiet:
            error_console().print(f"  note: {message}", highlight=False, markup=False)

    def close(self) -> None:
        """Take the bars off the terminal."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __enter__(self) -> CliProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def split_list(values: list[str] | None) -> list[str]:
    """``["a,b", "c"]`` to ``["a", "b", "c"]``."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


def parse_ints(option: str, text: str, *, separator: str = ",") -> tuple[int, ...]:
    """``"256,64"`` to ``(256, 64)``.

    Raises:
        OptionError: not whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(separator))
    except ValueError:
        raise OptionError(
            option, expected=f"whole numbers separated by {separator!r}", got=text
        ) from None


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """``"224"`` to 224, ``"800x1280"`` to (800, 1280), None to None."""
    if text is None:
        return None
    numbers = parse_ints("--image-size", text.lower(), separator="x")
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return (numbers[0], numbers[1])
    raise OptionError("--image-size", expected="224 or 800x1280", got=text)


def parse_options(option: str, items: list[str] | None) -> dict[str, Any]:
    """``["depth=3", "axis=width"]`` to ``{"depth": 3, "axis": "width"}``; values as JSON or text.

    Raises:
        OptionError: an item without ``=``.
    """
    parsed = {}
    for item in items or []:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise OptionError(option, expected="name=value", got=item)
        try:
            parsed[name] = json.loads(text)
        except json.JSONDecodeError:
            parsed[name] = text
        if isinstance(parsed[name], list):
            parsed[name] = tuple(parsed[name])
    return parsed
