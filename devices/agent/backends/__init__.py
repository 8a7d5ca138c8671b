"""The runtimes that the agent can run a file with, by the names that jobs use."""

from typing import Any, Callable, Dict, Type

from ..errors import AgentError
from .base import Backend, no_pulse
from .coreml import CoreML
from .coreml_phone import CoreMLPhone
from .executorch import ExecuTorch
from .openvino import OpenVINO
from .ort import OnnxRuntime
from .pt2 import TorchProgram
from .tflite import TFLite
from .trtexec import TensorRT

BACKENDS: Dict[str, Type[Backend]] = {
    backend.name: backend
    for backend in (
        OnnxRuntime,
        TensorRT,
        TFLite,
        OpenVINO,
        ExecuTorch,
        CoreML,
        CoreMLPhone,
        TorchProgram,
    )
}


def make_backend(
    subject: Dict[str, Any], threads: int, pulse: Callable[[], None] = no_pulse
) -> Backend:
    """The subject's backend, its runtime imported.

    Raises:
        AgentError: there is no such backend or option, or its runtime is missing here.
    """
    name = subject["backend"]
    if name not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise AgentError("protocol", "unknown backend {!r}; there are {}".format(name, known))
    return BACKENDS[name](subject, threads, pulse)
