"""What a device is: something that opens sessions, in which jobs run and tell events.

A job holds subjects (files to check, time or weigh) and a schedule. The agent (``devices.agent``)
runs it where the model runs; what it tells is listed there. Local and remote sessions look alike.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from devices.agent import PROTOCOL
from devices.profile import DeviceProfile
from edgevit.errors import OptionError
from edgevit.registry import PluginRegistry

__all__ = [
    "MODES",
    "SILENCE_S",
    "Device",
    "Event",
    "Job",
    "Schedule",
    "Session",
    "Subject",
    "SubjectInput",
    "devices",
    "thread_environment",
]

#: One line that the agent tells; ``event`` names its kind, see :mod:`devices.agent`.
Event: TypeAlias = dict[str, Any]

MODES = ("facts", "check", "time", "memory", "profile", "peak")

#: Seconds without any event after which an agent counts as hung.
SILENCE_S = 300.0


@dataclass(frozen=True)
class SubjectInput:
    """One input of a file.

    Args:
        name: as the file or its signature calls it.
        shape: sizes in the program's layout, batch first.
        layout: ``"NCHW"`` or ``"NHWC"``, what the file takes; None if it is no image.
        dtype: numpy's name of the element type.
    """

    name: str
    shape: tuple[int, ...]
    layout: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _demand(self.layout in (None, "NCHW", "NHWC"), "layout", "NCHW or NHWC", self.layout)
        fits = self.layout != "NHWC" or len(self.shape) == 4
        _demand(fits, "shape", "four sizes for an image", self.shape)

    def to_json(self) -> dict[str, Any]:
        """As the job holds it."""
        return asdict(self) | {"shape": list(self.shape)}


@dataclass(frozen=True)
class Subject:
    """A file to check, time or weigh.

    Args:
        id: names it in events; unique in its job.
        backend: what runs it (``"onnxruntime"``, ``"tflite"``, ``"coreml"``, ``"torch"``).
        file: absolute path on the device.
        inputs: in the program's order.
        outputs: names, in the program's order.
        tolerance: share of each output's scale by which it may be off.
        sha256: of the file (:func:`edgevit.bundle.hash_file`); another file is refused.
        golden: absolute path of ``golden.npz`` on the device; None times it unverified, with noise.
        batch: rows of one inference; golden samples are repeated to fill it.
        options: the backend's own (``providers``, ``xnnpack``, ``compute_unit``, ...).
    """

    id: str
    backend: str
    file: str
    inputs: tuple[SubjectInput, ...]
    outputs: tuple[str, ...]
    tolerance: float
    sha256: str | None = None
    golden: str | None = None
    batch: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _demand(bool(self.inputs), "inputs", "at least one", self.inputs)
        _demand(bool(self.outputs), "outputs", "at least one", self.outputs)
        _demand(self.batch >= 1, "batch", "at least 1", self.batch)
        _demand(self.tolerance > 0, "tolerance", "more than 0", self.tolerance)

    def to_json(self) -> dict[str, Any]:
        """As the job holds it."""
        return {
            "id": self.id,
            "backend": self.backend,
            "file": self.file,
            "sha256": self.sha256,
            "golden": self.golden,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [{"name": name} for name in self.outputs],
            "tolerance": {"relative": self.tolerance},
            "batch": self.batch,
            "options": dict(self.options),
        }


@dataclass(frozen=True)
class Schedule:
    """How long to measure; seconds are those inside timed regions.

    Args:
        runs: exactly that many samples of every subject, in ten rounds or more; None goes by the
            next three.
        min_runs: samples at least.
        min_seconds: time at least.
        max_seconds: time after which a subject ends with what it has.
        interval: go on, after ``min_runs`` and ``min_seconds``, until the interval of the median is
            that share of the median wide; None does not look.
        warmup_runs: inferences at least before anything is timed.
        warmup_seconds: time at least before anything is timed.
        block_seconds: about how long a subject is timed in one round.
        inner_seconds: shorter inferences share a timed region, as many as fill this.
        seed: of the order of subjects in each round.
    """

    runs: int | None = None
    min_runs: int = 50
    min_seconds: float = 2.0
    max_seconds: float = 60.0
    warmup_runs: int = 10
    warmup_seconds: float = 1.0
    block_seconds: float = 0.1
    inner_seconds: float = 0.001
    seed: int = 0
    interval: float | None = None

    def __post_init__(self) -> None:
        narrow = self.interval is None or 0 < self.interval < 1
        _demand(narrow, "interval", "a share of the median between 0 and 1", self.interval)
        _demand(self.runs is None or self.runs >= 1, "runs", "at least 1", self.runs)
        _demand(self.min_runs >= 1, "min_runs", "at least 1", self.min_runs)
        _demand(self.block_seconds > 0, "block_seconds", "more than 0", self.block_seconds)
        for name in ("min_seconds", "warmup_runs", "warmup_seconds", "inner_seconds"):
            _demand(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        capped = self.max_seconds >= self.min_seconds
        expected = f"at least min_seconds ({self.min_seconds})"
        _demand(capped, "max_seconds", expected, self.max_seconds)

    def to_json(self) -> dict[str, Any]:
        """As the job holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """What one process of the agent does.

    Args:
        mode: ``"check"``, ``"time"``, ``"memory"`` and ``"profile"`` (one subject), ``"facts"`` and
            ``"peak"`` (none).
        subjects: the files.
        threads: how many each runtime may use.
        schedule: how long to measure.
        wait_s: how long to wait for another measurement on the device to end.
        id: names the job.
    """

    mode: str
    subjects: tuple[Subject, ...] = ()
    threads: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    wait_s: float = 600.0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        _demand(self.mode in MODES, "mode", " or ".join(MODES), self.mode)
        _demand(self.threads >= 1, "threads", "at least 1", self.threads)
        ids = [subject.id for subject in self.subjects]
        _demand(len(set(ids)) == len(ids), "subjects", "different ids", ids)
        if self.mode in ("memory", "profile"):
            _demand(len(ids) == 1, "subjects", f"one, in a {self.mode} job", ids)
        elif self.mode not in ("facts", "peak"):
            _demand(bool(ids), "subjects", "at least one", ids)

    def to_json(self) -> dict[str, Any]:
        """As the agent reads it."""
        return {
            "protocol": PROTOCOL,
            "id": self.id,
            "mode": self.mode,
            "threads": self.threads,
            "wait_seconds": self.wait_s,
            "subjects": [subject.to_json() for subject in self.subjects],
            "schedule": self.schedule.to_json(),
        }


