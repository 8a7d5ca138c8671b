"""What an exporter is: its options, the file it writes, and how that file is run to check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import OptionError, UnknownNameError
from edgevit.registry import PluginRegistry
from edgevit.tensorspec import TensorSpec

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = [
    "Artifact",
    "CannotVerifyError",
    "Exporter",
    "ExporterOptions",
    "Runner",
    "exporters",
    "make_options",
]

Array = NDArray[Any]


class CannotVerifyError(Exception):
    """A written file cannot be checked here; the message says why."""


class ExporterOptions:
    """Base of the frozen dataclasses that hold a format's options; each validates itself."""


@dataclass(frozen=True)
class Artifact:
    """One exported model file (or folder, for Core ML packages).

    Args:
        format: the exporter's name.
        file: name of the file inside the bundle.
        backend: what runs it in the agent: ``"onnxruntime"``, ``"tflite"``, ``"coreml"`` or
            ``"torch"``.
        precision: ``"fp32"`` or ``"fp16"``, how it computes.
        inputs: names and shapes as the file takes them, in the program's order.
        outputs: the same of what it gives.
        layouts: per image-like input its layout in the file (``"NCHW"`` or ``"NHWC"``).
        facts: what the file says of itself (opset, IR version, target, ...) and the options used;
            under ``kept_fp32`` what a file of half precision keeps in fp32: ``ops`` by type, and
            the program's ``tensors`` and ``factors`` that are not rounded.
        versions: of the tools that wrote it.
        warnings: what the user should know.
    """

    format: str
    file: str
    backend: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layouts: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runner:
    """A way to run a written file, for verification.

    Args:
        label: what runs it, with version (``"onnxruntime 1.31.1"``).
        proves: the status that agreement earns: ``"verified"`` (the format's own runtime) or
            ``"reference"`` (graph and weights proved, the vendor's kernels not).
        precision: chooses the tolerance: ``"fp32"``, ``"fp16"`` or ``"fp16-weights"`` (weights
            rounded, arithmetic in fp32).
        run: arrays in the program's order and layout (NCHW) to arrays in the outputs' order.
    """

    label: str
    proves: str
    precision: str
    run: Callable[[Sequence[Array]], list[Array]]


class Exporter(Protocol):
    """A format. Instances hold no state."""

    name: ClassVar[str]
    #: The file's name in a bundle, such as ``model.onnx``.
    file: ClassVar[str]
    #: The extra of edgevit that brings what it needs.
    extra: ClassVar[str]
    options: ClassVar[type[ExporterOptions]]
    dynamic_batch: ClassVar[bool]

    def missing(self) -> list[str]:
        """Importable packages that it needs and that are not installed; imports nothing heavy."""
        ...

    def export(self, program: Program, folder: Path, options: Any) -> Artifact:
        """Write ``folder / self.file``, open it once, and tell what was written.

        Raises:
            ConversionError: the converter gave up, or the runtime refuses the file.
            OptionError: the options do not fit this program (static format, dynamic batch).
        """
        ...

    def load(self, artifact: Artifact, folder: Path) -> list[Runner]:
        """Ways to run the written file; every one has to agree with the program.

        Raises:
            CannotVerifyError: nothing here can run it.
        """
        ...


exporters: PluginRegistry[Exporter] = PluginRegistry(
    "format", "edgevit.exporters", listing="edgevit doctor"
)


def make_options(exporter: Exporter, values: dict[str, Any]) -> ExporterOptions:
    """The exporter's options from keywords.

    Raises:
        OptionError: the format has no such option, or it cannot have that value.
    """
    known = [f.name for f in fields(exporter.options)]  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            near = UnknownNameError("option", name, known)
            have = f"format {exporter.name} has {', '.join(known) or 'no options'}"
            raise OptionError(
                name,
                expected=f"an option of format {exporter.name}",
                got=value,
                hint="; ".join(part for part in (near.hint, have) if part),
            )
    return exporter.options(**values)


def numpy_outputs(outputs: Sequence[Any]) -> list[Array]:
    """Outputs as contiguous numpy arrays."""
    return [np.ascontiguousarray(np.asarray(o)) for o in outputs]
