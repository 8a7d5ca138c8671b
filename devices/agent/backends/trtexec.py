"""ONNX files as TensorRT engines, through ``trtexec``, which comes with TensorRT on a Jetson.

The engine is built on the board, once a file and set of flags, and kept. Every golden sample is one
run of ``trtexec`` (``--loadInputs``, ``--exportOutput``); a block of samples is one too, with a
warm-up of its own (``--exportTimes``). A sample is TensorRT's latency: input to the GPU, inference,
output back, one after the other (``--exposeDMA``), on the GPU's clock.
"""

import json
import os
import re
import shutil
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from .. import system
from ..children import last_lines, run_child
from ..errors import AgentError
from ..jetson import library_version
from ..kept import cache_folder, keep, remove
from .base import BESIDE, NO_TF32, Array, Backend

PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec")

#: Before TensorRT times anything, in every run of it.
WARM_UP_MS = 200
#: A run of it takes seconds to start: a block lasts at least so long.
LEAST_NS = 0.5e9

STATIC = "Static model does not take explicit shapes"
ONCE = ["--warmUp=0", "--iterations=1", "--duration=0", "--exposeDMA"]


class TensorRT(Backend):
    """Runs of ``trtexec``, timed by itself.

    Options: ``fp16`` (let TensorRT compute in half precision) and ``workspace_mib`` (memory that
    its builder may use; null leaves it to TensorRT).
    """

    name = "tensorrt"
    region = "trtexec's latency: input to the GPU, inference, output back, by the GPU's clock"
    defaults = {"fp16": False, "workspace_mib": None}
    where = BESIDE
    tells_times = True

    def import_runtime(self) -> None:
        os.environ.setdefault(*NO_TF32)
        self._program = find_trtexec()
        status, said = run_child([self._program, "--help"], self.pulse)
        self._help = said
        self._version = version_from(said) or library_version("libnvinfer")
        if "--loadEngine" not in said:
            problem = "{} does not run (exit status {}): {}"
            shown = problem.format(self._program, status, last_lines(said, 4))
            raise AgentError("runtime-missing", shown)

    def runtime(self) -> Dict[str, Any]:
        return {"name": "tensorrt", "version": self._version}

    def settings(self) -> Dict[str, Any]:
        return {
            "threads": None,
            "fp16": self.options["fp16"],
            "workspace_mib": self.options["workspace_mib"],
            "build_ns": self._build_ns,
            "build_flags": self._flags,
            "tf32": os.environ[NO_TF32[0]] != NO_TF32[1],
            "timing_flags": ["--exposeDMA", "--warmUp={}".format(WARM_UP_MS)],
        }

    def prepare(self) -> None:
        self._folder = os.path.join(cache_folder("trtexec"), "run-{}".format(os.getpid()))
        os.makedirs(self._folder, exist_ok=True)
        self._flags = self._build_flags()
        self._shapes = self._explicit_shapes()
        gpu = system.read("/proc/device-tree/model")
        key = (self.hash(), self._version, self._flags, self.batch, gpu)
        self._engine, self._build_ns = keep("engines", key, ".engine", self._build)

    def load(self) -> Optional[int]:
        said = self._run(ONCE)
        # Reading the file and making an engine of it; old versions tell neither.
        told = re.findall(r"Engine (?:loaded|deserialized) in ([0-9.eE+-]+) sec", said)
        return int(sum(map(float, told)) * 1e9) if told else None

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        specs: List[str] = []
        for place, name in enumerate(self.inputs):
            path = os.path.join(self._folder, "input-{}.bin".format(place))
            inputs[place].tofile(path)
            specs.append("{}:{}".format(name, path))
        self._inputs = "--loadInputs=" + ",".join(specs)
        self._last: Optional[int] = None
        self._typical: Optional[float] = None
        return self._infer

    def outputs(self, result: Any) -> List[Array]:
        missing = [name for name in self.output_names if name not in result]
        if missing:
            problem = "the engine gives {}, not {}"
            have = ", ".join(sorted(result))
            raise AgentError("run", problem.format(have, ", ".join(missing)))
        return [result[name] for name in self.output_names]

    def last_ns(self) -> Optional[int]:
        return self._last

    def measure(self, runs: Optional[int], budget_ns: float) -> List[int]:
        budget_ns = max(budget_ns, LEAST_NS)
        if runs is None:
            typical = self._typical or sorted(self._timed(10, 0))[5]
            runs = max(1, int(budget_ns // max(1, typical)))
        samples = self._timed(runs, WARM_UP_MS)
        self._typical = float(sorted(samples)[len(samples) // 2])
        return samples[:runs]

    def close(self) -> None:
        remove(getattr(self, "_folder", ""))

    def _infer(self) -> Dict[str, Array]:
        times, outputs = self._path("times.json"), self._path("outputs.json")
        files = ["--exportTimes=" + times, "--exportOutput=" + outputs]
        self._run([self._inputs, *ONCE, *files])
        told = read_times(times, 0)
        self._last = told[0] if told else None
        return read_outputs(outputs)

    def _timed(self, runs: int, warm_up_ms: int) -> List[int]:
        path = self._path("times.json")
        # Where warm-up ends and the first sample begins it may count one off.
        iterations = "--iterations={}".format(runs + 2)
        flags = ["--warmUp={}".format(warm_up_ms), iterations, "--duration=0"]
        self._run([self._inputs, *flags, "--exposeDMA", "--exportTimes=" + path])
        samples = read_times(path, warm_up_ms)
        if len(samples) < runs:
            problem = "trtexec timed {} inferences, {} were asked for"
            raise AgentError("run", problem.format(len(samples), runs))
        return samples

    def _run(self, flags: Sequence[str]) -> str:
        command = [self._program, "--loadEngine=" + self._engine, *self._shapes, *flags]
        status, said = run_child(command, self.pulse)
        if status:
            raise AgentError("run", failed("trtexec", status, said))
        return said

    def _build(self, path: str) -> None:
        command = [self._program, "--onnx=" + self.file, "--saveEngine=" + path, *self._flags]
        status, said = run_child([*command, *self._shapes], self.pulse)
        if status and self._shapes and STATIC in said:
            status, said = run_child(command, self.pulse)
        if status or not os.path.exists(path):
            raise AgentError("load", failed("the build of the engine", status, said))

    def _build_flags(self) -> List[str]:
        # Newer versions call it otherwise, and the newest have forgotten the old name.
        only = "--skipInference" if "--skipInference" in self._help else "--buildOnly"
        flags = [only] + (["--fp16"] if self.options["fp16"] else [])
        workspace = self.options["workspace_mib"]
        if workspace is not None:
            pools = "--memPoolSize" in self._help
            text = "--memPoolSize=workspace:{}" if pools else "--workspace={}"
            flags.append(text.format(int(workspace)))
        return flags

    def _explicit_shapes(self) -> List[str]:
        # Left to itself it takes 1 for a batch that the file leaves open.
        if self.batch == 1:
            return []
        sizes = ["x".join(map(str, [self.batch, *shape[1:]])) for shape in self.shapes]
        pairs = ["{}:{}".format(name, sizes[i]) for i, name in enumerate(self.inputs)]
        return ["--shapes=" + ",".join(pairs)]

    def _path(self, name: str) -> str:
        path = os.path.join(self._folder, name)
        remove(path)
        return path


def find_trtexec() -> str:
    """Where ``trtexec`` is.

    Raises:
        AgentError: it is not installed.
    """
    root = system.sysroot()
    found = [root + place for place in PLACES if os.access(root + place, os.X_OK)]
    program = shutil.which("trtexec") or (found[0] if found else None)
    if program is None:
        problem = "there is no trtexec on PATH nor at {}: install TensorRT (on a Jetson, {})"
        packages = "`sudo apt install tensorrt`"
        raise AgentError("runtime-missing", problem.format(PLACES[0], packages))
    return program


def version_from(said: str) -> Optional[str]:
    """TensorRT's version as ``trtexec`` prints it, ``TensorRT v8201`` or ``TensorRT v100300``."""
    found = re.search(r"TensorRT v(\d{4,6})\b", said)
    if found is None:
        return None
    number = int(found.group(1))
    major, rest = divmod(number, 1000 if number < 10000 else 10000)
    return "{}.{}.{}".format(major, rest // 100, rest % 100)


def read_times(path: str, warm_up_ms: float) -> List[int]:
    """Latencies in ns from what ``--exportTimes`` wrote, without those of the warm-up.

    TensorRT before 8.6 wrote those of the warm-up too; it knows them by when they began to compute.
    """
    with open(path) as stream:
        entries = json.load(stream)
    steady = [e for e in entries if e.get("startComputeMs", warm_up_ms) >= warm_up_ms]
    return [int(round(entry["latencyMs"] * 1e6)) for entry in steady]


def read_outputs(path: str) -> Dict[str, Array]:
    """Outputs by name from what ``--exportOutput`` wrote, in which numbers have six digits."""
    with open(path) as stream:
        text = stream.read()
    # It writes these as C++ does, which JSON does not know.
    text = re.sub(r"(?<![\w\"])-?nan(?![\w\"])", "NaN", text)
    text = re.sub(r"(?<![\w\"])(-?)inf(?![\w\"])", r"\1Infinity", text)
    outputs = {}
    for entry in json.loads(text):
        shape = [int(size) for size in entry["dimensions"].split("x")]
        outputs[entry["name"]] = np.array(entry["values"], dtype=np.float32).reshape(shape)
    return outputs


def failed(what: str, status: int, said: str) -> str:
    """A message with the errors that ``trtexec`` printed, or else the end of what it said."""
    errors = [line for line in said.splitlines() if "[E]" in line]
    shown = "\n".join(errors[:8]) or last_lines(said)
    ending = "was killed by signal {}".format(-status) if status < 0 else "failed with {}"
    return "{} {}:\n{}".format(what, ending.format(status), shown)
