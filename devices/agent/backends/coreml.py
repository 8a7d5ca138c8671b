"""Core ML packages, on a Mac."""

import functools
import platform
from typing import Any, Callable, Dict, List, Sequence

import numpy as np

from ..errors import AgentError
from .base import Array, Backend, import_module, version_of

UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


class CoreML(Backend):
    """Predictions through coremltools, which copies inputs in and outputs out.

    Option: ``compute_unit``, one of ``UNITS``. Core ML chooses its threads itself.
    """

    name = "coreml"
    region = "MLModel.predict; inputs and outputs are copied by coremltools"
    defaults = {"compute_unit": "ALL"}

    def import_runtime(self) -> None:
        if self.options["compute_unit"] not in UNITS:
            problem = "compute_unit must be {}, got {!r}".format(
                " or ".join(UNITS), self.options["compute_unit"]
            )
            raise AgentError("protocol", problem)
        if platform.system() != "Darwin":
            raise AgentError("runtime-missing", "Core ML runs on macOS only")
        self._coremltools: Any = import_module("coremltools")

    def runtime(self) -> Dict[str, Any]:
        return {"name": "coremltools", "version": version_of(self._coremltools)}

    def settings(self) -> Dict[str, Any]:
        return {"threads": None, "compute_unit": self.options["compute_unit"]}

    def load(self) -> None:
        unit = getattr(self._coremltools.ComputeUnit, self.options["compute_unit"])
        self._model = self._coremltools.models.MLModel(self.file, compute_units=unit)

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        feed = {name: inputs[place] for place, name in enumerate(self.inputs)}
        return functools.partial(self._model.predict, feed)

    def outputs(self, result: Any) -> List[Array]:
        missing = [name for name in self.output_names if name not in result]
        if missing:
            problem = "the model gives {}, not {}".format(", ".join(result), ", ".join(missing))
            raise AgentError("run", problem)
        return [np.array(result[name]) for name in self.output_names]
