"""OpenVINO models, converted from the captured graph and run by OpenVINO on the CPU.

A model is two files, the graph and its weights, which stay together in one folder. Weights are
stored in fp32, and the runtime is told to compute in fp32: left to itself it takes bf16 on
processors that have it, which is off by far more than fp32 is.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgevit.errors import ConversionError
from edgevit.tensorspec import TensorSpec
from exporters.base import (
    Array,
    Artifact,
    CannotVerifyError,
    ExporterOptions,
    Runner,
    numpy_outputs,
)
from exporters.failure import conversion_error
from exporters.openvino_layouts import suit_layouts
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["GRAPH", "OpenVINOExporter", "OpenVINOOptions"]

#: The graph's file in the model's folder; OpenVINO finds the weights beside it.
GRAPH = "model.xml"
#: One thread that goes where the system puts it, and every result in fp32.
SETTINGS: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}
#: Batches that a file with a dynamic batch is tried with; it was captured at another.
BATCHES = (1, 3)


@dataclass(frozen=True)
class OpenVINOOptions(ExporterOptions):
    """There is nothing to choose."""


class OpenVINOExporter:
    """OpenVINO's own format, run by OpenVINO on the CPU."""

    name: ClassVar[str] = "openvino"
    file: ClassVar[str] = "model.openvino"
    extra: ClassVar[str] = "openvino"
    options: ClassVar[type[ExporterOptions]] = OpenVINOOptions
    dynamic_batch: ClassVar[bool] = True

    def missing(self) -> list[str]:
        """Importable packages that it needs and that are not installed."""
        return [name for name in ("openvino",) if find_spec(name) is None]

    def export(self, program: Program, folder: Path, options: OpenVINOOptions) -> Artifact:
        """Write the folder ``model.openvino`` with ``model.xml`` and ``model.bin``; run it once.

        Raises:
            ConversionError: the converter gave up, or OpenVINO refuses what it wrote.
        """
        model, path = _converted(program), folder / self.file
        path.mkdir(parents=True, exist_ok=True)
        operators = Counter(str(node.get_type_name()) for node in model.get_ordered_ops())
        _save(model, path)
        _check(path, program)
        return _artifact(path, program, operators)

    def load(self, artifact: Artifact, folder: Path) -> list[Runner]:
        """OpenVINO on one thread; a second time, with more rows, where the batch is dynamic.

        Raises:
            CannotVerifyError: OpenVINO is not installed.
            ConversionError: it refuses the file.
        """
        if self.missing():
            raise CannotVerifyError("openvino is not installed")
        request = _opened(folder / artifact.file).create_infer_request()

        def run(arrays: Sequence[Array]) -> list[Array]:
            return _run(request, arrays)

        def run_among_others(arrays: Sequence[Array]) -> list[Array]:
            # Other rows stand before the ones that count, so a row that leaks into another shows.
            outputs = run([np.concatenate([array * 0.5, -array, array]) for array in arrays])
            return [output[-len(arrays[0]) :] for output in outputs]

        runners = [Runner(_label(), "verified", "fp32", run)]
        if artifact.facts["dynamic_batch"]:
            runners.append(Runner(f"{_label()}, batch x 3", "verified", "fp32", run_among_others))
        return runners


def _import() -> Any:
    """OpenVINO, which keeps an identifier in the user's home and sends it with what was done.

    It does without where the package that does so is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _converted(program: Program) -> Any:
    """The program as an OpenVINO model with the program's names and shapes."""
    sizes = [_sizes(spec, program) for spec in program.inputs]
    try:
        with quiet():
            openvino = _import()
            model = openvino.convert_model(program.exported, input=sizes)
            suit_layouts(model)
            _name(model.inputs, program.inputs)
            _name(model.outputs, program.outputs)
            _number(model)
    except Exception as error:
        raise conversion_error("OpenVINO", program, error) from error
    return model


def _sizes(spec: TensorSpec, program: Program) -> list[int]:
    return [-1, *spec.shape[1:]] if program.dynamic_batch else list(spec.shape)


