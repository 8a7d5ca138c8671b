"""A result: one measurement of one subject on one device, as one JSON document.

Raw samples are in it, and every statistic follows from them: on reading, the stored figures are
computed again and have to agree. ``result.schema.json`` describes the document.

Status words:

    ok         measured, checked, steady
    unstable   measured and checked, but not steady enough; the reason says why
    mismatch   it computes something else than its golden outputs; never timed, or never shown
    failed     it could not be measured to the end
    stopped    the user ended it early; what was measured until then is kept
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from edgevit.errors import BundleError, OutputError, UsageError
from edgevit.measure.decode import OPTIONAL, decode, encode
from edgevit.measure.record import (
    MEMORY_DEFINITION,
    Conditions,
    Context,
    Device,
    Instructions,
    Memory,
    Subject,
    Verification,
    Warmup,
)
from edgevit.measure.statistics import Samples, Statistics

__all__ = [
    "MEMORY_DEFINITION",
    "SCHEMA",
    "SCHEMA_VERSION",
    "Conditions",
    "Context",
    "Device",
    "Instructions",
    "Memory",
    "Result",
    "Subject",
    "Verification",
    "Warmup",
    "current_context",
    "read_results",
    "result_filename",
    "write_atomically",
]

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("result.schema.json")
Status = Literal["ok", "unstable", "mismatch", "failed", "stopped"]


@dataclass(frozen=True)
class Result:
    """One measurement of one subject on one device.

    Args:
        context: the circumstances.
        subject: what was measured.
        protocol: the schedule that was used (warm-up, rounds, runs, caps).
        verification: whether it computes the right thing.
        status: ``"ok"``, ``"unstable"``, ``"mismatch"``, ``"failed"`` or ``"stopped"``.
        reason: why it is not ok.
        samples_ns: the raw samples, by round.
        load_ms: reading the file and preparing it to run.
        first_ms: the first inference.
        warmup: the runs that followed until times were steady.
        memory: None unless it was measured.
        conditions: before and after.
        warnings: what the device's agent warned of.
        instructions: None unless they were counted.
    """

    context: Context
    subject: Subject
    protocol: Mapping[str, Any]
    verification: Verification
    status: Status
    reason: str | None = None
    samples_ns: tuple[Samples, ...] = ()
    load_ms: float | None = None
    first_ms: float | None = None
    warmup: Warmup | None = None
    memory: Memory | None = None
    conditions: Conditions = field(default_factory=Conditions)
    warnings: tuple[str, ...] = ()
    instructions: Instructions | None = field(default=None, metadata=OPTIONAL)

    @cached_property
    def statistics(self) -> Statistics | None:
        """Statistics of the samples; None without samples."""
        return Statistics.from_samples(self.samples_ns) if self.samples_ns else None

    def to_json(self) -> dict[str, Any]:
        """The document, as ``result.schema.json`` describes it."""
        figures = self.statistics.to_json() if self.statistics else None
        content: dict[str, Any] = encode(self)
        return {"schema_version": SCHEMA_VERSION, **content, "statistics": figures}

    @classmethod
    def from_json(cls, data: Any, where: str = "result") -> Result:
        """A result from its document.

        Raises:
            BundleError: it is no result, of another schema, damaged, or its statistics do not
                follow from its samples.
        """
        if not isinstance(data, dict) or not {"schema_version", "samples_ns"} <= data.keys():
            raise BundleError(
                f"{where} is not a result of edgevit", hint="give files that `edgevit bench` wrote"
            )
        if data["schema_version"] != SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema version {data['schema_version']!r}; "
                f"this edgevit reads {SCHEMA_VERSION}",
                hint="measure again, or use the edgevit that wrote it",
            )
        fields = {k: v for k, v in data.items() if k not in ("schema_version", "statistics")}
        result = decode(cls, fields, where)
        result._check_statistics(data.get("statistics"), where)
        return result

    def _check_statistics(self, stored: Any, where: str) -> None:
        try:
            expected = self.statistics.to_json() if self.statistics else None
        except UsageError as error:
            raise BundleError(f"{where}: {error}") from error
        if not _agree(stored, expected):
            raise BundleError(
                f"{where}: its statistics do not follow from its samples",
                hint="it was edited after it was measured; measure again",
            )

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """The result in a file.

        Raises:
            UsageError: there is no such file.
            BundleError: it holds no result, or a damaged one.
        """
        file = Path(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
        except FileNotFoundError as error:
            raise UsageError(f"there is no result {file}") from error
        except (ValueError, OSError) as error:
            raise BundleError(
                f"{file} is damaged: {error}", hint="remove the file and measure again"
            ) from error
        return cls.from_json(data, str(file))

    def write(self, destination: str | Path) -> Path:
        """Write the document, whole or not at all.

        Args:
            destination: a ``.json`` file, or a folder where it gets :func:`result_filename`.

        Returns:
            The file.

        Raises:
            OutputError: it cannot be written there.
        """
        target = Path(destination)
        file = target if target.suffix == ".json" else target / result_filename(self)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, _text(self.to_json()))
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror}") from error
        return file


def current_context(
    device: Device,
    *,
    command: str,
    seed: int | None = None,
    suite: str | None = None,
    now: datetime | None = None,
) -> Context:
    """The circumstances of a run that starts now on this host."""
    time = (now or datetime.now(timezone.utc)).astimezone(timezone.utc)
    host = {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    created = time.isoformat(timespec="seconds")
    return Context(created, version("edgevit"), command, host, device, seed, suite)


def result_filename(result: Result) -> str:
    """A file name that is the same for the same subject, settings and device, and safe anywhere.

    The hash covers what the words leave out: backend and its options, input shapes and passes.
    """
    s = result.subject
    words = (result.context.device.name, s.name, f"{s.format}-{s.precision}")
    settings: tuple[Any, ...] = (
        s.kind, s.backend, s.threads, s.batch, [i.shape for i in s.inputs], s.passes,
    )  # fmt: skip
    if s.options:
        settings = (*settings, sorted(s.options.items()))
    exact = hashlib.sha256(json.dumps([words, settings]).encode()).hexdigest()[:8]
    safe = (re.sub(r"[^a-z0-9.+_-]+", "-", word.lower()).strip(".-")[:48] for word in words)
    return (
        "_".join([*(word or "x" for word in safe), f"t{s.threads}", f"b{s.batch}", exact]) + ".json"
    )


def read_results(path: str | Path) -> list[Result]:
    """The results in a file, or in all ``.json`` files of a folder and the folders in it, by name.

    Raises:
        UsageError: there is nothing at that place, or the folder holds no results.
        BundleError: a file holds no result, or a damaged one; the message names it.
    """
    place = Path(path)
    if not place.is_dir():
        return [Result.read(place)]
    files = sorted(place.rglob("*.json"))
    if not files:
        raise UsageError(f"{place} holds no results", hint="`edgevit bench` writes them")
    return [Result.read(file) for file in files]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON knows")


def _agree(stored: Any, expected: Any) -> bool:
    """Equal, up to the last digits of numbers, in which machines may differ."""
    if isinstance(expected, dict):
        return (
            isinstance(stored, dict)
            and stored.keys() == expected.keys()
            and all(_agree(stored[key], expected[key]) for key in expected)
        )
    if isinstance(expected, list):
        return (
            isinstance(stored, list)
            and len(stored) == len(expected)
            and all(map(_agree, stored, expected))
        )
    if isinstance(expected, float):
        number = isinstance(stored, int | float) and not isinstance(stored, bool)
        return number and abs(stored - expected) <= 1e-9 * max(1.0, abs(expected))
    return type(stored) is type(expected) and bool(stored == expected)


def _text(document: dict[str, Any]) -> str:
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    # Lists of whole numbers on one line; a newline within a JSON string is always escaped.
    return re.sub(
        r"\[\n\s*((?:-?\d+,\n\s*)*-?\d+)\n\s*\]",
        lambda match: "[" + re.sub(r",\n\s*", ", ", match[1]) + "]",
        text,
    )


def write_atomically(file: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        OSError: the disk refuses; what stood there before still does.
    """
    handle, name = tempfile.mkstemp(prefix=f".{file.name[:80]}.", suffix=".tmp", dir=file.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
