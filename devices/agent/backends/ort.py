"""ONNX files in ONNX Runtime, on the CPU or, where there is one, on an NVIDIA GPU.

ONNX Runtime falls back without a word: a provider that cannot be set up is left out of the session,
and an operator that it does not have runs on the next one. So the session is asked what it has, and
a profiled run of its own tells how many operators each provider ran.
"""

import contextlib
import functools
import json
import os
import tempfile
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from ..errors import AgentError, describe
from ..kept import cache_folder
from .base import NO_TF32, Array, Backend, check_shape, import_module, places, version_of
from .ort_profile import OrtProfiler

CPU, CUDA, TENSORRT = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)

#: Short names of providers, and what else they need: each hands on what it cannot run.
PROVIDERS = {"cpu": [CPU], "cuda": [CUDA, CPU], "tensorrt": [TENSORRT, CUDA, CPU]}

#: What a timed region holds where a provider has memory of its own.
COPIED = "run_with_iobinding; inputs and outputs bound to host memory, copied to the GPU and back"


class OnnxRuntime(Backend):
    """Inputs and outputs are bound to memory of our own, as an app does through the C++ interface.

    Options: ``providers`` (``"cpu"``, ``"cuda"``, ``"tensorrt"``, or a list of ONNX Runtime's own
    names in order of preference), ``fp16`` and ``engine_cache`` (of TensorRT: half precision; keep
    the engines that it builds, true), ``optimization`` (``"all"``, ``"extended"``, ``"basic"`` or
    ``"none"``) and ``spinning`` (whether idle threads of its pool spin; null leaves it as it is by
    default).
    """

    name = "onnxruntime"
    region = "run_with_iobinding; inputs and outputs bound to host memory before, nothing copied"
    defaults = {
        "providers": "cpu",
        "fp16": False,
        "engine_cache": True,
        "optimization": "all",
        "spinning": None,
    }

    def import_runtime(self) -> None:
        # Its newer versions keep an identifier in the user's home and send it with what they ran.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        self._ort: Any = import_module("onnxruntime")
        self._asked = asked_providers(self.options["providers"])
        available = self._ort.get_available_providers()
        if self._asked[0] == TENSORRT and CUDA not in available:
            self._asked = [name for name in self._asked if name != CUDA]
        missing = [name for name in self._asked if name not in available]
        if missing:
            problem = "onnxruntime has no {} here; it has {}".format(
                ", ".join(missing), ", ".join(available)
            )
            raise AgentError("runtime-missing", problem)
        if self.options["fp16"] and self._asked[0] != TENSORRT:
            raise AgentError("protocol", "fp16 is an option of provider tensorrt alone")
        if self._asked != [CPU]:
            os.environ.setdefault(*NO_TF32)
            self.region = COPIED
        self._counts: Optional[Dict[str, Any]] = None

    def runtime(self) -> Dict[str, Any]:
        return {"name": "onnxruntime", "version": version_of(self._ort)}

    def settings(self) -> Dict[str, Any]:
        accelerated = {} if self._asked == [CPU] else self._accelerated()
        return {
            "threads": self.threads,
            "inter_op_threads": 1,
            "execution": "sequential",
            "providers": self._session.get_providers(),
            "optimization": self.options["optimization"],
            "spinning": self.options["spinning"],
            **accelerated,
        }

    def warnings(self) -> List[Tuple[str, str]]:
        if self._asked == [CPU]:
            return []
        counts = self._count()["ops_by_provider"]
        away = {name: n for name, n in (counts or {}).items() if name != self._asked[0]}
        if not away:
            return []
        shown = ", ".join("{} on {}".format(n, name) for name, n in sorted(away.items()))
        total = sum((counts or {}).values())
        problem = "asked for {}, of {} operators run {}".format(self._asked[0], total, shown)
        return [("fallback", problem)]

    def load(self) -> None:
        self._session = self.new_session(self._session_options())
        self._demand_provider()
        taken = self._session.get_inputs()
        given = self._session.get_outputs()
        order = places(self.inputs, [t.name for t in taken], "inputs")
        self._takes = [taken[i] for i in order]
        self._gives = [
            given[i].name for i in places(self.output_names, [t.name for t in given], "outputs")
        ]

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        self._held = list(inputs)  # the binding points into their memory
        self._binding = self.bound(self._session)
        return functools.partial(self._session.run_with_iobinding, self._binding)

    def bound(self, session: Any) -> Any:
        """A binding of a session of this file to the inputs that were bound last."""
        binding = session.io_binding()
        for index, array in enumerate(self._held):
            takes = self._takes[index]
            sizes = [size if isinstance(size, int) else 0 for size in takes.shape]
            check_shape(takes.name, sizes, array.shape)
            binding.bind_cpu_input(takes.name, array)
        for name in self._gives:
            binding.bind_output(name)
        return binding

    def outputs(self, result: Any) -> List[Array]:
        return [np.array(array) for array in self._binding.copy_outputs_to_cpu()]

    def profiler(self) -> OrtProfiler:
        return OrtProfiler(self, self._session_options())

    def new_session(self, options: Any) -> Any:
        """A session of the file with these options."""
        providers = [self._configured(name) for name in self._asked]
        return self._ort.InferenceSession(self.file, sess_options=options, providers=providers)

    def _configured(self, name: str) -> Any:
        if name != TENSORRT:
            return name
        settings: Dict[str, Any] = {"trt_fp16_enable": bool(self.options["fp16"])}
        if self.options["engine_cache"]:
            own = "{}-{}".format(self.hash()[:24], version_of(self._ort))
            folder = os.path.join(cache_folder("ort-engines"), own)
            os.makedirs(folder, exist_ok=True)
            settings["trt_engine_cache_enable"] = True
            settings["trt_engine_cache_path"] = folder
        return name, settings

    def _demand_provider(self) -> None:
        have = self._session.get_providers()
        if self._asked[0] not in have:
            problem = (
                "asked for {}, ONNX Runtime set up {} instead; what it lacks it says on stderr "
                "(CUDA, cuDNN or TensorRT libraries of another version, or a GPU without memory)"
            )
            raise AgentError("fallback", problem.format(self._asked[0], ", ".join(have)))

    def _accelerated(self) -> Dict[str, Any]:
        """What matters besides where not everything runs on the CPU."""
        told = dict(self._count(), tf32=os.environ[NO_TF32[0]] != NO_TF32[1])
        if self._asked[0] == TENSORRT:
            told.update(fp16=self.options["fp16"], engine_cache=self.options["engine_cache"])
        return told

    def _count(self) -> Dict[str, Any]:
        """Operators by provider, from one profiled run; why not, where that fails."""
        if self._counts is None:
            try:
                self._counts = {"ops_by_provider": self._profile()}
            except Exception as error:
                self._counts = {
                    "ops_by_provider": None,
                    "ops_by_provider_reason": describe(error),
                }
        return self._counts

    def _profile(self) -> Dict[str, int]:
        """Operators by provider, in a session of its own that writes a profile."""
        with tempfile.TemporaryDirectory() as folder:
            options = self._session_options()
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(folder, "profile")
            session = self.new_session(options)
            feed = {takes.name: self._held[place] for place, takes in enumerate(self._takes)}
            session.run(None, feed)
            path = session.end_profiling()
            with contextlib.closing(open(path)) as stream:
                return ops_by_provider(json.load(stream))

    def _session_options(self) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._optimization()
        spinning = self.options["spinning"]
        if spinning is not None:
            options.add_session_config_entry(
                "session.intra_op.allow_spinning", "1" if spinning else "0"
            )
        return options

    def _optimization(self) -> Any:
        levels = self._ort.GraphOptimizationLevel
        known = {
            "all": levels.ORT_ENABLE_ALL,
            "extended": levels.ORT_ENABLE_EXTENDED,
            "basic": levels.ORT_ENABLE_BASIC,
            "none": levels.ORT_DISABLE_ALL,
        }
        wanted = self.options["optimization"]
        if wanted not in known:
            problem = "optimization must be {}, got {!r}".format(" or ".join(sorted(known)), wanted)
            raise AgentError("protocol", problem)
        return known[wanted]


