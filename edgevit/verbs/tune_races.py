"""The races of a tuning: all candidates in one job, or in several that take turns."""

from __future__ import annotations

import random
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devices.base import SILENCE_S, Device, Event, Job, Schedule, Session
from edgevit.bundle import Bundle
from edgevit.errors import CheckError, DeviceError
from edgevit.measure.results import Result
from edgevit.progress import Progress
from edgevit.tuning.state import LEAST_RACE_S, OUT, State, Trial
from edgevit.verbs.crew import run_all
from edgevit.verbs.runs import DeviceRun, Group, Settings
from edgevit.verbs.subjects import Entry, entries_of
from edgevit.verbs.tune_files import Files

__all__ = ["Races"]

#: Share of a race's seconds that is timed; the rest goes to loading, checking and warming up.
TIMED_SHARE = 0.5
#: Jobs of a race with so many seconds for each candidate.
SLICES, LONG_S = 4, 2.0
#: Rounds of a race, as long as one inference is shorter than a block.
ROUNDS = 16


@dataclass
class Races:
    """What times candidates on the device.

    Args:
        device: that they run on.
        state: of the tuning; says who is in the race, and is told what was measured.
        files: of the candidates.
        batch: images in one inference.
        seed: of the order within rounds.
        progress: told how far it is.
    """

    device: Device
    state: State
    files: Files
    batch: int
    seed: int
    progress: Progress

    def run(self, seconds: float) -> None:
        """Time all that are in the race, their rounds interleaved.

        Raises:
            CheckError: every candidate is wrong.
            DeviceError: nothing was measured.
        """
        racing, number = self.state.racing, self.state.stages
        counts = list(dict.fromkeys(t.candidate.threads for t in racing))
        # A job opens every file once, and has one count of threads: jobs take turns, too.
        slices = SLICES if len(counts) > 1 or seconds > LONG_S * len(racing) else 1
        timed = seconds * TIMED_SHARE / len(racing) / slices
        schedule = Schedule(
            min_runs=1,
            min_seconds=timed,
            max_seconds=timed,
            warmup_runs=2,
            warmup_seconds=min(0.2, timed / 4),
            block_seconds=max(1e-3, timed * slices / ROUNDS),
            seed=self.seed + number,
        )
        self.progress.note(f"race {number + 1}: {len(racing)} candidates, about {seconds:.0f} s")
        with self.state.spending("measuring_s"):
            told: list[tuple[Trial, Result, int]] = []
            # What a job opens first may be slower than what it opens last, so orders are shuffled,
            # and each is followed by its reverse.
            order, shuffler = list(racing), random.Random(schedule.seed)
            for part in range(slices):
                if part % 2:
                    order.reverse()
                else:
                    shuffler.shuffle(order)
                told += [(t, r, part) for t, r in self._jobs(order, counts, schedule)]
                if self.state.left_s <= 0:
                    break
            cut = all(r.status == "stopped" for _, r, _ in told)
            known = cut and any(t.samples for t in racing)  # the budget ended it: no harm
            if not known and not any(result.samples_ns for _, result, _ in told):
                self._nothing_measured(told)
            for trial, result, part in told:
                trial.take(result, number, part)
                self.state.context = result.to_json()["context"]
                if trial.status == OUT:
                    self.progress.note(f"{trial.label} is out: {trial.reason}")
            self.state.stages += 1

    def _jobs(
        self, racing: Sequence[Trial], counts: Sequence[int], schedule: Schedule
    ) -> list[tuple[Trial, Result]]:
        """A job for each thread count."""
        entries = {trial.label: self.entry(trial) for trial in racing}
        results: dict[str, Result] = {}

        def report(entry: Entry, result: Result, settled: bool) -> None:
            results[entry.id] = result

        groups = [
            Group(tuple(e for e in entries.values() if e.record.threads == count), count)
            for count in counts
        ]
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        settings = Settings(schedule, self.seed, memory=False, command=command)
        hasty: Any = _Hasty(self.device, max(1.0, self.state.left_s))
        work = DeviceRun(hasty, groups, settings, report, self.progress)
        alarm = threading.Timer(max(LEAST_RACE_S, self.state.left_s), work.stop)
        alarm.daemon = True
        alarm.start()
        try:
            run_all([work])
        finally:
            alarm.cancel()
        if work.error is not None:
            raise work.error
        return [(t, results[t.label]) for t in racing if t.label in results]

    def _nothing_measured(self, told: Sequence[tuple[Trial, Result, int]]) -> None:
        """Raises, with the reasons, each once."""
        reasons = dict.fromkeys(
            str(r.reason or r.verification.reason or "no round was finished") for _, r, _ in told
        )
        message = "; ".join(reasons) or "no round was finished"
        hint = "give a larger --budget, or wait until the device is free"
        wrong = [r for _, r, _ in told if r.status == "mismatch"]
        if wrong and len(wrong) == len(told):
            raise CheckError(f"{self.files.source.name}: every candidate is wrong: {message}")
        raise DeviceError(f"{self.device.name}: nothing was measured: {message}", hint=hint)

    def entry(self, trial: Trial) -> Entry:
        """What a job is told of a candidate."""
        candidate, bundle, profile = trial.candidate, self.files.bundle(trial), self.device.profile
        backend = _backend(bundle, candidate.format, self.device)
        (entry,) = entries_of(
            bundle,
            profile,
            [candidate.format],
            device=self.device.name,
            batch=self.batch,
            options={backend: candidate.settings},
            runtime=None,
            progress=self.progress,
        )
        return replace(entry, id=trial.label).with_threads(candidate.threads)


def _backend(bundle: Bundle, format_name: str, device: Device) -> str:
    """What runs the file there unless told otherwise, as :func:`entries_of` has it."""
    (entry,) = entries_of(
        bundle, device.profile, [format_name], device=device.name,
        batch=bundle.manifest["batch"]["size"], options={}, runtime=None, progress=Progress(),
    )  # fmt: skip
    return entry.record.backend


@dataclass(frozen=True)
class _Hasty:
    """A device whose jobs wait for others no longer than there is time."""

    device: Device
    wait_s: float

    def open(self) -> Any:
        return _HastySession(self.device.open(), self.wait_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)


@dataclass(frozen=True)
class _HastySession:
    session: Session
    wait_s: float

    def run(self, job: Job, *, silence_s: float = SILENCE_S) -> Iterator[Event]:
        own = replace(job, wait_s=min(job.wait_s, self.wait_s))
        return self.session.run(own, silence_s=silence_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)
