"""The captured graph itself as a file, run by torch's eager operators: what the papers call CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgevit.errors import ConversionError
from exporters.base import (
    Array,
    Artifact,
    CannotVerifyError,
    ExporterOptions,
    Runner,
    numpy_outputs,
)
from exporters.failure import conversion_error
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["TorchExporter", "TorchOptions"]


@dataclass(frozen=True)
class TorchOptions(ExporterOptions):
    """There is nothing to choose."""


class TorchExporter:
    """A ``torch.export`` archive, run by torch's eager operators."""

    name: ClassVar[str] = "torch"
    file: ClassVar[str] = "model.pt2"
    extra: ClassVar[str] = "all"
    options: ClassVar[type[ExporterOptions]] = TorchOptions
    dynamic_batch: ClassVar[bool] = True

    def missing(self) -> list[str]:
        """Importable packages that it needs and that are not installed."""
        return [name for name in ("torch",) if find_spec(name) is None]

    def export(self, program: Program, folder: Path, options: TorchOptions) -> Artifact:
        """Write ``folder / "model.pt2"`` and run it once.

        Raises:
            ConversionError: the program cannot be saved, or not be loaded again.
        """
        import torch

        path = folder / self.file
        try:
            with quiet():
                torch.export.save(program.exported, path)
        except Exception as error:
            raise conversion_error("torch.export.save", program, error) from error
        _check(_opened(path), program)
        return _artifact(path, program)

    def load(self, artifact: Artifact, folder: Path) -> list[Runner]:
        """torch's eager operators.

        Raises:
            CannotVerifyError: torch is not installed.
            ConversionError: torch refuses the file.
        """
        if self.missing():
            raise CannotVerifyError("torch is not installed")
        return [Runner(_label(), "verified", "fp32", _opened(folder / artifact.file))]


def _opened(path: Path) -> Callable[[Sequence[Array]], list[Array]]:
    import torch

    try:
        with quiet():
            module = torch.export.load(path).module(check_guards=False)
    except Exception as error:
        raise ConversionError(
            f"{_label()} refuses {path.name}: {str(error).partition(chr(10))[0][:300]}",
            hint="export again: the file is damaged, or of another version of torch",
        ) from error

    def run(arrays: Sequence[Array]) -> list[Array]:
        with torch.inference_mode():
            out = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
        return numpy_outputs([out] if isinstance(out, torch.Tensor) else out)

    return run


def _check(run: Callable[[Sequence[Array]], list[Array]], program: Program) -> None:
    generator = np.random.default_rng(0)
    inputs = [generator.standard_normal(s.shape, dtype=np.float32) for s in program.inputs]
    for spec, output in zip(program.outputs, run(inputs), strict=True):
        if output.shape != spec.shape:
            raise ConversionError(f"torch: the file gives {spec.name} the shape {output.shape}")


def _label() -> str:
    return f"torch {version('torch')}"


def _artifact(path: Path, program: Program) -> Artifact:
    called: list[Any] = [n.target for n in program.exported.graph.nodes if n.op == "call_function"]
    operators = Counter(str(target.__name__).partition(".")[0] for target in called)
    return Artifact(
        format=TorchExporter.name,
        file=path.name,
        backend="torch",
        precision="fp32",
        inputs=program.inputs,
        outputs=program.outputs,
        layouts={spec.name: "NCHW" for spec in program.inputs if spec.kind == "image"},
        facts={
            "dynamic_batch": program.dynamic_batch,
            "nodes": sum(operators.values()),
            "operators": dict(sorted(operators.items())),
            "size_bytes": path.stat().st_size,
        },
        versions={"torch": version("torch")},
    )
