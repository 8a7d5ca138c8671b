"""The modes of a job that need numpy and a runtime: check, time, memory."""

import gc
from typing import Any, Callable, Dict, List

from . import lock, memory
from .conditions import conditions
from .control import Control, EventStream
from .errors import AgentError, require
from .subjects import Subject, failing_as
from .timing import Rounds, Schedule, Stopwatch

MEMORY_RUNS = 3


class Job:
    """One job: its subjects go through the stages one by one, and one that fails is left behind."""

    def __init__(self, job: Dict[str, Any], events: EventStream, control: Control) -> None:
        threads = require(job, "threads", int, "the job")
        self._schedule = Schedule.from_json(job.get("schedule") or {})
        self._patience = float(job.get("wait_seconds", 600))
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
        self._emit("conditions", when="before", **conditions())
        watches: Dict[str, Stopwatch] = {}

        def warm_up(subject: Subject) -> None:
            watches[subject.id] = self._warm_up(subject)

        self._survivors(warm_up, checked)
        gc.collect()
        rounds = Rounds(
            list(watches.values()), self._schedule, self._emit, self._control.checkpoint
        )
        rounds.run()
        self._emit("conditions", when="after", **conditions())

    def memory(self) -> None:
        """Take the memory that one subject needs; nothing else may have been in this process."""
        if len(self._subjects) != 1:
            problem = "a memory job has one subject, not {}".format(len(self._subjects))
            raise AgentError("protocol", problem)
        self._acquire()
        self._survivors(self._remember, self._subjects)

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
        subject.prepare()
        load_ns = subject.load()
        self._control.checkpoint()
        first_ns = subject.first()
        facts = subject.facts()
        self._emit("loaded", id=subject.id, load_ns=load_ns, first_ns=first_ns, **facts)
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
        watch = Stopwatch(subject.id, subject.timed())
        with failing_as("run"):
            warmed = watch.warm_up(self._schedule, self._control.checkpoint)
        self._emit("warmed", id=subject.id, **warmed)
        return watch

    def _remember(self, subject: Subject) -> None:
        self._emit("progress", id=subject.id, stage="load")
        subject.prepare()
        memory.forget_peak()
        baseline = memory.resident_bytes() or memory.peak_bytes()
        load_ns = subject.load()
        loaded = memory.resident_bytes()
        first_ns = subject.first()
        for _ in range(MEMORY_RUNS - 1):
            subject.first()
        peak = memory.peak_bytes()
        facts = subject.facts()
        self._emit("loaded", id=subject.id, load_ns=load_ns, first_ns=first_ns, **facts)
        self._check(subject)
        self._emit(
            "memory",
            id=subject.id,
            method=memory.method(),
            baseline_bytes=baseline,
            loaded_bytes=loaded,
            peak_bytes=peak,
        )

    def _acquire(self) -> None:
        """Have the device to ourselves, until this process ends."""
        told: List[bool] = []

        def waiting() -> None:
            if not told:
                message = "another measurement runs on this device; waiting for its end"
                self._emit("warning", id=None, kind="busy", message=message)
            told.append(True)
            self._emit("progress", id=None, stage="waiting")

        lock.acquire(self._patience, self._control.wait, waiting)
