"""One device's part of a bench.

Files that are compared share a job, so that their rounds are interleaved and whatever happens to
the machine happens to all; such a group is what an accident can cost at most. Before it, memory is
measured file by file in runs of its own, where a file that brings the agent down is found out
before it can take others with it.

    connection lost      what was finished stays; the rest of the group is run once more
    agent dies on a file that file has failed; the rest of the group is run without it
    agent dies in rounds nobody knows on which file: the rest is run one by one
    device is gone       what is left has failed, with the reason, and can be resumed
    device has no room   the files that it cannot take have failed, and can be resumed
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devices.base import Device, Event, Job, Schedule, Session
from edgevit.errors import DeviceError, RefusedError
from edgevit.measure import events as reading
from edgevit.measure.record import Context
from edgevit.measure.record import Device as DeviceRecord
from edgevit.measure.results import Result, current_context
from edgevit.progress import Progress
from edgevit.verbs.subjects import Entry

__all__ = ["DeviceRun", "Group", "Settings", "group_entries"]

#: So many files at most share a job whatever they are.
TOGETHER = 8
#: Seconds to wait before each attempt to reach a device again that was lost.
PATIENCE_S: Sequence[float] = (0, 3, 10, 20, 30)
#: Kinds of error events: the way to the device is gone; its agent is.
CUT = frozenset({"connection"})
DEAD = frozenset({"crash", "hang", "protocol"})

Report = Callable[[Entry, Result, bool], None]


@dataclass(frozen=True)
class Settings:
    """What all measurements of a bench have in common."""

    schedule: Schedule
    seed: int
    memory: bool
    command: str
    suite: str | None = None


@dataclass(frozen=True)
class Group:
    """Files that share a job, all with the same thread count."""

    entries: tuple[Entry, ...]
    threads: int


def group_entries(entries: Sequence[Entry]) -> list[Group]:
    """By thread count; all together if they are few, else with what they are compared with."""
    groups = []
    for threads in dict.fromkeys(e.record.threads for e in entries):
        alike = [e for e in entries if e.record.threads == threads]
        words = dict.fromkeys(e.compared for e in alike)
        parts = [alike] if len(alike) <= TOGETHER else [
            [e for e in alike if e.compared == word] for word in words
        ]  # fmt: skip
        groups += [Group(tuple(part), threads) for part in parts]
    return groups


@dataclass(frozen=True)
class _Accident:
    """How a job broke off: the word for it, what was said, and the file it happened on."""

    kind: str
    message: str
    culprit: str | None


@dataclass
class DeviceRun:
    """The measurements on one device, in a thread of their own.

    Args:
        device: to be opened.
        groups: what to measure, in order.
        settings: how.
        report: takes an entry, its result, and whether the measurement is settled.
        progress: told under the device's name.
    """

    device: Device
    groups: Sequence[Group]
    settings: Settings
    report: Report
    progress: Progress
    #: Why the device was given up, or what went wrong here.
    error: BaseException | None = None
    #: Whether it was there at least once.
    reached: bool = False
    #: Set when it has ended, and everything is reported.
    over: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _session: Session | None = None
    _places: dict[tuple[Path, str], str] = field(default_factory=dict)
    _done: int = 0
    _reported: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Measure everything; never raises, see :attr:`error`."""
        try:
            self._connect()
            for group in self.groups:
                if not self._stop.is_set():
                    self._measure(group)
        except DeviceError as error:
            self.error = error
            try:
                self._give_up(error)
            except Exception as worse:
                self.error = worse
        except BaseException as error:
            self.error = error
        finally:
            self.abandon()
            self.over.set()

    def stop(self) -> None:
        """End soon; what is measured is reported. May be called from any thread."""
        self._stop.set()
        self._tell_session_to_stop()

    def abandon(self) -> None:
        """Let go of the device at once. May be called from any thread."""
        self._stop.set()
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Exception):
                session.close()

    # -- a group -----------------------------------------------------------------------------------

    def _measure(self, group: Group) -> None:
        group = Group(tuple(self._brought(group.entries)), group.threads)
        left, weighed = self._weigh(group) if self.settings.memory else (list(group.entries), {})
        retried = False
        while left and not self._stop.is_set():
            events, context = self._run("time", left, group.threads)
            accident = _accident(events)
            lost = _lost(events, left, accident)
            for entry in left:
                if entry not in lost:
                    self._conclude(entry, events, weighed.get(entry.id, ()), context)
            if accident is None or not lost:
                return
            if accident.kind in CUT:
                self._reconnect(accident, again=retried)
                retried = True
            elif accident.culprit is None:
                self._one_by_one(lost, group.threads, weighed)
                return
            left = lost

    def _brought(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries whose files are on the device; those that it refuses have failed."""
        kept = []
        for entry in entries:
            if self._stop.is_set():
                break
            try:
                self._place(entry)
            except RefusedError as error:
                self._tell(error)
                self._conclude(entry, [_error_event("refused", error)], (), self._context())
                continue
            except DeviceError:
                pass  # the job finds out, and reaches the device again
            kept.append(entry)
        return kept

    def _one_by_one(
        self, entries: Sequence[Entry], threads: int, weighed: Mapping[str, Sequence[Event]]
    ) -> None:
        self.progress.note(
            f"{self.device.name}: the agent died while {len(entries)} files were timed together; "
            "timing them one by one"
        )
        for entry in entries:
            if self._stop.is_set():
                return
            events, context = self._run("time", [entry], threads)
            accident = _accident(events)
            if accident is not None and accident.kind in CUT:
                self._reconnect(accident, again=False)
                events, context = self._run("time", [entry], threads)
            self._conclude(entry, events, weighed.get(entry.id, ()), context)

    def _weigh(self, group: Group) -> tuple[list[Entry], dict[str, list[Event]]]:
        """The files that the agent survived, and what it told of their memory."""
        kept: list[Entry] = []
        weighed: dict[str, list[Event]] = {}
        for entry in group.entries:
            if self._stop.is_set():
                break
            events, context = self._run("memory", [entry], group.threads)
            accident = _accident(events)
            if accident is not None and accident.kind in CUT:
                self._reconnect(accident, again=False)
                events, context = self._run("memory", [entry], group.threads)
                accident = _accident(events)
            if accident is not None and accident.kind in DEAD:
                self._conclude(entry, events, (), context)
            else:
                weighed[entry.id] = events
                kept.append(entry)
        return kept, weighed

    # -- a job -------------------------------------------------------------------------------------

    def _run(
        self, mode: str, entries: Sequence[Entry], threads: int
    ) -> tuple[list[Event], Context]:
        """The events of a job, and its circumstances; a lost device is an event as well."""
        events: list[Event] = []
        context = self._context()
        try:
            assert self._session is not None
            files = tuple(entry.on_device(self._place(entry)) for entry in entries)
            job = Job(mode, files, threads, self.settings.schedule)
            meter = _Meter(job)
            detail = _detail(mode, entries, threads)
            self._advance(0.0, detail)
            for event in self._session.run(job):
                events.append(event)
                if self._stop.is_set():
                    self._tell_session_to_stop()
                if mode == "time":
                    self._advance(meter.add(event) * len(entries), detail)
        except RefusedError:
            raise
        except DeviceError as error:
            events.append(_error_event("connection", error))
        if self._stop.is_set() and _accident(events) is not None:
            events[-1] = {"event": "done", "stopped": True}  # it broke off because we left
        return events, context

    def _context(self) -> Context:
        """The circumstances of a job that starts now."""
        device, settings = self.device, self.settings
        record = DeviceRecord(device.name, device.profile.name, getattr(device, "emulated", False))
        return current_context(
            record, command=settings.command, seed=settings.seed, suite=settings.suite
        )

    def _place(self, entry: Entry) -> str:
        """Where the entry's bundle is on the device, with its own file; pushed at its first use."""
        key = (entry.bundle.path, entry.record.format)
        if key not in self._places:
            assert self._session is not None
            self._places[key] = self._session.push(entry.bundle.path, entry.files)
        return self._places[key]

    def _conclude(
        self, entry: Entry, events: Sequence[Event], weighed: Sequence[Event], context: Context
    ) -> None:
        """Report what the events make of an entry."""
        own = [event for event in events if event.get("id") in (None, entry.id)]
        asked = reading.Job(
            context,
            {entry.id: entry.record},
            self.settings.schedule.to_json(),
            {entry.id: entry.tolerance},
            self.device.profile.throttle_point_c,
        )
        (result,) = reading.result_from_events(own, asked, memory_events=weighed)
        failed = any(e["event"] == "error" and e.get("id") == entry.id for e in own)
        settled = result.status in ("ok", "unstable", "mismatch") or (
            failed and result.status == "failed" and not _is_cut(own)
        )
        self._report(entry, result, settled)

    def _report(self, entry: Entry, result: Result, settled: bool) -> None:
        self._done += 1
        self._reported.add(id(entry))
        self.report(entry, result, settled)
        self._advance(0.0, f"{entry.id}, {_threads(entry.record.threads)}: {_outcome(result)}")

    def _give_up(self, error: DeviceError) -> None:
        """Everything that is left has failed, for that reason."""
        if self._stop.is_set():
            return
        self._tell(error)
        context = self._context()
        for group in self.groups:
            for entry in group.entries:
                if id(entry) not in self._reported:
                    self._conclude(entry, [_error_event("connection", error)], (), context)

    def _tell(self, error: DeviceError) -> None:
        hint = f"; {error.hint}" if error.hint else ""
        # Most errors name their device themselves.
        named = str(error).startswith(f"{self.device.name}: ")
        where = "" if named else f"{self.device.name}: "
        self.progress.note(f"{where}{error}{hint}")

    # -- the device --------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._places.clear()
        self._session = self.device.open()
        self.reached = True
        if self._stop.is_set():
            self.abandon()

    def _reconnect(self, accident: _Accident, *, again: bool) -> None:
        """Reach the device once more; it may be starting up again.

        Raises:
            DeviceError: it stays away, or was lost twice in one group.
        """
        if self._stop.is_set():
            return
        lost = DeviceError(accident.message, hint="the same command goes on from here")
        if again:
            raise lost
        self._tell(DeviceError(accident.message, hint="reaching it again"))
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Exception):
                session.close()
        for delay in PATIENCE_S:
            self._stop.wait(delay)
            if self._stop.is_set():
                return
            try:
                self._connect()
                return
            except DeviceError as error:
                lost = error
        raise lost

    def _tell_session_to_stop(self) -> None:
        session = self._session
        if session is not None:
            with contextlib.suppress(Exception):
                session.stop()

    def _advance(self, done: float, detail: str) -> None:
        total = sum(len(group.entries) for group in self.groups)
        self.progress.advance(self.device.name, min(self._done + done, total), total, detail)


