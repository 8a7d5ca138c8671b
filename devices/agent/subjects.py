"""One file of a job: the one expected, loaded, fed, and checked against its golden outputs."""

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from .backends import BACKENDS, make_backend
from .backends.base import APART, BESIDE
from .clock import clock_ns
from .errors import AgentError, Stopped, describe, optional, require
from .golden import Golden, OutputCheck, load_golden, noise, to_layout
from .timing import Stopwatch, ToldTimes

if TYPE_CHECKING:
    from .backends.base import Array


class Subject:
    """A model file on its way from the disk to the clock.

    The calls come in this order: :meth:`prepare`, :meth:`load`, :meth:`first`, :meth:`check`,
    :meth:`timed`. All raise AgentError with the kind of event that is due.

    Args:
        spec: the job's entry.
        threads: how many its runtime may use.
        seed: of the noise that stands in for missing golden tensors.
    """

    def __init__(self, spec: Dict[str, Any], threads: int, seed: int) -> None:
        self.id: str = require(spec, "id", str, "a subject")
        self._spec = validated(spec, "subject {!r}".format(self.id))
        self._threads = threads
        self._seed = seed
        self.batch: int = spec["batch"]

    def prepare(self, pulse: Callable[[], None]) -> None:
        """Check the file's hash, import the runtime, make the file ready to be loaded.

        Args:
            pulse: called again and again while a runtime is busy for long; raises to end it.
        """
        with failing_as("load"):
            verify_hash(self._spec["file"], self._spec.get("sha256"))
            self._backend = make_backend(self._spec, self._threads, pulse)
            self._backend.prepare()
            self._golden = self._read_golden()
            self._input = self._feed(self._golden.inputs_of(0, self.batch))

    def load(self) -> Optional[int]:
        """Load the file; the ns that took, without the runtime's import. None if nobody knows."""
        with failing_as("load"):
            start = clock_ns()
            told = self._backend.load()
            return told if self._backend.tells_times else clock_ns() - start

    def first(self) -> Optional[int]:
        """Run the first inference after loading; the ns it took. None if nobody knows."""
        with failing_as("run"):
            infer = self._backend.bind(self._input)
            start = clock_ns()
            result = infer()
            elapsed = clock_ns() - start
            told = self._backend.last_ns()
            self._first = self._backend.outputs(result)
        return told if self._backend.tells_times else elapsed

    def facts(self) -> Dict[str, Any]:
        """What ran it, for the loaded event."""
        backend = self._backend
        return {
            "runtime": backend.runtime(),
            "settings": backend.settings(),
            "region": backend.region,
        }

    def warnings(self) -> List[Tuple[str, str]]:
        """Kind and message of what the user has to know of how it runs, after the first run."""
        return self._backend.warnings()

    @property
    def apart(self) -> bool:
        """Whether it runs on another device, of which this machine's conditions tell nothing."""
        return self._backend.where == APART

    def demand_memory(self) -> None:
        """Refuse to tell the memory of what does not run in this process.

        Raises:
            AgentError: so it is.
        """
        places = {BESIDE: "in a program of its own", APART: "on another device"}
        name = self._spec["backend"]
        place = places.get(BACKENDS[name].where) if name in BACKENDS else None
        if place is not None:
            raise AgentError("unsupported", "{} runs {}".format(name, place))

    def close(self) -> None:
        """Let go of what outlives this process."""
        if hasattr(self, "_backend"):
            self._backend.close()

    @property
    def checkable(self) -> bool:
        """Whether golden outputs came with the file."""
        return bool(self._golden.outputs)

    def check(self, checkpoint: Callable[[], None]) -> Dict[str, Any]:
        """Run every golden sample; the checked event's fields."""
        names = [entry["name"] for entry in self._spec["outputs"]]
        tolerance = float(self._spec["tolerance"]["relative"])
        checks = [OutputCheck(name, tolerance) for name in names]
        reason: Optional[str] = None
        for sample in range(self._golden.samples):
            checkpoint()
            got = self._run(sample)
            if len(got) != len(names):
                reason = "{} outputs where {} were expected".format(len(got), len(names))
                break
            for place, check in enumerate(checks):
                check.add(got[place], self._golden.output_of(check.name, sample, self.batch))
        outputs = [] if reason else [check.result() for check in checks]
        reason = reason or next((o["reason"] for o in outputs if not o["ok"]), None)
        samples = self._golden.samples
        return {"ok": reason is None, "outputs": outputs, "samples": samples, "reason": reason}

    def timed(self) -> Callable[[], Any]:
        """One inference, for the clock: its batch holds the golden samples in turn."""
        with failing_as("run"):
            return self._backend.bind(self._feed(self._golden.mixed(self.batch)))

    def stopwatch(self) -> Stopwatch:
        """What times it: our clock, or the runtime's own where the file runs elsewhere."""
        infer = self.timed()
        if self._backend.tells_times:
            return ToldTimes(self.id, self._backend.measure)
        return Stopwatch(self.id, infer)

    def profiler(self) -> Any:
        """See :meth:`devices.agent.backends.base.Backend.profiler`; after :meth:`timed`."""
        with failing_as("run"):
            return self._backend.profiler()

    def _run(self, sample: int) -> "List[Array]":
        if sample == 0:
            return self._first
        with failing_as("run"):
            infer = self._backend.bind(self._feed(self._golden.inputs_of(sample, self.batch)))
            return self._backend.outputs(infer())

    def _read_golden(self) -> Golden:
        inputs, path = self._spec["inputs"], self._spec.get("golden")
        if path is None:
            return noise(inputs, self.batch, self._seed)
        outputs = [entry["name"] for entry in self._spec["outputs"]]
        return load_golden(path, [entry["name"] for entry in inputs], outputs)

    def _feed(self, arrays: "List[Array]") -> "List[Array]":
        """Arrays as the file takes them: its element types, its layouts."""
        specs = self._spec["inputs"]
        typed = [np.asarray(a, dtype=specs[i].get("dtype")) for i, a in enumerate(arrays)]
        return [to_layout(array, specs[i].get("layout")) for i, array in enumerate(typed)]


