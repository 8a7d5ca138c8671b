"""ONNX files in ONNX Runtime."""

import functools
from typing import Any, Callable, Dict, List, Sequence

import numpy as np

from ..errors import AgentError
from .base import Array, Backend, check_shape, import_module, places, version_of


class OnnxRuntime(Backend):
    """Inputs and outputs are bound to memory of our own, as an app does through the C++ interface.

    Options: ``providers`` (names, in order of preference), ``optimization`` (``"all"``,
    ``"extended"``, ``"basic"`` or ``"none"``) and ``spinning`` (whether idle threads of its pool
    spin; null leaves it as it is by default).
    """

    name = "onnxruntime"
    region = "run_with_iobinding; inputs and outputs bound to host memory before, nothing copied"
    defaults = {"providers": ["CPUExecutionProvider"], "optimization": "all", "spinning": None}

    def import_runtime(self) -> None:
        self._ort: Any = import_module("onnxruntime")
        available = self._ort.get_available_providers()
        missing = [name for name in self.options["providers"] if name not in available]
        if missing:
            problem = "onnxruntime has no {} here; it has {}".format(
                ", ".join(missing), ", ".join(available)
            )
            raise AgentError("runtime-missing", problem)

    def runtime(self) -> Dict[str, Any]:
        return {"name": "onnxruntime", "version": version_of(self._ort)}

    def settings(self) -> Dict[str, Any]:
        return {
            "threads": self.threads,
            "inter_op_threads": 1,
            "execution": "sequential",
            "providers": self._session.get_providers(),
            "optimization": self.options["optimization"],
            "spinning": self.options["spinning"],
        }

    def load(self) -> None:
        providers = self.options["providers"]
        self._session = self._ort.InferenceSession(
            self.file, sess_options=self._session_options(), providers=providers
        )
        taken = self._session.get_inputs()
        given = self._session.get_outputs()
        order = places(self.inputs, [t.name for t in taken], "inputs")
        self._takes = [taken[i] for i in order]
        self._gives = [
            given[i].name for i in places(self.output_names, [t.name for t in given], "outputs")
        ]

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        self._held = list(inputs)  # the binding points into their memory
        self._binding = self._session.io_binding()
        for index, array in enumerate(inputs):
            takes = self._takes[index]
            sizes = [size if isinstance(size, int) else 0 for size in takes.shape]
            check_shape(takes.name, sizes, array.shape)
            self._binding.bind_cpu_input(takes.name, array)
        for name in self._gives:
            self._binding.bind_output(name)
        return functools.partial(self._session.run_with_iobinding, self._binding)

    def outputs(self, result: Any) -> List[Array]:
        return [np.array(array) for array in self._binding.copy_outputs_to_cpu()]

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