class _Meter:
    """How far a job has come, from 0 to 1."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.runs: dict[str, int] = {}
        self.ns: dict[str, float] = {}

    def add(self, event: Event) -> float:
        """Take an event in."""
        if event["event"] == "samples":
            identity = event["id"]
            self.runs[identity] = self.runs.get(identity, 0) + len(event["ns"])
            timed = sum(event["ns"]) * event["inner"]
            self.ns[identity] = self.ns.get(identity, 0.0) + timed
        shares = [self._share(subject.id) for subject in self.job.subjects]
        return min(0.99, sum(shares) / max(1, len(shares)))

    def _share(self, identity: str) -> float:
        schedule, runs = self.job.schedule, self.runs.get(identity, 0)
        if schedule.runs is not None:
            return min(1.0, runs / schedule.runs)
        seconds = self.ns.get(identity, 0.0) / 1e9
        capped = seconds / max(schedule.max_seconds, 1e-9)
        if schedule.interval is not None:  # nobody knows when it will be narrow
            return min(1.0, capped)
        enough = min(runs / schedule.min_runs, seconds / max(schedule.min_seconds, 1e-9))
        return min(1.0, max(enough, capped))


def _accident(events: Sequence[Event]) -> _Accident | None:
    """How the job broke off; None if it ended in good order."""
    last = events[-1] if events else {}
    if last.get("event") == "error" and last.get("kind") in CUT | DEAD:
        return _Accident(last["kind"], str(last["message"]), last.get("id"))
    return None


def _lost(
    events: Sequence[Event], entries: Sequence[Entry], accident: _Accident | None
) -> list[Entry]:
    """The entries that an accident took: not finished, not failed by themselves, not its cause."""
    if accident is None:
        return []
    told = {e.get("id") for e in events if e["event"] == "error" and e.get("kind") not in CUT}
    finished = {e["id"] for e in events if e["event"] == "samples" and e.get("finished") is True}
    over = told | finished | ({accident.culprit} if accident.kind in DEAD else set())
    if accident.kind in DEAD and len(entries) == 1:
        return []
    return [entry for entry in entries if entry.id not in over]


def _is_cut(events: Sequence[Event]) -> bool:
    accident = _accident(events)
    return accident is not None and accident.kind in CUT


def _error_event(kind: str, error: DeviceError) -> Event:
    return {"event": "error", "id": None, "kind": kind, "message": str(error)}


def _detail(mode: str, entries: Sequence[Entry], threads: int) -> str:
    what = entries[0].id if len(entries) == 1 else f"{len(entries)} files"
    return f"{'memory of' if mode == 'memory' else 'timing'} {what}, {_threads(threads)}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _outcome(result: Result) -> str:
    shown = result.status in ("ok", "unstable") and not result.context.device.emulated
    if shown and result.statistics is not None:
        return f"{result.status}, {result.statistics.median_ms:.4g} ms"
    return result.status
