"""The modes of a job that need numpy and mostly a runtime: check, time, memory, profile, peak."""

import gc
from typing import Any, Callable, Dict, List, Optional

from . import lock, memory, peak
from .clock import clock_ns
from .conditions import conditions
from .control import Control, EventStream
from .errors import AgentError, optional, require
from .profiling import profile
from .subjects import Subject, failing_as
from .timing import Rounds, Schedule, Stopwatch

MEMORY_RUNS = 3
#: How often the host hears of work that goes on and on, such as the build of an engine.
PULSE_NS = 20e9


class Job:
    """One job: its subjects go through the stages one by one, and one that fails is left behind."""

    def __init__(self, job: Dict[str, Any], events: EventStream, control: Control) -> None:
        threads = require(job, "threads", int, "the job")
        self._threads = threads
        self._schedule = Schedule.from_json(job.get("schedule") or {})
        self._patience = float(job.get("wait_seconds", 600))
        self._holder = optional(job, "holder", dict, "the job")
        self._emit = events.emit
        self._control = control
        seed = self._schedule.seed
        specs = require(job, "subjects", list, "the job")
        self._subjects = [Subject(spec, threads, seed) for spec in specs]
        if len({subject.id for subject in self._subjects}) != len(specs):
            raise AgentError("protocol", "two subjects of the job have the same id")

    def check(self) -> None:
        """Load and check every subject."""
        self._survivors(self._open, self._subjects)

    def time(self) -> None:
        """Load, check, warm up and time every subject."""
        self._acquire()
        checked = self._survivors(self._open, self._subjects)
        if not checked:
            return
        self._tell_conditions("before", checked)
        watches: Dict[str, Stopwatch] = {}

        def warm_up(subject: Subject) -> None:
            watches[subject.id] = self._warm_up(subject)

        self._survivors(warm_up, checked)
        gc.collect()
        rounds = Rounds(
            list(watches.values()), self._schedule, self._emit, self._control.checkpoint
        )
        rounds.run()
        self._tell_conditions("after", checked)

    def memory(self) -> None:
        """Take the memory that one subject needs; nothing else may have been in this process."""
        if len(self._subjects) != 1:
            problem = "a memory job has one subject, not {}".format(len(self._subjects))
            raise AgentError("protocol", problem)
        self._acquire()
        self._survivors(self._remember, self._subjects)

    def profile(self) -> None:
        """Load and check one subject, and time its operators one by one."""
        if len(self._subjects) != 1:
            problem = "a profile job has one subject, not {}".format(len(self._subjects))
            raise AgentError("protocol", problem)
        self._acquire()
        opened = self._survivors(self._open, self._subjects)
        self._survivors(self._profile, opened)

    def peak(self) -> None:
        """What this machine reaches at best with that many threads."""
        self._acquire()
        self._emit("progress", id=None, stage="working")
        self._emit("peak", **peak.measure(self._threads, self._control.checkpoint))

    def _profile(self, subject: Subject) -> None:
        self._tell_conditions("before", [subject])
        self._emit("progress", id=subject.id, stage="warm-up")
        told = profile(subject, self._schedule, self._control.checkpoint)
        self._emit("profile", id=subject.id, **told)
        self._tell_conditions("after", [subject])

    def _survivors(
        self, stage: Callable[[Subject], None], subjects: List[Subject]
    ) -> List[Subject]:
        """The subjects that come through a stage; an error event for each of the others."""
        through = []
        for subject in subjects:
            self._control.checkpoint()
            try:
                stage(subject)
                through.append(subject)
            except AgentError as error:
                self._emit("error", id=subject.id, kind=error.kind, message=error.message)
        return through

    def _open(self, subject: Subject) -> None:
        self._emit("progress", id=subject.id, stage="load")
        subject.prepare(self._pulse(subject.id))
        load_ns = subject.load()
        self._control.checkpoint()
        first_ns = subject.first()
        self._tell_loaded(subject, load_ns, first_ns)
        self._check(subject)

    def _check(self, subject: Subject) -> None:
        if not subject.checkable:
            message = "no golden outputs came with this file: it is not verified here"
            self._emit("warning", id=subject.id, kind="unverified", message=message)
            return
        self._emit("progress", id=subject.id, stage="check")
        checked = subject.check(self._control.checkpoint)
        self._emit("checked", id=subject.id, **checked)
        if not checked["ok"]:
            raise AgentError("mismatch", checked["reason"])

    def _warm_up(self, subject: Subject) -> Stopwatch:
        self._emit("progress", id=subject.id, stage="warm-up")
        watch = subject.stopwatch()
        with failing_as("run"):
            warmed = watch.warm_up(self._schedule, self._control.checkpoint)
        self._emit("warmed", id=subject.id, **warmed)
        return watch

    def _remember(self, subject: Subject) -> None:
        subject.demand_memory()
        self._emit("progress", id=subject.id, stage="load")
        subject.prepare(self._pulse(subject.id))
        memory.forget_peak()
        baseline = memory.resident_bytes() or memory.peak_bytes()
        load_ns = subject.load()
        loaded = memory.resident_bytes()
        first_ns = subject.first()
        for _ in range(MEMORY_RUNS - 1):
            subject.first()
        peak = memory.peak_bytes()
        self._tell_loaded(subject, load_ns, first_ns)
        self._check(subject)
        self._emit(
            "memory",
            id=subject.id,
            method=memory.method(),
            baseline_bytes=baseline,
            loaded_bytes=loaded,
            peak_bytes=peak,
        )

    def close(self) -> None:
        """Let go of what the subjects hold outside this process."""
        for subject in self._subjects:
            subject.close()

    def _tell_loaded(
        self, subject: Subject, load_ns: Optional[int], first_ns: Optional[int]
    ) -> None:
        facts = subject.facts()
        self._emit("loaded", id=subject.id, load_ns=load_ns, first_ns=first_ns, **facts)
        for kind, message in subject.warnings():
            self._emit("warning", id=subject.id, kind=kind, message=message)

    def _tell_conditions(self, when: str, subjects: List[Subject]) -> None:
        """This machine's conditions, unless something runs elsewhere: then nothing is known."""
        apart = any(subject.apart for subject in subjects)
        self._emit("conditions", when=when, **({} if apart else conditions()))

    def _pulse(self, identity: str) -> Callable[[], None]:
        """For work that takes long: ends it if the host says so, and keeps the host from worry."""
        told = [clock_ns()]

        def pulse() -> None:
            self._control.checkpoint()
            if clock_ns() - told[0] > PULSE_NS:
                told[0] = clock_ns()
                self._emit("progress", id=identity, stage="working")

        return pulse

    def _acquire(self) -> None:
        """Have the device to ourselves, until this process ends."""
        told: List[bool] = []

        def waiting(holder: Dict[str, Any]) -> None:
            if not told:
                message = "{}; waiting for its end".format(lock.describe(holder))
                self._emit("warning", id=None, kind="busy", message=message, holder=holder)
            told.append(True)
            self._emit("progress", id=None, stage="waiting")

        lock.acquire(self._patience, self._control.wait, waiting, self._holder)
