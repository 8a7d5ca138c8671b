"""Core ML packages, on a Mac.

A package is compiled once (``.mlmodelc``) and kept; what loading takes is the compiled model's, as
in an app. Which compute unit Core ML means to use for each operator, its compute plan tells, from
macOS 14.4 on: asked for the Neural Engine, it may well take the CPU without a word.
"""

import functools
import platform
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ..errors import AgentError, describe
from ..kept import keep
from .base import Array, Backend, import_module, version_of
from .coreml_profile import CoreMLProfiler

#: Names of compute units in jobs, and coremltools' names; Core ML always has the CPU as well.
UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE", "all": "ALL"}

#: coremltools' classes of compute devices.
DEVICES = {
    "cpu": "MLCPUComputeDevice",
    "gpu": "MLGPUComputeDevice",
    "ane": "MLNeuralEngineComputeDevice",
}


class CoreML(Backend):
    """Predictions through coremltools, which copies inputs in and outputs out.

    Option: ``compute_unit``, one of ``UNITS``. Core ML chooses its threads itself.
    """

    name = "coreml"
    region = "CompiledMLModel.predict; inputs and outputs are copied by coremltools"
    defaults = {"compute_unit": "all"}

    def import_runtime(self) -> None:
        check_unit(self.options["compute_unit"])
        self._coremltools: Any = import_coremltools()
        self._plan: Optional[Placement] = None

    def runtime(self) -> Dict[str, Any]:
        return {"name": "coremltools", "version": version_of(self._coremltools)}

    def settings(self) -> Dict[str, Any]:
        self._plan = self._plan or self._read_plan()
        return {
            "threads": None,
            "compute_unit": self.options["compute_unit"],
            "compute_units": UNITS[self.options["compute_unit"]],
            "compile_ns": self._compile_ns,
            **self._plan.settings(),
        }

    def prepare(self) -> None:
        versions = (platform.mac_ver()[0], version_of(self._coremltools))
        key = (self.hash(), *versions)
        self._compiled, self._compile_ns = keep("compiled", key, ".mlmodelc", self._compile)

    def load(self) -> None:
        self._model = self._coremltools.models.CompiledMLModel(
            self._compiled, compute_units=unit_of(self._coremltools, self.options)
        )

    def bind(self, inputs: Sequence[Array]) -> Callable[[], Any]:
        self._infer = functools.partial(self._model.predict, feed(self.inputs, inputs))
        return self._infer

    def profiler(self) -> CoreMLProfiler:
        return CoreMLProfiler(self._load_plan, self._infer)

    def outputs(self, result: Any) -> List[Array]:
        return named_outputs(result, self.output_names)

    def warnings(self) -> List[Tuple[str, str]]:
        self._plan = self._plan or self._read_plan()
        return self._plan.warnings(self.options["compute_unit"])

    def _compile(self, path: str) -> None:
        self._coremltools.models.utils.compile_model(self.file, destination_path=path)

    def _load_plan(self) -> Any:
        plans = self._coremltools.models.compute_plan.MLComputePlan
        unit = unit_of(self._coremltools, self.options)
        return plans.load_from_path(path=self._compiled, compute_units=unit)

    def _read_plan(self) -> "Placement":
        try:
            return placement(self._coremltools, self._load_plan())
        # An older coremltools has no such class, an older macOS no such plan.
        except Exception as error:
            return Placement({}, {}, "the compute plan cannot be read: " + describe(error))


