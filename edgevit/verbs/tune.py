"""Tune: find the fastest way to run a model on a device, within a budget of seconds.

    default passes in every format --race--> the better half of the formats
    --their variants (settings, passes, layout)--> races, each with the better half of the last

Files come in the order of what they cost; the graph is captured once, and rewritten once for each
set of passes. In a race all files share a job, so that their rounds are interleaved
(:mod:`edgevit.tuning.judge`). It ends when all but the fastest are shown to be slower, or the same
within the threshold, or when the budget is spent. Of those that are not told apart the plainest is
taken.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from math import ceil, log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.base import SILENCE_S, Device, Event, Job, Schedule, Session
from devices.resolve import find_device
from edgevit.bundle import Bundle, held, write_bundle
from edgevit.errors import (
    CheckError,
    DeviceError,
    MissingExtraError,
    OptionError,
    UnavailableError,
    UsageError,
)
from edgevit.measure.results import Result, write_atomically
from edgevit.progress import Progress
from edgevit.source import Source, slug
from edgevit.tuning.judge import THRESHOLD, Verdict, fastest, judge
from edgevit.tuning.space import COST, USUAL_COST, Candidate, pass_sets, usable_formats, variants
from edgevit.tuning.state import LOST, OUT, RACING, SAME, UNTRIED, WAITING, State, Trial, writing
from edgevit.tuning.store import keep_tuned
from edgevit.verbs.crew import run_all
from edgevit.verbs.export import (
    Graphs,
    Plan,
    export_source,
    make_plan,
    make_source,
    rewritten_graph,
)
from edgevit.verbs.journal import digest
from edgevit.verbs.runs import DeviceRun, Group, Settings
from edgevit.verbs.subjects import Entry, entries_of
from edgevit.verbs.targets import default_format, fit_formats

if TYPE_CHECKING:
    from torch import nn

    from edgevit.source import BlockSpec

__all__ = ["SCHEMA_VERSION", "Tuned", "parse_budget", "tune"]

#: Of ``tune.json``.
SCHEMA_VERSION = 1
#: Share of the budget after which no export begins.
EXPORT_SHARE = 0.6
#: Seconds of a race below which it tells nothing.
LEAST_RACE_S = 1.0
#: Share of a race's seconds that is timed; the rest goes to loading, checking and warming up.
TIMED_SHARE = 0.5
#: Rounds of a race, as long as one inference is shorter than a block.
ROUNDS = 16


@dataclass(frozen=True)
class Tuned:
    """What a tuning found.

    Args:
        bundle: the winner's.
        report: as ``tune.json`` holds it.
        file: ``tune.json``.
    """

    bundle: Bundle
    report: Mapping[str, Any]
    file: Path


def parse_budget(text: str) -> float:
    """``"120s"``, ``"2m"``, ``"1h"`` or ``"90"`` to seconds.

    Raises:
        OptionError: no such time, or none above 0.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise OptionError("budget", expected="a time such as 120s, 2m or 1h", got=text)
    return seconds


def tune(
    model: str | nn.Module | BlockSpec,
    *,
    device: str | Device = "local",
    budget_s: float = 120.0,
    output: str | Path = "tuned",
    formats: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    batch: int = 1,
    seed: int = 0,
    fresh: bool = False,
    progress: Progress | None = None,
    **source_options: Any,
) -> Tuned:
    """Find the fastest format, passes and settings of a model on a device.

    Args:
        model: as of :func:`edgevit.export`.
        device: where it is to be fast.
        budget_s: seconds for exporting and measuring together.
        output: folder for the winner's bundle and ``tune.json``.
        formats: that may be tried; all that the device runs and that can be made here if None.
        threads: counts that may be tried; the device's default one if None.
        batch: images in one inference.
        seed: of random weights, inputs and the order within rounds.
        fresh: start over, if the same tuning was cut short; else it is continued.
        progress: told how far it is.
        **source_options: as of :func:`edgevit.export`.

    Raises:
        UsageError: a model, device, format or budget that cannot be.
        UnavailableError: nothing could be exported or measured, or not within the budget.
        KeyboardInterrupt: the same command goes on.
    """
    began, bar = time.monotonic(), progress or Progress()
    found = find_device(device) if isinstance(device, str) else device
    usable, left = _formats(found, formats)
    counts = tuple(threads or (found.profile.default_threads,))
    if min(counts) < 1:
        raise OptionError("threads", expected="whole numbers of at least 1", got=list(counts))
    if getattr(found, "emulated", False):
        raise UnavailableError(
            f"{found.name} is emulated: its times are not the device's",
            hint="tune on the device itself",
        )
    asked = [usable, counts, batch, seed, found.name, found.profile.name]
    named = {k: v for k, v in source_options.items() if v is not None}
    key = digest([_name_of(model), asked, named, _code()])
    folder = Path(output)
    with held(folder.resolve(), "tuning"):
        state = State.open(folder, key, fresh=fresh)
        if state.exporting_s or state.stages:
            spent = state.exporting_s + state.measuring_s
            bar.note(f"goes on with a tuning that has spent {spent:.0f} s; --fresh starts over")
        source, rest = make_source(model, batch=batch, seed=seed, **source_options)
        if rest:
            raise UsageError(f"tuning decides about {', '.join(rest)}")
        tuning = _Tuning(source, found, state, folder, budget_s, batch, seed, counts, bar)
        state.exporting_s += time.monotonic() - began
        tuning.run(usable)
        return tuning.finish(left)


