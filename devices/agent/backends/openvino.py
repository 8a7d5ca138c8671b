"""OpenVINO models on the CPU: a folder with a graph and its weights, or the graph's file itself."""

import functools
import os
import sys
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from ..errors import AgentError
from .base import Array, Backend, check_shape, import_module, places, version_of

#: The graph's file in a model's folder.
GRAPH = "model.xml"

#: What it may compute in; null leaves that to OpenVINO.
PRECISIONS = ("f32", "f16", "bf16", None)


class OpenVINO(Backend):
    """Inputs are bound to memory of our own; a batch that the file leaves open is fixed at load.

    Options: ``precision`` (``"f32"``, ``"bf16"``, ``"f16"``, or null, which is bf16 on processors
    that have it, and then off by far more than fp32 may be) and ``pinning`` (whether its threads
    are tied to cores; null leaves it as it is by default).
    """

    name = "openvino"
    region = "InferRequest.infer; inputs bound to host memory before, the output is read in place"
    defaults = {"precision": "f32", "pinning": None}

    def import_runtime(self) -> None:
        if self.options["precision"] not in PRECISIONS:
            shown = " or ".join("null" if name is None else name for name in PRECISIONS)
            problem = "precision must be {}, got {!r}"
            raise AgentError("protocol", problem.format(shown, self.options["precision"]))
        if self.options["pinning"] not in (True, False, None):
            problem = "pinning must be true, false or null, got {!r}"
            raise AgentError("protocol", problem.format(self.options["pinning"]))
        # It keeps an identifier in the user's home and sends it with what was done, unless the
        # package that does so is not there.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        self._openvino: Any = import_module("openvino")

    def runtime(self) -> Dict[str, Any]:
        told = (
            version_of(self._openvino) or ""
        )  # what it was built from stands behind the first dash
        return {"name": "openvino", "version": told.split("-")[0] or None}

    def settings(self) -> Dict[str, Any]:
        return {
            "threads": int(self._told("INFERENCE_NUM_THREADS")),
            "streams": int(self._told("NUM_STREAMS")),
            "precision": self._told("INFERENCE_PRECISION_HINT").get_type_name(),
            "pinning": bool(self._told("ENABLE_CPU_PINNING")),
        }

    def load(self) -> None:
        core = self._openvino.Core()
        folder = os.path.isdir(self.file)
        model = core.read_model(os.path.join(self.file, GRAPH) if folder else self.file)
        taken = [self._name(port, self.inputs) for port in model.inputs]
        given = [self._name(port, self.output_names) for port in model.outputs]
        self._takes = places(self.inputs, taken, "inputs")
        self._gives = places(self.output_names, given, "outputs")
        if any(port.get_partial_shape().is_dynamic for port in model.inputs):
            fixed = {self._takes[i]: [self.batch, *s[1:]] for i, s in enumerate(self.shapes)}
            model.reshape(fixed)
        self._shapes = [list(model.inputs[place].shape) for place in self._takes]
        self._compiled = core.compile_model(model, "CPU", self._configuration())
        self._request = self._compiled.create_infer_request()

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        self._held = list(inputs)  # the request points into their memory
        for index, array in enumerate(inputs):
            check_shape(self.inputs[index], self._shapes[index], array.shape)
            tensor = self._openvino.Tensor(array, shared_memory=True)
            self._request.set_input_tensor(self._takes[index], tensor)
        return functools.partial(self._request.infer, share_outputs=True)

    def outputs(self, result: Any) -> List[Array]:
        return [np.array(self._request.get_output_tensor(place).data) for place in self._gives]

    def _configuration(self) -> Dict[str, Any]:
        wanted: List[Tuple[str, Any]] = [
            ("INFERENCE_NUM_THREADS", self.threads),
            ("NUM_STREAMS", 1),
            ("INFERENCE_PRECISION_HINT", self.options["precision"]),
            ("ENABLE_CPU_PINNING", self.options["pinning"]),
        ]
        return {name: value for name, value in wanted if value is not None}

    def _told(self, name: str) -> Any:
        return self._compiled.get_property(name)

    @staticmethod
    def _name(port: Any, wanted: Sequence[str]) -> str:
        """The port's own name; of several, one that is wanted."""
        names = sorted(port.get_names())
        return next((name for name in names if name in wanted), names[0] if names else "")
