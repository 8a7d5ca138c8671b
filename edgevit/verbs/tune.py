"""Tune: find the fastest way to run a model on a device, within a budget of seconds.

    default passes in every format --race--> the better half of the formats
    --their variants (settings, passes, layout)--> races, each with the better half of the last

Files come in the order of what they cost; the graph is captured once, and rewritten once for each
set of passes (:mod:`edgevit.verbs.tune_files`). In a race all files share a job, so that their
rounds are interleaved (:mod:`edgevit.verbs.tune_races`, :mod:`edgevit.tuning.judge`). The
fastest is taken, or the plainest of those that are as fast. It ends when every other one in the
race is shown to be slower, or not faster by more than what may be regretted, or when the budget is
spent. Of those that left with the slower half nothing more is known than their rounds.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from math import ceil, inf, log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.base import Device
from devices.resolve import find_device
from edgevit.bundle import Bundle, held, write_bundle
from edgevit.errors import MissingExtraError, OptionError, UnavailableError, UsageError
from edgevit.measure.results import write_atomically
from edgevit.progress import Progress
from edgevit.source import Source
from edgevit.tuning.judge import ALIKE, REGRET, Verdict, fastest, judge
from edgevit.tuning.space import Candidate, usable_formats, variants
from edgevit.tuning.state import LEAST_RACE_S, LOST, OUT, State, Trial, writing
from edgevit.tuning.store import keep_tuned
from edgevit.verbs.export import make_source
from edgevit.verbs.journal import digest
from edgevit.verbs.targets import default_format, fit_formats
from edgevit.verbs.tune_files import Files
from edgevit.verbs.tune_races import Races

if TYPE_CHECKING:
    from torch import nn

    from edgevit.source import BlockSpec

__all__ = ["SCHEMA_VERSION", "Tuned", "parse_budget", "tune"]

#: Of ``tune.json``.
SCHEMA_VERSION = 1


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
        state = State.open(folder, key, budget_s=budget_s, fresh=fresh)
        if state.exporting_s or state.stages:
            bar.note(
                f"goes on with a tuning that has spent {state.spent_s:.0f} s; --fresh starts over"
            )
        source, rest = make_source(model, batch=batch, seed=seed, **source_options)
        if rest:
            raise UsageError(f"tuning decides about {', '.join(rest)}")
        tuning = _Tuning(source, found, state, folder, batch, seed, counts, bar)
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
    batch: int
    seed: int
    threads: Sequence[int]
    progress: Progress
    ended: str = ""

    @cached_property
    def files(self) -> Files:
        return Files(self.source, self.device.profile, self.state, self.seed, self.progress)

    @cached_property
    def races(self) -> Races:
        return Races(self.device, self.state, self.files, self.batch, self.seed, self.progress)

    def run(self, formats: Sequence[str]) -> None:
        """Export and measure until it is decided."""
        state = self.state
        if not state.trials:
            state.trials = [Trial(Candidate(name, threads=self.threads[0])) for name in formats]
        self.files.make()
        if state.stages == 0 and len(state.racing) > 1:
            self.races.run(self._race_s(4.0))
            self._halve()
        if not state.expanded:
            self._expand()
        self.files.make()
        while not self._decided() and self.state.left_s > 2 * LEAST_RACE_S:
            self.races.run(self._race_s(log2(max(2, len(state.racing))) + 0.5))
            if not self._decided():
                self._halve()
        if not any(trial.samples for trial in state.racing):
            raise UnavailableError(
                f"{state.budget_s:.0f} s are too few: {state.exporting_s:.0f} s went to "
                "exporting, and no round was measured",
                hint="give a larger --budget",
            )

    def _expand(self) -> None:
        """Add the variants of the formats that are still there."""
        for trial in self.state.racing:
            bundle = self.files.bundle(trial)
            found = [p["name"] for p in bundle.manifest["passes"] if p["rewritten"]]
            backend = self.races.entry(trial).record.backend
            known = {t.label for t in self.state.trials}
            for candidate in variants(trial.candidate, backend, found, self.threads):
                if candidate.label in known:
                    continue
                self.state.trials.append(Trial(candidate))
                try:
                    self.files.plan(candidate)
                except OptionError as error:
                    self.state.trials[-1].leave(OUT, f"the device cannot load it: {error}")
        self.state.expanded = True
        self.state.save()

    def _race_s(self, divisor: float) -> float:
        return min(self.state.left_s, max(LEAST_RACE_S, self.state.left_s / divisor))

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
        winner, _ = self._winner()
        racing = [trial for trial in self.state.racing if trial is not winner]
        lost = [trial for trial in self.state.trials if trial.samples and trial.status == LOST]
        words = [judge(trial.rounds, winner.rounds).word for trial in (*racing, *lost)]
        if not words:
            self.ended = "only"
        elif set(words[: len(racing)]) <= {"slower", "the same", "not faster"}:
            self.ended = "significant" if set(words) == {"slower"} else "none faster"
        else:
            self.ended = "budget"
        return self.ended != "budget" and bool(winner.samples)

    def _halve(self) -> None:
        """Those that are slower leave, and the slower half does, but for the plainest of them.

        Where nothing is shown, that one is taken in the end; of the fastest's format the plainest,
        too. Two at least stay.
        """
        if len(self.state.racing) < 2:
            return
        leader, verdicts = self._verdicts()
        for trial in self.state.racing:
            if trial is not leader and verdicts[trial.label].word == "slower":
                trial.leave(LOST, _slower(verdicts[trial.label], leader))
        order = self._order()
        alike = [trial for trial in order if trial.candidate.format == leader.candidate.format]
        plainest = [min(group, key=self._plainness) for group in (order, alike)]
        for trial in order[max(2, ceil(len(order) / 2)) :]:
            if any(trial is one for one in plainest):
                continue
            verdict = verdicts.get(trial.label, Verdict("open"))
            trial.leave(LOST, f"in the slower half of race {self.state.stages}; {_told(verdict)}")
        self.state.save()

    # -- the end -----------------------------------------------------------------------------------

    def _winner(self) -> tuple[Trial, list[Trial]]:
        """The plainest of those that are as fast as the fastest, and the others of these."""
        leader, verdicts = self._verdicts()
        tied = [leader]
        for trial in self.state.racing:
            verdict = verdicts.get(trial.label)
            if verdict and verdict.word != "slower" and (verdict.ratio or inf) <= 1 + ALIKE:
                tied.append(trial)
        tied.sort(key=self._plainness)
        return tied[0], tied[1:]

    def _plainness(self, trial: Trial) -> tuple[int, int]:
        """The less, the plainer: what differs from the default, then the order they came in."""
        unusual = trial.candidate.format != default_format(self.device.profile)
        return trial.candidate.plainness + unusual, self.state.trials.index(trial)

    def finish(self, left_out: Mapping[str, str]) -> Tuned:
        """Write the winner's bundle and ``tune.json``; keep what was found for later exports."""
        winner, tied = self._winner()
        for trial in self.state.racing:
            if trial is winner:
                trial.status = "won"
                continue
            verdict = judge(trial.rounds, winner.rounds)
            said = "as fast, and not plainer; " if trial in tied else ""
            trial.leave(LOST, said + _told(verdict))
        made = self.files.bundle(winner)
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
            "alike": ALIKE,
            "regret": REGRET,
            "budget_s": state.budget_s,
            "exporting_s": round(state.exporting_s, 3),
            "measuring_s": round(state.measuring_s, 3),
            "races": state.stages,
            "winner": {**winner.candidate.to_json(), "bundle": destination.name,
                       "median_ms": winner.median_ms, "tied": [t.label for t in tied]},
            "left_out": dict(left_out),
            "candidates": candidates,
        }  # fmt: skip


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