def asked_providers(wanted: Any) -> List[str]:
    """ONNX Runtime's names of the providers that an option asks for.

    Raises:
        AgentError: it is no provider's name, nor a list of names.
    """
    if isinstance(wanted, str) and wanted in PROVIDERS:
        return list(PROVIDERS[wanted])
    named = isinstance(wanted, (list, tuple)) and all(isinstance(name, str) for name in wanted)
    if not named or not wanted:
        problem = "providers must be {}, or a list of ONNX Runtime's own names, got {!r}"
        raise AgentError("protocol", problem.format(" or ".join(PROVIDERS), wanted))
    names = [name for word in wanted for name in PROVIDERS.get(word, [word])]
    return sorted(set(names), key=names.index)


def ops_by_provider(profile: Sequence[Dict[str, Any]]) -> Dict[str, int]:
    """How many operators each provider ran, from what ONNX Runtime's profiler wrote."""
    ran: Dict[str, Set[str]] = {}
    for entry in profile:
        told = entry.get("args") or {}
        if entry.get("cat") == "Node" and told.get("provider"):
            name = str(entry.get("name")).rsplit("_kernel_time", 1)[0]
            ran.setdefault(told["provider"], set()).add(name)
    return {provider: len(names) for provider, names in sorted(ran.items())}