def _name(ports: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    for port, spec in zip(ports, specs, strict=True):
        port.get_tensor().set_names({spec.name})
        port.get_node().set_friendly_name(spec.name)


def _number(model: Any) -> None:
    """Count nodes of a name from 0 on, not from what the process has converted before."""
    model.set_friendly_name("model")
    counts: Counter[str] = Counter()
    named = {port.get_node().get_name() for port in (*model.inputs, *model.outputs)}
    for node in model.get_ordered_ops():
        if node.get_name() in named:
            continue
        stem = re.sub(r"_\d+$", "", node.get_friendly_name())
        node.set_friendly_name(f"{stem}_{counts[stem]}")
        counts[stem] += 1


def _save(model: Any, path: Path) -> None:
    try:
        with quiet():
            _import().save_model(model, str(path / GRAPH), compress_to_fp16=False)
    except Exception as error:
        raise ConversionError(f"OpenVINO cannot write {path.name}: {_gist(error)}") from error


def _opened(path: Path) -> Any:
    try:
        with quiet():
            return _import().Core().compile_model(str(path / GRAPH), "CPU", SETTINGS)
    except Exception as error:
        raise ConversionError(
            f"{_label()} refuses {path.name}: {_gist(error)}",
            hint="export again: the file is damaged, or of another version of OpenVINO",
        ) from error


def _run(request: Any, arrays: Sequence[Array]) -> list[Array]:
    results = request.infer(dict(enumerate(map(np.ascontiguousarray, arrays))))
    return numpy_outputs(results.to_tuple())


def _check(path: Path, program: Program) -> None:
    """Open and run a fresh file: names, order and shapes have to be the program's.

    Raises:
        ConversionError: OpenVINO refuses the file, or one of these is another.
    """
    compiled = _opened(path)
    _check_names(compiled.inputs, program.inputs)
    _check_names(compiled.outputs, program.outputs)
    generator, request = np.random.default_rng(0), compiled.create_infer_request()
    for batch in BATCHES if program.dynamic_batch else (program.inputs[0].shape[0],):
        shapes = [spec.with_batch(batch).shape for spec in program.inputs]
        noise = [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]
        hint = "export without dynamic batch" if program.dynamic_batch else None
        try:
            with quiet():
                outputs = _run(request, noise)
        except Exception as error:
            what = f"{_label()} cannot run the written file at batch {batch}: {_gist(error)}"
            raise ConversionError(what, hint=hint) from error
        for spec, output in zip(program.outputs, outputs, strict=True):
            if output.shape != spec.with_batch(batch).shape:
                what = f"at batch {batch} the file gives {spec.name} the shape {output.shape}"
                raise ConversionError(f"OpenVINO: {what}", hint=hint)


def _check_names(ports: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    names = [port.get_names() for port in ports]
    want = [spec.name for spec in specs]
    if len(names) != len(want) or any(w not in n for w, n in zip(want, names, strict=True)):
        got = ", ".join("/".join(sorted(n)) for n in names)
        raise ConversionError(f"OpenVINO: the file has {got} where {', '.join(want)} was expected")


def _label() -> str:
    return f"OpenVINO {version('openvino')}"


def _gist(error: Exception) -> str:
    """What was wrong; before it stands where in OpenVINO's own source that came up."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return " ".join(told or lines)[:300]


def _artifact(path: Path, program: Program, operators: Counter[str]) -> Artifact:
    return Artifact(
        format=OpenVINOExporter.name,
        file=path.name,
        backend="openvino",
        precision="fp32",
        inputs=program.inputs,
        outputs=program.outputs,
        layouts={spec.name: "NCHW" for spec in program.inputs if spec.kind == "image"},
        facts={
            "dynamic_batch": program.dynamic_batch,
            "nodes": sum(operators.values()),
            "operators": dict(sorted(operators.items())),
            "size_bytes": sum(file.stat().st_size for file in path.iterdir()),
        },
        versions={tool: version(tool) for tool in ("torch", "openvino")},
    )