class Placement:
    """Which compute units Core ML means to run a model's operators on.

    Args:
        counts: operators by unit; ``"unknown"`` where Core ML does not tell.
        kinds: by unit, how many operators of each type.
        reason: why nothing is known.
    """

    def __init__(
        self, counts: Dict[str, int], kinds: Dict[str, Dict[str, int]], reason: Optional[str]
    ) -> None:
        self.counts = counts
        self.kinds = kinds
        self.reason = reason

    def settings(self) -> Dict[str, Any]:
        """For the settings of a result: op counts per unit, or why there are none."""
        if self.reason is not None:
            return {"ops_by_unit": None, "ops_by_unit_reason": self.reason}
        return {"ops_by_unit": self.counts}

    def warnings(self, asked: str) -> List[Tuple[str, str]]:
        """What was asked for one unit and is meant for another."""
        away = {unit: n for unit, n in self.counts.items() if unit not in (asked, "unknown")}
        if asked not in ("gpu", "ane") or not away:
            return []
        told = sum(self.counts.values()) - self.counts.get("unknown", 0)
        shown = "; ".join(
            "{} on {}: {}".format(away[unit], unit, _listed(self.kinds[unit]))
            for unit in sorted(away)
        )
        message = "asked for {}, {} of {} operators run elsewhere ({})".format(
            asked, sum(away.values()), told, shown
        )
        return [("fallback", message)]


def placement(coremltools: Any, plan: Any) -> Placement:
    """What an ``MLComputePlan`` says of each operator of an ML program.

    Constants have no place. The plan is what Core ML means to do; it is not a measurement.
    """
    devices = coremltools.models.compute_device
    classes = {unit: getattr(devices, name) for unit, name in DEVICES.items()}
    if plan.model_structure.program is None:
        return Placement({}, {}, "the model is no ML program")
    counts: Dict[str, int] = {}
    kinds: Dict[str, Dict[str, int]] = {}
    for operation in operations_of(plan):
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        preferred = None if usage is None else usage.preferred_compute_device
        unit = next((u for u, c in classes.items() if isinstance(preferred, c)), "unknown")
        kind = operation.operator_name.split(".")[-1]
        counts[unit] = counts.get(unit, 0) + 1
        kinds.setdefault(unit, {})
        kinds[unit][kind] = kinds[unit].get(kind, 0) + 1
    return Placement(counts, kinds, None)


def operations_of(plan: Any) -> Iterator[Any]:
    """The operators of an ML program; constants have no place among them."""
    program = plan.model_structure.program
    for function in program.functions.values() if program is not None else ():
        yield from _operations(function.block)


def check_unit(unit: Any) -> None:
    """Refuse what is no compute unit.

    Raises:
        AgentError: so it is.
    """
    if unit not in UNITS:
        problem = "compute_unit must be {}, got {!r}".format(" or ".join(UNITS), unit)
        raise AgentError("protocol", problem)


def unit_of(coremltools: Any, options: Dict[str, Any]) -> Any:
    """coremltools' name of the compute unit that was asked for."""
    return getattr(coremltools.ComputeUnit, UNITS[options["compute_unit"]])


def import_coremltools() -> Any:
    """coremltools, with Core ML behind it.

    Raises:
        AgentError: there is none.
    """
    if platform.system() != "Darwin":
        raise AgentError("runtime-missing", "Core ML runs on macOS only")
    coremltools = import_module("coremltools")
    try:
        import_module("coremltools.libcoremlpython")
    except AgentError as error:
        problem = "this coremltools cannot reach Core ML ({}); install its wheel for macOS"
        raise AgentError("runtime-missing", problem.format(error.message)) from None
    return coremltools


def feed(names: Sequence[str], inputs: Sequence[Array]) -> Dict[str, Array]:
    """Inputs by name. Core ML's Python interface takes no fp16: made fp32 here, not in the run."""
    ready = [np.asarray(a, dtype=np.float32) if a.dtype == np.float16 else a for a in inputs]
    return {name: ready[place] for place, name in enumerate(names)}


def named_outputs(result: Dict[str, Any], names: Sequence[str]) -> List[Array]:
    """Copies of the outputs, in the order of their names.

    Raises:
        AgentError: one is missing.
    """
    missing = [name for name in names if name not in result]
    if missing:
        problem = "the model gives {}, not {}".format(", ".join(sorted(result)), ", ".join(missing))
        raise AgentError("run", problem)
    return [np.array(result[name]) for name in names]


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        if operation.operator_name.split(".")[-1] != "const":
            yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _listed(kinds: Dict[str, int]) -> str:
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join("{} {}".format(count, kind) for kind, count in ordered)