def validated(spec: Dict[str, Any], where: str) -> Dict[str, Any]:
    """A job's entry, whose fields have the types they must have.

    Raises:
        AgentError: one has not.
    """
    for key, kind in (("backend", str), ("file", str), ("tolerance", dict), ("batch", int)):
        require(spec, key, kind, where)
    for key, kind in (("sha256", str), ("golden", str), ("options", dict)):
        optional(spec, key, kind, where)
    require(spec["tolerance"], "relative", (int, float), where)
    for side in ("inputs", "outputs"):
        for entry in require(spec, side, list, where):
            require(entry, "name", str, where)
    if not spec["inputs"] or not spec["outputs"]:
        raise AgentError("protocol", where + " needs at least one input and output")
    for entry in spec["inputs"]:
        require(entry, "shape", list, where)
    if spec["batch"] < 1:
        raise AgentError("protocol", where + " needs a batch of at least 1")
    return spec


def verify_hash(path: str, expected: Optional[str]) -> None:
    """Refuse a file that is not there, or not the one that was meant.

    Raises:
        AgentError: so it is.
    """
    if not os.path.exists(path):
        raise AgentError("load", "{} is not on this device".format(path))
    found = hash_path(path) if expected is not None else None
    if found != expected:
        raise AgentError("hash", "{} has sha256 {}, expected {}".format(path, found, expected))


def hash_path(path: str) -> str:
    """sha256 of a file's content; of a folder, over its files' names and contents."""
    digest = hashlib.sha256()
    if os.path.isdir(path):
        for parts, file in sorted(_files(path)):
            digest.update("{}\0{}\n".format("/".join(parts), hash_path(file)).encode("utf-8"))
        return digest.hexdigest()
    with open(path, "rb") as stream:
        chunk = stream.read(1 << 20)
        while chunk:
            digest.update(chunk)
            chunk = stream.read(1 << 20)
    return digest.hexdigest()


@contextlib.contextmanager
def failing_as(kind: str) -> Iterator[None]:
    """Whatever a runtime raises, as an error event of that kind."""
    try:
        yield
    except (AgentError, Stopped):
        raise
    except Exception as error:
        raise AgentError(kind, describe(error)) from error


def _files(folder: str) -> Iterator[Tuple[Tuple[str, ...], str]]:
    for here, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(here, name)
            yield tuple(os.path.relpath(file, folder).split(os.sep)), file
