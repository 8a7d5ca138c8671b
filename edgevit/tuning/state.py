"""A tuning under way: what became of each candidate, on disk after every step.

    <output>/.tune/state.json      candidates, samples, seconds spent
    <output>/.tune/files/          bundles of candidates

Killed at any point, the same command takes this up, also with a larger budget; with another model
or device it starts anew. In the end the winner's bundle and ``tune.json`` stand in the output
folder, and this goes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from edgevit.errors import OutputError
from edgevit.measure.results import Result, write_atomically
from edgevit.tuning.judge import Rounds
from edgevit.tuning.space import Candidate

__all__ = [
    "LEAST_RACE_S", "LOST", "OUT", "RACING", "SAME", "UNTRIED", "WAITING", "State", "Trial",
    "writing",
]  # fmt: skip

VERSION = 1
#: Seconds of a race below which it tells nothing.
LEAST_RACE_S = 1.0
#: What became of a candidate: to be exported; no time for that; in the race; left it; does not
#: work; same as another.
WAITING, UNTRIED, RACING = "waiting", "untried", "racing"
LOST, OUT, SAME = "lost", "out", "same"


@dataclass
class Trial:
    """A candidate and what became of it.

    Args:
        candidate: what is tried.
        status: one of the words above, or ``"won"``.
        reason: why it is no longer in the race.
        bundle: its folder.
        file_sha256: of the file in it.
        export_s: what writing and checking it took, its graph aside.
        samples: raw ones: stage, slice, round, inner, ns.
    """

    candidate: Candidate
    status: str = WAITING
    reason: str | None = None
    bundle: str | None = None
    file_sha256: str | None = None
    export_s: float = 0.0
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The candidate's."""
        return self.candidate.label

    @property
    def rounds(self) -> Rounds:
        """Median ns of every round."""
        return {(s["stage"], s["slice"], s["round"]): median(s["ns"]) for s in self.samples}

    @property
    def median_ms(self) -> float | None:
        """Median of all samples."""
        every = [ns for s in self.samples for ns in s["ns"]]
        return median(every) / 1e6 if every else None

    def leave(self, status: str, reason: str) -> None:
        """Out of the race, for a reason."""
        self.status, self.reason = status, reason

    def take(self, result: Result, stage: int, part: int) -> None:
        """Take in what a job measured."""
        self.samples += [
            {"stage": stage, "slice": part, "round": s.round, "inner": s.inner, "ns": list(s.ns)}
            for s in result.samples_ns
        ]
        if result.status == "mismatch":
            self.leave(OUT, f"wrong results: {result.reason or result.verification.reason}")
        elif result.status == "failed":
            self.leave(OUT, f"failed on the device: {result.reason}")

    def to_json(self) -> dict[str, Any]:
        """Everything of it."""
        return self.candidate.to_json() | {
            "status": self.status,
            "reason": self.reason,
            "file_sha256": self.file_sha256,
            "export_s": round(self.export_s, 3),
            "median_ms": self.median_ms,
            "bundle": self.bundle,
            "samples": self.samples,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        """The inverse of :meth:`to_json`."""
        candidate = Candidate(
            data["format"], data["pass_set"], data["options"], data["settings"], data["threads"]
        )
        names = ("status", "reason", "bundle", "file_sha256", "export_s", "samples")
        return cls(candidate, **{name: data[name] for name in names})


@dataclass
class State:
    """A tuning under way.

    Args:
        folder: ``.tune`` in the output folder.
        key: what decides the tuning, in one word.
        trials: in the order in which they came up.
        stages: races that are over.
        expanded: whether variants of the best formats are among the trials.
        exporting_s: spent on files.
        measuring_s: spent on the device.
        context: circumstances of the last measurement.
        budget_s: for exporting and measuring together.
    """

    folder: Path
    key: str
    trials: list[Trial] = field(default_factory=list)
    stages: int = 0
    expanded: bool = False
    exporting_s: float = 0.0
    measuring_s: float = 0.0
    context: dict[str, Any] = field(default_factory=dict)
    budget_s: float = inf
    _since: float | None = field(default=None, init=False)

    @classmethod
    def open(cls, output: Path, key: str, *, budget_s: float, fresh: bool) -> State:
        """What the same tuning left in that folder, or a new one.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = output.resolve() / ".tune"
        found = None if fresh else _read(folder / "state.json", key)
        if found is None:
            shutil.rmtree(folder, ignore_errors=True)
            state = cls(folder, key, budget_s=budget_s)
        else:
            trials = [Trial.from_json(t) for t in found.pop("trials")]
            state = cls(folder, key, trials, budget_s=budget_s, **found)
            for trial in state.trials:  # there may be more time now
                trial.status = WAITING if trial.status == UNTRIED else trial.status
        state.save()
        return state

    @property
    def racing(self) -> list[Trial]:
        """Those that may still win."""
        return [trial for trial in self.trials if trial.status == RACING]

    @property
    def spent_s(self) -> float:
        """Seconds of the budget that are gone, those that are being spent included."""
        running = time.monotonic() - self._since if self._since is not None else 0.0
        return self.exporting_s + self.measuring_s + running

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are there."""
        return self.budget_s - self.spent_s

    @contextmanager
    def spending(self, on: str) -> Iterator[None]:
        """Seconds of the block count against the budget, even if it ends badly.

        Args:
            on: ``"exporting_s"`` or ``"measuring_s"``.
        """
        self._since = start = time.monotonic()
        try:
            yield
        finally:
            self._since = None
            setattr(self, on, getattr(self, on) + time.monotonic() - start)
            self.save()

    def save(self) -> None:
        """Bring it to the disk, whole or not at all."""
        numbers = ("stages", "expanded", "exporting_s", "measuring_s", "context")
        data = {name: getattr(self, name) for name in numbers}
        data |= {"trials": [t.to_json() for t in self.trials]}
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"version": VERSION, "key": self.key, **data})
            write_atomically(self.folder / "state.json", text)

    def remove(self) -> None:
        """It is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises OutputError where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}", hint="choose another folder with -o"
        ) from error


def _read(file: Path, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.pop("version", None) != VERSION:
        return None
    return found if found.pop("key", None) == key else None
