"""Keeping other people's converters quiet, and what they said for the case that they fail."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TextIO

__all__ = ["Said", "quiet"]


@dataclass
class Said:
    """What was written to stdout and stderr inside :func:`quiet`; complete once that has ended."""

    text: str = ""

    def tail(self, lines: int = 5) -> str:
        """The last lines that are not blank."""
        kept = [line.rstrip() for line in self.text.splitlines() if line.strip()]
        return "\n".join(kept[-lines:])


@contextlib.contextmanager
def quiet() -> Iterator[Said]:
    """Catch stdout and stderr, Python's and the process's own; drop warnings and log records.

    Native code writes to file descriptors 1 and 2 past ``sys.stdout``, so both levels are caught.
    The whole process is silent meanwhile, other threads too: nothing of ours should print inside.

    Yields:
        What was said; its ``text`` is filled when the block ends, also by an exception.
    """
    said, disabled = Said(), logging.root.manager.disable
    level, handlers = logging.root.level, list(logging.root.handlers)
    with tempfile.TemporaryFile("a+b") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            with _descriptors_to(file), _streams_to(file):
                yield said
        finally:
            logging.disable(disabled)
            # Converters set up the root logger as if they were the program.
            logging.root.setLevel(level)
            logging.root.handlers[:] = handlers
            file.seek(0)
            said.text = file.read().decode("utf-8", "replace")


@contextlib.contextmanager
def _streams_to(file: BinaryIO) -> Iterator[None]:
    out, err = _Switch(sys.stdout), _Switch(sys.stderr)
    with (
        open(os.dup(file.fileno()), "w", encoding="utf-8", errors="replace", buffering=1) as stream,  # noqa: PTH123
        out.to(stream),
        err.to(stream),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        yield


class _Switch(io.TextIOBase):
    """Writes to one stream for a while and to the usual one afterwards.

    A module that is first imported inside :func:`quiet` may keep ``sys.stderr`` for its logging;
    what it keeps must not be closed under it.
    """

    encoding = "utf-8"

    def __init__(self, usual: TextIO) -> None:
        self._usual = self._stream = usual

    @contextlib.contextmanager
    def to(self, stream: TextIO) -> Iterator[None]:
        self._stream = stream
        try:
            yield
        finally:
            self._stream = self._usual

    @property
    def buffer(self) -> BinaryIO:
        return self._stream.buffer

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def _descriptors_to(file: BinaryIO) -> Iterator[None]:
    _flush()
    saved = {fd: os.dup(fd) for fd in (1, 2) if _is_open(fd)}
    try:
        for fd in saved:
            os.dup2(file.fileno(), fd)
        yield
    finally:
        _flush()
        for fd, copy in saved.items():
            os.dup2(copy, fd)
            os.close(copy)


def _flush() -> None:
    """Empty Python's buffers and the C library's, so that every byte goes where it was meant to."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
