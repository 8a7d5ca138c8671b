"""TFLite files, written by LiteRT's converter and run by its interpreter.

The tensors of the file's one signature have the program's names, and stand in its order. Images
come as the program has them (NCHW) or with channels last; inside, the converter works with channels
last either way, so ``"nhwc"`` saves the transpose at the border and no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgevit.errors import OptionError
from edgevit.tensorspec import TensorSpec
from exporters.base import Array, Artifact, ExporterOptions, Runner
from exporters.failure import conversion_error
from exporters.quiet import quiet
from exporters.tflite_checks import (
    check,
    count_operators,
    open_interpreter,
    run_interpreter,
    runtime_label,
)

if TYPE_CHECKING:
    from torch import nn

    from edgevit.capture import Program

__all__ = ["TFLiteExporter", "TFLiteOptions"]

LAYOUTS = ("nchw", "nhwc")
CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
#: So many transposes, and such a share of all operators, are worth a warning.
MANY_TRANSPOSES, MUCH_TRANSPOSING = 8, 0.1


@dataclass(frozen=True)
class TFLiteOptions(ExporterOptions):
    """What kind of TFLite file to write.

    Args:
        layout: of image inputs, ``"nchw"`` or ``"nhwc"``.

    Raises:
        OptionError: another layout.
    """

    layout: str = "nchw"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise OptionError("layout", expected=" or ".join(LAYOUTS), got=self.layout)


class TFLiteExporter:
    """TFLite, run by LiteRT's interpreter on the CPU (with XNNPACK)."""

    name: ClassVar[str] = "tflite"
    file: ClassVar[str] = "model.tflite"
    extra: ClassVar[str] = "tflite"
    options: ClassVar[type[ExporterOptions]] = TFLiteOptions
    dynamic_batch: ClassVar[bool] = False

    def missing(self) -> list[str]:
        """Importable packages that it needs and that are not installed."""
        return [name for name in ("litert_torch", "ai_edge_litert") if find_spec(name) is None]

    def export(self, program: Program, folder: Path, options: TFLiteOptions) -> Artifact:
        """Write ``folder / "model.tflite"`` and run it once.

        Raises:
            ConversionError: the converter gave up, or the interpreter refuses the file.
            OptionError: the program's batch is dynamic, or it has no image to lay out otherwise.
        """
        if program.dynamic_batch:
            raise OptionError(
                "dynamic_batch",
                expected="a fixed batch for format tflite",
                got=True,
                hint="export tflite by itself, without dynamic batch",
            )
        layouts = _layouts(program, options)
        path = folder / self.file
        rewritten = _convert(program, layouts, path)
        inputs = tuple(_in_file(spec, layouts) for spec in program.inputs)
        check(path, program, inputs)
        return _artifact(path, program, inputs, layouts, rewritten)

    def load(self, artifact: Artifact, folder: Path) -> list[Runner]:
        """LiteRT's interpreter, or the older ``tflite_runtime``, on one thread.

        Raises:
            CannotVerifyError: neither is installed.
            ConversionError: the interpreter refuses the file.
        """
        interpreter = open_interpreter(folder / artifact.file)
        last = [artifact.layouts.get(spec.name) == "NHWC" for spec in artifact.inputs]

        def run(arrays: Sequence[Array]) -> list[Array]:
            laid_out = [
                array.transpose(CHANNELS_LAST) if channels_last else array
                for array, channels_last in zip(arrays, last, strict=True)
            ]
            return run_interpreter(interpreter, laid_out)

        return [Runner(runtime_label(), "verified", "fp32", run)]


def _layouts(program: Program, options: TFLiteOptions) -> dict[str, str]:
    images = [s.name for s in program.inputs if s.kind == "image" and len(s.shape) == 4]
    if options.layout == "nhwc" and not images:
        raise OptionError(
            "layout",
            expected="nchw for a program without an image input",
            got=options.layout,
            hint="leave the option out",
        )
    return dict.fromkeys(images, options.layout.upper())


def _in_file(spec: TensorSpec, layouts: dict[str, str]) -> TensorSpec:
    if layouts.get(spec.name) != "NHWC":
        return spec
    shape = tuple(spec.shape[axis] for axis in CHANNELS_LAST)
    return TensorSpec(spec.name, shape, spec.kind, spec.dtype)


def _convert(program: Program, layouts: dict[str, str], path: Path) -> dict[str, int]:
    """Write the file; returns what was rewritten how often."""
    import torch

    from exporters.xnnpack_taps import cut_depthwise

    examples = {spec.name: torch.zeros(_in_file(spec, layouts).shape) for spec in program.inputs}
    try:
        with quiet():
            import litert_torch

            cut, count = cut_depthwise(program)
            module = _with_names(cut, layouts)
            litert_torch.convert(module, sample_kwargs=examples).export(str(path))
    except Exception as error:
        raise conversion_error("TFLite", program, error) from error
    return {"cut_depthwise": count}


def _with_names(program: Program, layouts: dict[str, str]) -> nn.Module:
    """The program's graph taking keywords and giving a dict: the converter keeps those names."""
    from torch import Tensor, nn

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = program.graph_module()

        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            ordered = [
                inputs[spec.name].permute(CHANNELS_FIRST)
                if layouts.get(spec.name) == "NHWC"
                else inputs[spec.name]
                for spec in program.inputs
            ]
            out = self.inner(*ordered)
            values = [out] if isinstance(out, Tensor) else out
            return {spec.name: v for spec, v in zip(program.outputs, values, strict=True)}

    return Named().eval()


def _artifact(
    path: Path,
    program: Program,
    inputs: tuple[TensorSpec, ...],
    layouts: dict[str, str],
    rewritten: dict[str, int],
) -> Artifact:
    operators = count_operators(path)
    transposes, nodes = operators["TRANSPOSE"], sum(operators.values())
    warnings = []
    if transposes >= max(MANY_TRANSPOSES, MUCH_TRANSPOSING * nodes):
        warnings.append(
            f"{transposes} of {nodes} operators are transposes: TFLite computes with channels last "
            "and the model keeps changing the order of its axes"
        )
    return Artifact(
        format=TFLiteExporter.name,
        file=path.name,
        backend="tflite",
        precision="fp32",
        inputs=inputs,
        outputs=program.outputs,
        layouts=layouts,
        facts={
            "layout": next((layout.lower() for layout in layouts.values()), None),
            "transposes": transposes,
            "nodes": nodes,
            "operators": dict(sorted(operators.items())),
            "rewritten": rewritten,
            "size_bytes": path.stat().st_size,
        },
        versions={tool: version(tool) for tool in ("torch", "litert-torch", "ai-edge-litert")},
        warnings=tuple(warnings),
    )