class Session(Protocol):
    """A device at hand; a context manager that leaves nothing running behind."""

    def __enter__(self) -> Session: ...

    def __exit__(self, *_: object) -> None: ...

    def facts(self) -> dict[str, Any]:
        """The facts event: machine, system, Python, runtimes, clock, and the conditions now.

        Raises:
            DeviceError: the agent cannot run there.
        """
        ...

    def push(self, folder: Path, parts: Iterable[str] | None = None) -> str:
        """Bring a bundle to the device; its path there, for the subjects of jobs.

        Args:
            folder: the bundle.
            parts: files and folders in it that are needed there; all if None.

        Raises:
            RefusedError: the device cannot keep it.
            DeviceError: the device is gone.
        """
        ...

    def run(self, job: Job, *, silence_s: float = SILENCE_S) -> Iterator[Event]:
        """Run a job and yield its events as they come.

        The last is ``done``, or an ``error`` of kind ``"crash"`` (the agent died), ``"hang"`` (no
        event for ``silence_s``), ``"protocol"``, or ``"connection"`` (the way to the device is
        gone). Leaving the loop early ends the agent.

        Raises:
            DeviceError: the agent cannot be started.
        """
        ...

    def stop(self) -> None:
        """Ask the running job to end; what it has measured still comes, then ``done``."""
        ...

    def close(self) -> None:
        """End what runs and let go of the device."""
        ...


class Device(Protocol):
    """A place where models run."""

    name: str
    #: A stand-in that runs the right thing at the wrong speed: its times are never shown.
    emulated: bool = False

    @property
    def profile(self) -> DeviceProfile:
        """What is known of it before it is reached."""
        ...

    def open(self) -> Session:
        """Reach the device.

        Raises:
            DeviceError: it does not answer.
        """
        ...


devices: PluginRegistry[Device] = PluginRegistry(
    "device", "edgevit.devices", listing="edgevit devices"
)


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that keep the libraries' thread pools to that size; they are read at start only."""
    names = ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "NUMEXPR_NUM", "VECLIB_MAXIMUM")
    return {f"{name}_THREADS": str(threads) for name in names}


def _demand(holds: bool, option: str, expected: str, got: object) -> None:
    if not holds:
        raise OptionError(option, expected=expected, got=got)
