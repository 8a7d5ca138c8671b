"""ExecuTorch programs, lowered from the captured graph and run by ExecuTorch on the CPU.

What XNNPACK can compute is handed to it in as few pieces as possible; ExecuTorch's own kernels do
the rest. They are plain, so a graph that falls into many pieces is a slow one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgevit.errors import ConversionError, OptionError
from exporters.base import (
    Array,
    Artifact,
    CannotVerifyError,
    ExporterOptions,
    Runner,
    numpy_outputs,
)
from exporters.failure import conversion_error, listed, uses
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["ExecuTorchExporter", "ExecuTorchOptions"]

DELEGATE = "executorch_call_delegate"


@dataclass(frozen=True)
class ExecuTorchOptions(ExporterOptions):
    """What kind of ExecuTorch program to write.

    Args:
        xnnpack: hand to XNNPACK what it can compute; ExecuTorch's own kernels do it all otherwise.

    Raises:
        OptionError: it is neither true nor false.
    """

    xnnpack: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.xnnpack, bool):
            raise OptionError("xnnpack", expected="true or false", got=self.xnnpack)


class ExecuTorchExporter:
    """ExecuTorch, run by its runtime on the CPU (with XNNPACK)."""

    name: ClassVar[str] = "executorch"
    file: ClassVar[str] = "model.pte"
    extra: ClassVar[str] = "executorch"
    options: ClassVar[type[ExporterOptions]] = ExecuTorchOptions
    dynamic_batch: ClassVar[bool] = False

    def missing(self) -> list[str]:
        """Importable packages that it needs and that are not installed."""
        return [name for name in ("executorch",) if find_spec(name) is None]

    def export(self, program: Program, folder: Path, options: ExecuTorchOptions) -> Artifact:
        """Write ``folder / "model.pte"`` and run it once.

        Raises:
            ConversionError: the graph cannot be lowered, or ExecuTorch refuses the file.
            OptionError: the program's batch is dynamic.
        """
        if program.dynamic_batch:
            raise OptionError(
                "dynamic_batch",
                expected="a fixed batch for format executorch",
                got=True,
                hint="export executorch by itself, without dynamic batch",
            )
        path = folder / self.file
        operators, rewritten = _lower(program, path, xnnpack=options.xnnpack)
        _check(path, program)
        return _artifact(path, program, operators, rewritten, options)

    def load(self, artifact: Artifact, folder: Path) -> list[Runner]:
        """ExecuTorch's runtime on one thread.

        Raises:
            CannotVerifyError: ExecuTorch is not installed.
            ConversionError: it refuses the file.
        """
        if self.missing():
            raise CannotVerifyError("executorch is not installed")
        module = _opened(folder / artifact.file)

        def run(arrays: Sequence[Array]) -> list[Array]:
            with quiet():
                return _run(module, arrays)

        return [Runner(_label(), "verified", "fp32", run)]


def _lower(program: Program, path: Path, *, xnnpack: bool) -> tuple[Counter[str], dict[str, int]]:
    """Write the lowered program.

    Returns what it calls, every delegate as one, and what was rewritten for XNNPACK how often.
    """
    source, rewritten = program, {}
    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                XnnpackPartitioner,
            )
            from executorch.exir import to_edge_transform_and_lower

            from exporters.executorch_layout import softmax_in_rows
            from exporters.executorch_products import products_in_batches
            from exporters.xnnpack_taps import cut_depthwise

            partitioners = [XnnpackPartitioner()] if xnnpack else []
            if xnnpack:
                source, rewritten["cut_depthwise"] = cut_depthwise(softmax_in_rows(program))
            source, rewritten["products_in_batches"] = products_in_batches(source)
            edge = to_edge_transform_and_lower(source.exported, partitioner=partitioners)
            lowered = edge.to_executorch()
            path.write_bytes(lowered.buffer)
    except Exception as error:
        raise conversion_error("ExecuTorch", program, error) from error
    return _calls(lowered.exported_program().graph), rewritten


def _calls(graph: Any) -> Counter[str]:
    """How often a lowered graph calls each operator; places in memory are none."""
    names = (str(n.target) for n in graph.nodes if n.op == "call_function")
    return Counter(name for name in names if not name.startswith("<"))


def _opened(path: Path) -> Any:
    try:
        with quiet() as said:
            from executorch.extension.pybindings import portable_lib

            portable_lib._unsafe_reset_threadpool(1)
            module = portable_lib._load_for_executorch(str(path))
            module.method_meta("forward")  # what is no program shows only now
    except Exception as error:
        raise _refusal(path, error, said.tail(2)) from error
    return module


def _run(module: Any, arrays: Sequence[Array]) -> list[Array]:
    import torch

    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return numpy_outputs([output.numpy() for output in module.forward(tensors)])


def _check(path: Path, program: Program) -> None:
    """Open and run a fresh file; the shapes have to be the program's.

    Raises:
        ConversionError: ExecuTorch refuses the file, or a shape is another.
    """
    generator = np.random.default_rng(0)
    noise = [generator.standard_normal(spec.shape, dtype=np.float32) for spec in program.inputs]
    try:
        module = _opened(path)
        with quiet() as said:
            outputs = _run(module, noise)
    except ConversionError as refusal:
        raise _explained(refusal, program) from refusal
    except Exception as error:
        raise _explained(_refusal(path, error, said.tail(4)), program) from error
    shapes = [output.shape for output in outputs]
    if shapes != [spec.shape for spec in program.outputs]:
        raise ConversionError(f"ExecuTorch: the file gives outputs of the shapes {shapes}")


def _refusal(path: Path, error: Exception, said: str) -> ConversionError:
    # The exception has but a number; the words are in what was logged.
    message = " ".join([*said.split(), f"({' '.join(str(error).split())})"])
    return ConversionError(f"{_label()} refuses {path.name}: {message[:400]}")


def _explained(refusal: ConversionError, program: Program) -> ConversionError:
    """The refusal of a fresh file, with the model's layers that use the operator it names."""
    found = re.search(r"aten::([a-z_][a-z0-9_]*)", refusal.message)
    for operator, layers in uses(program, {found.group(1)} if found else ()).items():
        hint = f"{operator}{listed(layers)}, has no kernel there; leave this format out"
        return ConversionError(refusal.message, hint=hint)
    return refusal


def _label() -> str:
    return f"ExecuTorch {version('executorch')}"


def _artifact(
    path: Path,
    program: Program,
    operators: Counter[str],
    rewritten: dict[str, int],
    options: ExecuTorchOptions,
) -> Artifact:
    return Artifact(
        format=ExecuTorchExporter.name,
        file=path.name,
        backend="executorch",
        precision="fp32",
        inputs=program.inputs,
        outputs=program.outputs,
        layouts={spec.name: "NCHW" for spec in program.inputs if spec.kind == "image"},
        facts={
            "xnnpack": options.xnnpack,
            "delegates": operators[DELEGATE],
            "nodes": sum(operators.values()),
            "operators": dict(sorted(operators.items())),
            "rewritten": rewritten,
            "size_bytes": path.stat().st_size,
        },
        versions={tool: version(tool) for tool in ("torch", "executorch")},
    )
