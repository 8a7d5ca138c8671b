"""A profile: where the time of one file on one device goes, as one JSON document.

Times of operators are raw samples, one a profiled inference, and every figure follows from them.
Beside them stand times of whole inferences, with the profiler and without it, taken in turns: what
the profiler costs, and what it leaves out, is part of the profile.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

from edgevit.errors import BundleError, OutputError, UsageError
from edgevit.measure.decode import decode, encode
from edgevit.measure.record import Conditions, Context, Subject, Verification
from edgevit.measure.results import write_atomically

__all__ = [
    "PROFILE_SCHEMA_VERSION",
    "SUFFIX",
    "BlockTime",
    "OpTime",
    "Profile",
    "Roof",
    "has_results",
    "read_profiles",
]

PROFILE_SCHEMA_VERSION = 1
#: Profiles are no results: they have a name of their own beside them.
SUFFIX = ".profile"
_MS = 1e6


@dataclass(frozen=True)
class OpTime:
    """One executed operator.

    Args:
        name: as the runtime calls it.
        op: its type, as the runtime calls it.
        kind: of work (:data:`edgevit.profiling.operators.KINDS`).
        layer: path of the module in the source model, empty for the model itself; None if nobody
            knows.
        placed: how that is known (:class:`edgevit.profiling.places.Place`).
        sources: nodes of the file that it stands for.
        takes: shapes of its inputs.
        gives: shapes of its outputs.
        flops: operations of one execution.
        moved_bytes: of its inputs and outputs.
        samples_ns: one time a profiled inference.
    """

    name: str
    op: str
    kind: str
    layer: str | None
    placed: str
    sources: tuple[str, ...]
    takes: tuple[tuple[int, ...], ...]
    gives: tuple[tuple[int, ...], ...]
    flops: int
    moved_bytes: int
    samples_ns: tuple[int, ...]

    @cached_property
    def median_ms(self) -> float:
        """Median over the profiled inferences."""
        return float(median(self.samples_ns)) / _MS


@dataclass(frozen=True)
class BlockTime:
    """A block, by what the model takes without it; both timed in the same rounds.

    Args:
        block: its path.
        whole_ms: median of the whole file over the rounds of that job; None if it could not be
            left out.
        without_ms: median of the file without the block.
        takes_ms: median over the rounds of their difference, which drift does not bend.
        low_ms: of its 95 % interval from order statistics of the rounds; None for few rounds.
        high_ms: the interval's other end.
        rounds: in which both were timed.
        reason: why it could not be left out, or measured.
    """

    block: str
    whole_ms: float | None = None
    without_ms: float | None = None
    takes_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    rounds: int = 0
    reason: str | None = None

    @classmethod
    def of_rounds(
        cls, block: str, whole: Mapping[int, list[int]], without: Mapping[int, list[int]]
    ) -> BlockTime:
        """From the samples in ns of both, by round; rounds that one of them lacks do not count."""
        shared = sorted(whole.keys() & without.keys())
        if not shared:
            return cls(block, reason="no round was timed")
        wholes = [median(whole[r]) / _MS for r in shared]
        shorter = [median(without[r]) / _MS for r in shared]
        differences = sorted(w - s for w, s in zip(wholes, shorter, strict=True))
        k = interval_order(len(shared))
        return cls(
            block,
            median(wholes),
            median(shorter),
            median(differences),
            differences[k - 1] if k else None,
            differences[-k] if k else None,
            len(shared),
        )


@dataclass(frozen=True)
class Roof:
    """What a machine reaches at best, see :mod:`devices.agent.peak`.

    Args:
        flops_per_s: best rate of products, fp32.
        bytes_per_s: best rate of copying, read and written.
        threads: that the products had.
        methods: how each was measured, in words.
        created: UTC time, ISO 8601.
    """

    flops_per_s: float
    bytes_per_s: float
    threads: int
    methods: Mapping[str, str]
    created: str


@dataclass(frozen=True)
class Profile:
    """Where the time of one file on one device goes.

    Args:
        context: the circumstances.
        subject: what was profiled.
        verification: whether it computes the right thing.
        method: what told the times: a profiler's name, or ``"block ablation"``.
        estimated: whether times are shares of a total that the runtime estimates.
        ops: the operators in the order of execution; empty where no profiler tells them.
        plain_ns: whole inferences without the profiler.
        profiled_ns: whole inferences with it, in turns with the others.
        resolution_ns: the profiler's unit of time.
        blocks: what blocks take by leaving them out.
        roof: the machine's peaks, if they were measured.
        conditions: before and after.
        notes: what a reader has to know.
    """

    context: Context
    subject: Subject
    verification: Verification
    method: str
    estimated: bool = False
    ops: tuple[OpTime, ...] = ()
    plain_ns: tuple[int, ...] = ()
    profiled_ns: tuple[int, ...] = ()
    resolution_ns: int = 1
    blocks: tuple[BlockTime, ...] = ()
    roof: Roof | None = None
    conditions: Conditions = field(default_factory=Conditions)
    notes: tuple[str, ...] = ()

    @cached_property
    def plain_ms(self) -> float | None:
        """Median of whole inferences without the profiler."""
        return float(median(self.plain_ns)) / _MS if self.plain_ns else None

    @cached_property
    def profiled_ms(self) -> float | None:
        """Median of whole inferences with it."""
        return float(median(self.profiled_ns)) / _MS if self.profiled_ns else None

    @cached_property
    def ops_ms(self) -> float:
        """Median over profiled inferences of the sum of all operators."""
        counts = {len(op.samples_ns) for op in self.ops}
        if len(counts) != 1:  # an operator that runs only sometimes
            return sum(op.median_ms for op in self.ops)
        rows = zip(*(op.samples_ns for op in self.ops), strict=True)
        return float(median(sum(row) for row in rows)) / _MS

    def to_json(self) -> dict[str, Any]:
        """The document."""
        return {"profile_schema_version": PROFILE_SCHEMA_VERSION, **encode(self)}

    @classmethod
    def from_json(cls, data: Any, where: str = "profile") -> Profile:
        """A profile from its document.

        Raises:
            BundleError: it is none, of another schema, or damaged.
        """
        if not isinstance(data, dict) or "profile_schema_version" not in data:
            raise BundleError(
                f"{where} is not a profile of edgevit", hint="`edgevit profile` writes them"
            )
        if data["profile_schema_version"] != PROFILE_SCHEMA_VERSION:
            raise BundleError(
                f"{where} has profile schema version {data['profile_schema_version']!r}; "
                f"this edgevit reads {PROFILE_SCHEMA_VERSION}",
                hint="profile again, or use the edgevit that wrote it",
            )
        fields = {k: v for k, v in data.items() if k != "profile_schema_version"}
        profile = decode(cls, fields, where)
        times = [*profile.plain_ns, *profile.profiled_ns]
        if any(not op.samples_ns for op in profile.ops) or any(ns < 0 for ns in times):
            raise BundleError(f"{where} is damaged: an operator without times, or a negative time")
        return profile

    @classmethod
    def read(cls, path: str | Path) -> Profile:
        """The profile in a file.

        Raises:
            UsageError: there is no such file.
            BundleError: it holds none, or a damaged one.
        """
        file = Path(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(f"there is no profile {file}") from error
        except (ValueError, OSError) as error:
            raise BundleError(
                f"{file} is damaged: {error}", hint="remove the file and profile again"
            ) from error
        return cls.from_json(data, str(file))

    def write(self, folder: str | Path) -> Path:
        """Write the document into a folder, whole or not at all.

        Raises:
            OutputError: it cannot be written there.
        """
        file = Path(folder) / self.filename
        text = json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False, indent=None)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text)
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror}") from error
        return file

    @property
    def filename(self) -> str:
        """The same for the same subject, settings and device."""
        s = self.subject
        words = (self.context.device.name, s.name, f"{s.format}-{s.precision}")
        exact = [words, s.backend, s.threads, s.batch, [i.shape for i in s.inputs], s.passes]
        tail = hashlib.sha256(json.dumps(exact).encode()).hexdigest()[:8]
        safe = (re.sub(r"[^a-z0-9.+_-]+", "-", word.lower()).strip(".-")[:48] for word in words)
        return "_".join([*safe, f"t{s.threads}", f"b{s.batch}", tail]) + SUFFIX


def interval_order(rounds: int) -> int:
    """The k for which the k-th smallest and largest of so many rounds hold the median at 95 %.

    Returns:
        The largest such k; 0 if there is none, as for fewer than 6 rounds.
    """
    outcomes, k, below = 2**rounds, 0, 1
    while 20 * (outcomes - 2 * below) >= 19 * outcomes:
        k += 1
        below += comb(rounds, k)
    return k


def read_profiles(path: str | Path) -> list[Profile]:
    """The profile in a file, or all in a folder and the folders in it, by name; maybe none.

    Raises:
        BundleError: a file holds none, or a damaged one; the message names it.
    """
    place = Path(path)
    if not place.is_dir():
        return [Profile.read(place)] if place.suffix == SUFFIX else []
    return [Profile.read(file) for file in sorted(place.rglob(f"*{SUFFIX}"))]


def has_results(place: Path) -> bool:
    """Whether a file or folder holds results, and not profiles alone."""
    if place.is_dir():
        return any(place.rglob("*.json")) or not any(place.rglob(f"*{SUFFIX}"))
    return place.suffix != SUFFIX