def _formats(device: Device, asked: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Formats to try, and why the others are left out."""
    usable, left = usable_formats(device.profile)
    if asked:
        from exporters.base import exporters

        for name in fit_formats(device.profile, _known(asked)):
            if missing := exporters.get(name).missing():
                raise MissingExtraError(f"format {name}", missing, exporters.get(name).extra)
        left |= {name: "not asked for" for name in usable if name not in asked}
        usable = [name for name in usable if name in asked]
    if not usable:
        reasons = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise UnavailableError(f"no format can be tried on {device.name}: {reasons}")
    return usable, left


def _known(formats: Sequence[str]) -> list[str]:
    """The formats. Raises UnknownNameError for one that there is not."""
    from exporters.base import exporters

    return [name for name in formats if exporters.get(name) is not None]


def _name_of(model: Any) -> Any:
    return model if isinstance(model, str) else repr(model)


def _code() -> list[Any]:
    from edgevit.versions import code_digest, tool_versions

    return [code_digest(), tool_versions()]


@dataclass
class _Tuning:
    """One tuning under way."""

    source: Source
    device: Device
    state: State
    output: Path
    budget_s: float
    batch: int
    seed: int
    threads: Sequence[int]
    progress: Progress
    graphs: Graphs = field(default_factory=Graphs)
    ended: str = ""
    #: Seconds that the last rewriting took.
    graph_s: float = 0.0

    @property
    def left_s(self) -> float:
        return self.budget_s - self.state.exporting_s - self.state.measuring_s

    def run(self, formats: Sequence[str]) -> None:
        """Export and measure until it is decided."""
        state = self.state
        if not state.trials:
            state.trials = [Trial(Candidate(name, threads=self.threads[0])) for name in formats]
        self._export()
        if state.stages == 0 and len(state.racing) > 1:
            self._race(self._race_s(4.0))
            self._halve()
        if not state.expanded:
            self._expand()
        self._export()
        while not self._decided() and self.left_s > 2 * LEAST_RACE_S:
            self._race(self._race_s(log2(max(2, len(state.racing))) + 0.5))
            if not self._decided():
                self._halve()
        if not any(trial.samples for trial in state.racing):
            raise UnavailableError(
                f"{self.budget_s:.0f} s are too few: {state.exporting_s:.0f} s went to exporting, "
                "and no round was measured",
                hint="give a larger --budget",
            )

    @contextmanager
    def _spending(self, on: str) -> Iterator[None]:
        """Seconds of the block count against the budget, even if it ends badly."""
        before, start = getattr(self.state, on), time.monotonic()
        try:
            yield
        finally:
            setattr(self.state, on, before + time.monotonic() - start)
            self.state.save()

    # -- files -------------------------------------------------------------------------------------

    def _export(self) -> None:
        """Make the files of what waits, as long as the exports' share of the budget lasts."""
        reasons = []
        for trial in self.state.trials:
            if trial.status != WAITING:
                continue
            made = any(t.bundle for t in self.state.trials)
            late = self.state.exporting_s + self._estimate(trial)
            spent = late > EXPORT_SHARE * self.budget_s or self.left_s < 2 * LEAST_RACE_S
            if made and spent and not self._shared(trial):
                trial.leave(UNTRIED, "the exports' share of the budget would be exceeded")
                continue
            with self._spending("exporting_s"):
                try:
                    self._make(trial)
                except (CheckError, UnavailableError) as error:
                    trial.leave(OUT, f"cannot be exported: {error}")
                    self.progress.note(f"{trial.label} is out: {error}")
            if trial.status == OUT:
                reasons.append(f"{trial.candidate.format}: {trial.reason}")
        if not self.state.racing:
            raise UnavailableError(
                f"{self.source.name} could not be exported: {'; '.join(reasons)}"
            )

    def _shared(self, trial: Trial) -> Trial | None:
        """One whose file this one has as well: they differ in settings alone."""
        own = trial.candidate
        for other in self.state.trials:
            c = other.candidate
            alike = (c.format, c.passes, c.options) == (own.format, own.passes, own.options)
            if alike and other.bundle and other is not trial:
                return other
        return None

    def _estimate(self, trial: Trial) -> float:
        """Seconds that an export will take, from those before."""
        name, key = trial.candidate.format, tuple(self._plan(trial.candidate).rewrites())
        graph = 0.0 if key in self.graphs.rewritten else self.graph_s
        known = {t.candidate.format: t.export_s for t in self.state.trials if t.export_s}
        if name in known or not known:
            return graph + known.get(name, 0.0)
        unit = min(seconds / COST.get(f, USUAL_COST) for f, seconds in known.items())
        return graph + unit * COST.get(name, USUAL_COST)

    def _plan(self, candidate: Candidate) -> Plan:
        return make_plan(
            [candidate.format],
            passes=pass_sets()[candidate.passes],
            options={candidate.format: candidate.options},
            device=self.device.profile,
        )

    def _make(self, trial: Trial) -> None:
        candidate = trial.candidate
        if (shared := self._shared(trial)) is not None:
            trial.bundle, trial.file_sha256 = shared.bundle, shared.file_sha256
        else:
            plan, captured = self._plan(candidate), self.graphs.captured is not None
            with self.progress.stage(f"export {candidate.format} {candidate.passes}"):
                quiet, start = Progress(), time.monotonic()
                rewritten_graph(self.source, plan, self.graphs, seed=self.seed, progress=quiet)
                if (same := self._same_graph(trial)) is not None:
                    trial.leave(SAME, f"the passes make the same graph as in {same.label}")
                    return
                if captured and time.monotonic() - start > 0.01:
                    self.graph_s = time.monotonic() - start
                place = self.state.folder / "files" / slug(candidate.label)
                start = time.monotonic()
                bundle = export_source(
                    self.source, plan, place, seed=self.seed, progress=quiet, graphs=self.graphs
                )
            trial.export_s = time.monotonic() - start
            trial.bundle = str(bundle.path.relative_to(self.state.folder.resolve()))
            artifact = bundle.artifact(candidate.format)
            trial.file_sha256 = bundle.manifest["files"][artifact["file"]]["sha256"]
        trial.status = RACING
        self._drop_same_file(trial)

    def _same_graph(self, trial: Trial) -> Trial | None:
        """An earlier one of the same format whose passes make the very same graph."""
        own, prints = trial.candidate, self._fingerprints()
        for other in self.state.trials:
            c = other.candidate
            if other is trial or not other.bundle or c.settings or c.threads != own.threads:
                continue
            alike = (c.format, c.options) == (own.format, own.options)
            if alike and prints.get(c.passes, c.passes) == prints.get(own.passes):
                return other
        return None

    def _fingerprints(self) -> dict[str, str]:
        """Of the graphs that are there, by the set of passes."""
        by_passes = {key: graph.fingerprint() for key, (graph, _) in self.graphs.rewritten.items()}
        plans = {name: make_plan(["onnx"], passes=names) for name, names in pass_sets().items()}
        keys = {name: tuple(plan.rewrites()) for name, plan in plans.items()}
        return {name: by_passes[key] for name, key in keys.items() if key in by_passes}

    def _drop_same_file(self, trial: Trial) -> None:
        own = trial.candidate
        for other in self.state.trials:
            c = other.candidate
            if other is trial or other.status != RACING or other.file_sha256 != trial.file_sha256:
                continue
            if (c.settings, c.threads) == (own.settings, own.threads):
                trial.leave(SAME, f"the same file as {other.label}")

    def _expand(self) -> None:
        """Add the variants of the formats that are still there."""
        for trial in self.state.racing:
            bundle = self._bundle(trial)
            found = [p["name"] for p in bundle.manifest["passes"] if p["rewritten"]]
            backend = self._entry(trial).record.backend
            known = {t.label for t in self.state.trials}
            for candidate in variants(trial.candidate, backend, found, self.threads):
                if candidate.label not in known:
                    self.state.trials.append(Trial(candidate))
        self.state.expanded = True
        self.state.save()

    # -- races -------------------------------------------------------------------------------------

    def _race_s(self, divisor: float) -> float:
        return min(self.left_s, max(LEAST_RACE_S, self.left_s / divisor))

    def _race(self, seconds: float) -> None:
        """Time all that are in the race, their rounds interleaved."""
        racing, number = self.state.racing, self.state.stages
        counts = list(dict.fromkeys(t.candidate.threads for t in racing))
        slices = 1 if len(counts) == 1 else 4  # threads are the job's: jobs take turns instead
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
        with self._spending("measuring_s"):
            told: list[tuple[Trial, Result, int]] = []
            for part in range(slices):
                told += [(t, r, part) for t, r in self._jobs(racing, counts, schedule)]
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
        entries = {trial.label: self._entry(trial) for trial in racing}
        results: dict[str, Result] = {}

        def report(entry: Entry, result: Result, settled: bool) -> None:
            results[entry.id] = result

        groups = [
            Group(tuple(e for e in entries.values() if e.record.threads == count), count)
            for count in counts
        ]
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        settings = Settings(schedule, self.seed, memory=False, command=command)
        hasty: Any = _Hasty(self.device, max(1.0, self.left_s))
        work = DeviceRun(hasty, groups, settings, report, self.progress)
        alarm = threading.Timer(max(LEAST_RACE_S, self.left_s), work.stop)
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
            raise CheckError(f"{self.source.name}: every candidate is wrong: {message}")
        raise DeviceError(f"{self.device.name}: nothing was measured: {message}", hint=hint)

    def _bundle(self, trial: Trial) -> Bundle:
        assert trial.bundle is not None
        return Bundle.open(self.state.folder / trial.bundle)

    def _entry(self, trial: Trial) -> Entry:
        candidate, bundle, profile = trial.candidate, self._bundle(trial), self.device.profile
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

    # -- judging -----------------------------------------------------------------------------------

    def _order(self) -> list[Trial]:
        by_label = {trial.label: trial for trial in self.state.racing}
        rounds = {label: trial.rounds for label, trial in by_label.items()}
        return [by_label[label] for label in fastest(list(by_label), rounds)]

    def _verdicts(self) -> tuple[Trial, dict[str, Verdict]]:
        """The fastest, and every other one against it."""
        leader, *others = self._order()
        return leader, {t.label: judge(t.rounds, leader.rounds) for t in others}

    def _decided(self) -> bool:
        """Whether nothing is open any more; then says how it ended."""
        if not self.state.racing:
            reasons = "; ".join(f"{t.label}: {t.reason}" for t in self.state.trials)
            raise UnavailableError(f"no candidate is left: {reasons}")
        if len(self.state.racing) == 1:
            only = self.state.racing[0]
            self.ended = (
                "significant" if any(t.status == LOST for t in self._measured()) else "only"
            )
            return bool(only.samples)
        _, verdicts = self._verdicts()
        words = {verdict.word for verdict in verdicts.values()}
        if words <= {"slower"}:
            self.ended = "significant"
        elif words <= {"slower", "the same"}:
            self.ended = "no difference"
        else:
            self.ended = "budget"
        return self.ended != "budget"

    def _measured(self) -> list[Trial]:
        return [trial for trial in self.state.trials if trial.samples]

    def _halve(self) -> None:
        """Those that are slower leave, and the slower half does; two at least stay."""
        if len(self.state.racing) < 2:
            return
        leader, verdicts = self._verdicts()
        for trial in self.state.racing:
            if trial is not leader and verdicts[trial.label].word == "slower":
                trial.leave(LOST, _slower(verdicts[trial.label], leader))
        order = self._order()
        for trial in order[max(2, ceil(len(order) / 2)) :]:
            verdict = verdicts.get(trial.label, Verdict("open"))
            trial.leave(LOST, f"in the slower half of race {self.state.stages}; {_told(verdict)}")
        self.state.save()

    # -- the end -----------------------------------------------------------------------------------

    def _winner(self) -> tuple[Trial, list[Trial]]:
        """The plainest of those not told apart from the fastest, and the others of these."""
        leader, verdicts = self._verdicts()
        tied = [leader]
        for trial in self.state.racing:
            verdict = verdicts.get(trial.label)
            near = verdict and verdict.ratio and verdict.ratio <= 1 + THRESHOLD
            if verdict and (verdict.word == "the same" or (verdict.word == "open" and near)):
                tied.append(trial)
        usual, order = default_format(self.device.profile), self.state.trials
        tied.sort(
            key=lambda t: (t.candidate.plainness + (t.candidate.format != usual), order.index(t))
        )
        return tied[0], tied[1:]

    def finish(self, left_out: Mapping[str, str]) -> Tuned:
        """Write the winner's bundle and ``tune.json``; keep what was found for later exports."""
        winner, tied = self._winner()
        for trial in self.state.racing:
            if trial is winner:
                trial.status = "won"
                continue
            verdict = judge(trial.rounds, winner.rounds)
            said = "no difference shown, and not plainer; " if trial in tied else ""
            trial.leave(LOST, said + _told(verdict))
        made = self._bundle(winner)
        destination = self.output / made.path.name
        with write_bundle(destination) as folder:
            shutil.copytree(made.path, folder, dirs_exist_ok=True)
        report = self._report(winner, tied, left_out, destination)
        file = self.output / "tune.json"
        with writing(file):
            write_atomically(file, json.dumps(report, indent=1))
        places = list(dict.fromkeys([self.device.name, self.device.profile.name]))
        finding = {k: report[k] for k in ("created", "edgevit", "model", "device", "ended")}
        keep_tuned(self.source, places, {**finding, "winner": report["winner"]})
        self.state.remove()
        return Tuned(Bundle.open(destination), report, file)

    def _report(
        self, winner: Trial, tied: list[Trial], left_out: Mapping[str, str], destination: Path
    ) -> dict[str, Any]:
        from edgevit.versions import tool_versions

        state = self.state
        candidates = []
        for trial in state.trials:
            told = judge(trial.rounds, winner.rounds).to_json() if trial.samples else None
            candidates.append({**trial.to_json(), "bundle": None, "against_winner": told})
        return {
            "schema_version": SCHEMA_VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "edgevit": tool_versions()["edgevit"],
            "model": dict(self.source.identity),
            "inputs": [spec.to_json() for spec in self.source.inputs],
            "seed": self.seed,
            "device": {"name": self.device.name, "profile": self.device.profile.name},
            "context": state.context,
            "ended": self.ended,
            "threshold": THRESHOLD,
            "budget_s": self.budget_s,
            "exporting_s": round(state.exporting_s, 3),
            "measuring_s": round(state.measuring_s, 3),
            "races": state.stages,
            "winner": {**winner.candidate.to_json(), "bundle": destination.name,
                       "median_ms": winner.median_ms, "tied": [t.label for t in tied]},
            "left_out": dict(left_out),
            "candidates": candidates,
        }  # fmt: skip


def _backend(bundle: Bundle, format_name: str, device: Device) -> str:
    """What runs the file there unless told otherwise, as :func:`entries_of` has it."""
    (entry,) = entries_of(
        bundle, device.profile, [format_name], device=device.name,
        batch=bundle.manifest["batch"]["size"], options={}, runtime=None, progress=Progress(),
    )  # fmt: skip
    return entry.record.backend


def _slower(verdict: Verdict, leader: Trial) -> str:
    return f"slower than {leader.label}: {_told(verdict)}"


def _told(verdict: Verdict) -> str:
    if verdict.ratio is None:
        return "no common rounds"
    words = f"{verdict.ratio:.3f} of its time in {verdict.rounds} rounds"
    if verdict.interval is None:
        return words
    low, high = verdict.interval
    return f"{words} ({low:.3f} to {high:.3f})"


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
