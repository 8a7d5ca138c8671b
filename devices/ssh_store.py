"""The host's end of the board's store: files go there once, and are what they should be.

``devices.board.store`` is the other end. It names by hash what it lacks or holds damaged, that is
sent, and it keeps what has the right hash on its disk. What was damaged is sent once more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from devices.remote import last_line
from devices.ssh_connection import SshConnection
from devices.ssh_line import SshLine
from edgevit.bundle import hash_file
from edgevit.errors import DeviceError, RefusedError, UsageError

__all__ = ["Content", "Progress", "Shipment", "python_words", "ship"]

#: Called with the bytes that were sent, and all that are to be.
Progress = Callable[[int, int], None]

CHUNK = 1 << 18
ANSWER_S = 300.0
#: What nobody used for so long may be removed.
HELD_S = 24 * 3600.0
TOO_OLD = 86
MIB = 2**20

#: Every Python can read it, and say that it is too old for the rest.
BOOT = (
    "import sys\n"
    "if sys.version_info < (3, 6):\n"
    "    sys.stderr.write(sys.version.split()[0])\n"
    f"    sys.exit({TOO_OLD})\n"
    "exec(sys.argv.pop(1))"
)


@dataclass(frozen=True)
class Content:
    """A file to be brought: its name on the board, and what is in it."""

    name: str
    sha256: str
    size: int
    source: Path | bytes

    @classmethod
    def of_file(cls, path: Path, name: str) -> Content:
        """A file of this machine."""
        return cls(name, hash_file(path), path.stat().st_size, path)

    @classmethod
    def of_bytes(cls, data: bytes, name: str) -> Content:
        """Bytes at hand."""
        return cls(name, hashlib.sha256(data).hexdigest(), len(data), data)

    def chunks(self) -> Iterator[bytes]:
        """As many bytes as were counted, even if the file has changed since: the hash tells."""
        if isinstance(self.source, bytes):
            yield self.source
            return
        left = self.size
        with self.source.open("rb") as stream:
            while left:
                data = stream.read(min(CHUNK, left)) or bytes(min(CHUNK, left))
                left -= len(data)
                yield data


@dataclass(frozen=True)
class Shipment:
    """What goes to one place.

    Args:
        kind: ``"bundle"`` or ``"agent"``.
        name: of the place.
        contents: the files.
        limit_bytes: what the store may take of the board's disk.
    """

    kind: str
    name: str
    contents: tuple[Content, ...]
    limit_bytes: int = 0

    @classmethod
    def of_folder(
        cls, folder: Path, limit_bytes: int, parts: Iterable[str] | None = None
    ) -> Shipment:
        """Files of a folder; its place is named by their names and contents.

        Args:
            folder: the bundle.
            limit_bytes: what the store may take of the board's disk.
            parts: files and folders in it; all if None.

        Raises:
            UsageError: there is no such folder, or nothing in it.
        """
        paths = sorted(_files_in(folder, parts))
        if not paths:
            raise UsageError(f"{folder} has no files that could be brought to a device")
        names = [path.relative_to(folder).as_posix() for path in paths]
        contents = tuple(map(Content.of_file, paths, names))
        listing = json.dumps([(c.name, c.sha256) for c in contents])
        name = hashlib.sha256(listing.encode()).hexdigest()
        return cls("bundle", name, contents, limit_bytes)

    def to_json(self, home: str) -> dict[str, Any]:
        """As the board reads it."""
        return {
            "home": home,
            "kind": self.kind,
            "name": self.name,
            "files": [(c.name, c.sha256, c.size) for c in self.contents],
            "limit": self.limit_bytes,
            "held_seconds": HELD_S,
        }


def _files_in(folder: Path, parts: Iterable[str] | None) -> Iterator[Path]:
    """Files of a folder, or those of its parts, each once."""
    for part in ["."] if parts is None else dict.fromkeys(parts):
        place = folder / part
        yield from [place] if place.is_file() else filter(Path.is_file, place.rglob("*"))


def python_words(python: str, script: str, *arguments: str) -> list[str]:
    """The command that runs a program of ``devices.board``."""
    source = (files("devices") / "board" / f"{script}.py").read_text(encoding="utf-8")
    return [python, "-c", BOOT, source, *arguments]


def ship(
    connection: SshConnection,
    shipment: Shipment,
    *,
    home: str,
    python: str,
    environment: Mapping[str, str],
    progress: Progress | None = None,
) -> str:
    """Bring files to a board; their place there.

    Args:
        connection: to the board.
        shipment: what to bring.
        home: edgevit's folder there.
        python: an interpreter there.
        environment: variables for it.
        progress: told while it goes on.

    Raises:
        DeviceError: the board is gone, or full, or damages what it keeps; no Python, or too old.
    """
    for attempt in (1, 2):
        talk = _Talk(connection, shipment, python, environment)
        try:
            place = talk.run(home, progress)
        finally:
            talk.close()
        if not talk.damaged:
            return place
        if attempt == 2:
            raise talk.damage()
    raise AssertionError


class _Talk:
    """One conversation with the store."""

    def __init__(
        self,
        connection: SshConnection,
        shipment: Shipment,
        python: str,
        environment: Mapping[str, str],
    ) -> None:
        self._name = connection.host.name
        self._shipment = shipment
        self._python = python
        self._line = SshLine(connection, python_words(python, "store"), environment)
        #: Hashes that came out wrong, and what they came out as.
        self.damaged: dict[str, str] = {}

    def run(self, home: str, progress: Progress | None) -> str:
        """Bring what is missing; the place."""
        self._send(json.dumps(self._shipment.to_json(home)).encode() + b"\n")
        by_hash = {content.sha256: content for content in self._shipment.contents}
        missing = [by_hash[sha256] for sha256 in self._answer("missing")]
        self._send_all(missing, progress or _silent)
        for _ in missing:
            answer = self._next()
            if "damaged" in answer:
                self.damaged[answer["damaged"]] = answer["got"]
        return "" if self.damaged else str(self._answer("place"))

    def close(self) -> None:
        """End the other end."""
        self._line.hang_up()
        if self._line.wait(1.0) is None:
            self._line.kill()
        self._line.close()

    def damage(self) -> DeviceError:
        """The error that says what was damaged."""
        names = {c.sha256: c.name for c in self._shipment.contents}
        sha256, got = next(iter(self.damaged.items()))
        return RefusedError(
            f"{self._name}: {names[sha256]} came out damaged, twice: its sha256 there is "
            f"{got[:12]}, not {sha256[:12]}",
            hint="is the board's disk (SD card) all right, and is the file not being written here?",
        )

    def _send_all(self, contents: Sequence[Content], progress: Progress) -> None:
        total, sent = sum(content.size for content in contents), 0
        for content in contents:
            for data in content.chunks():
                if not self._send(data):
                    return  # the next answer says why
                sent += len(data)
                progress(sent, total)

    def _send(self, data: bytes) -> bool:
        try:
            self._line.send(data)
        except OSError:
            return False
        return True

    def _answer(self, field: str) -> Any:
        answer = self._next()
        if field not in answer:
            raise DeviceError(f"{self._name}: the board answered {answer!r} to a push")
        return answer[field]

    def _next(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            DeviceError: it is an error, or there is none.
        """
        try:
            line = self._line.lines.get(timeout=ANSWER_S)
        except Exception as error:  # queue.Empty
            raise DeviceError(f"{self._name}: the board's store does not answer") from error
        if line is None:
            raise self._obituary()
        try:
            answer = json.loads(line)
        except ValueError:
            return self._next()  # a greeting of its Python
        if not isinstance(answer, dict):
            return self._next()
        if "error" in answer:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: Mapping[str, Any]) -> DeviceError:
        if answer["error"] == "full":
            return RefusedError(
                f"{self._name}: the board's disk is full: {answer['needed'] / MIB:.1f} MiB are to "
                f"come, {answer['free'] / MIB:.1f} MiB are free",
                hint="make room there; what edgevit keeps there goes by "
                f"`edgevit devices clean {self._name}`",
            )
        return RefusedError(f"{self._name}: the board cannot keep files: {answer['message']}")

    def _obituary(self) -> DeviceError:
        self._line.wait(5.0)
        command, said = self._line.command, self._line.said()
        ending = self._line.wait(0)
        if command.status == TOO_OLD:
            return RefusedError(
                f"{self._name}: {self._python} there is Python {said}; the agent needs 3.6",
                hint="name a newer one with `edgevit devices add` and --force --python",
            )
        if command.status in (126, 127):
            return RefusedError(
                f"{self._name}: there is no {self._python} on the board",
                hint="`sudo apt install python3` there, or name it with `edgevit devices add` and "
                "--force --python",
            )
        words = ending.words if ending else "the board's store does not answer"
        detail = f": {last_line(said.encode())}" if said and command.lost is None else ""
        return DeviceError(
            f"{self._name}: {words.replace('the agent', self._python)}{detail}",
            hint="the same command again goes on from here" if command.lost else None,
        )


def _silent(sent: int, total: int) -> None:
    pass
