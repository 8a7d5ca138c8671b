"""Small modules through the real converter, and programs written in MIL, for the Core ML tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevit.capture import Program, capture, half_weights
from edgevit.tensorspec import TensorSpec
from edgevit.verify import Verification, tolerance_for, verify_outputs
from exporters.base import Artifact, CannotVerifyError
from exporters.coreml import CoreMLExporter, CoreMLOptions
from exporters.mil import Interpreter, MilProgram, read_package
from exporters.quiet import quiet

#: Of the output's scale: what fp32 sums in another order may differ by.
ROUNDING = 2e-6


class Forward(nn.Module):
    """Named layers and a function of (layers, inputs...)."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


@dataclass(frozen=True)
class Saved:
    """A program and the package that was written from it."""

    program: Program
    artifact: Artifact
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / self.artifact.file

    @property
    def mil(self) -> MilProgram:
        return read_package(self.path)

    def inputs(self, count: int = 2) -> list[list[Tensor]]:
        generator = torch.Generator().manual_seed(1)
        specs = self.program.inputs
        return [[torch.randn(s.shape, generator=generator) for s in specs] for _ in range(count)]

    def verify(self) -> list[Verification]:
        """The package against its program, in every way to run it; outputs depend on inputs."""
        samples = self.inputs()
        want = _stacked([self.program(*inputs) for inputs in samples])
        kept = self.artifact.facts.get("kept_fp32", {})
        rounded = half_weights(
            self.program, kept=kept.get("tensors", ()), kept_factors=kept.get("factors", ())
        )
        with torch.inference_mode():
            want_rounded = _stacked([_several(rounded(*inputs)) for inputs in samples])
        try:
            runners = CoreMLExporter().load(self.artifact, self.folder)
        except CannotVerifyError as reason:
            return [Verification("unverified", "none", reason=str(reason))]
        results = []
        for runner in runners:
            runs = [runner.run([tensor.numpy() for tensor in inputs]) for inputs in samples]
            results.append(
                verify_outputs(
                    [spec.name for spec in self.artifact.outputs],
                    want_rounded if runner.precision == "fp16-weights" else want,
                    _stacked(runs),
                    label=runner.label,
                    proves=runner.proves,
                    tolerance=tolerance_for(runner.precision),
                )
            )
        assert all(c.spread > 1e-2 * c.scale for r in results for c in r.comparisons)
        return results

    def error(self) -> float:
        """The largest relative error of the first way to run it."""
        worst = self.verify()[0].worst
        assert worst is not None
        return worst.relative


def _several(outputs: Any) -> Sequence[Any]:
    return outputs if isinstance(outputs, (tuple, list)) else (outputs,)


def _stacked(runs: Sequence[Sequence[Any]]) -> list[NDArray[Any]]:
    return [np.stack([np.asarray(o) for o in outputs]) for outputs in zip(*runs, strict=True)]


def captured(module: nn.Module, *shapes: Sequence[int]) -> Program:
    names = ["x", "y", "z"]
    specs = [TensorSpec(name, tuple(shape)) for name, shape in zip(names, shapes, strict=False)]
    return capture(module, specs)


def save(program: Program, folder: Path, **options: Any) -> Saved:
    artifact = CoreMLExporter().export(program, folder, CoreMLOptions(**options))
    return Saved(program, artifact, folder)


def written(
    build: Callable[..., Any], folder: Path, *shapes: Sequence[int], target: str = "iOS16"
) -> MilProgram:
    """A program written with coremltools' builder, saved as it stands and read back."""
    with quiet():
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb  # noqa: N813

        version = ct.target[target]
        specs = [mb.TensorSpec(shape=tuple(shape)) for shape in shapes]
        model = ct.convert(
            mb.program(input_specs=specs, opset_version=version)(build),
            convert_to="mlprogram",
            minimum_deployment_target=version,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(folder / "written.mlpackage"))
    return read_package(folder / "written.mlpackage")


def run(program: MilProgram, *inputs: Tensor) -> Tensor:
    (output,) = Interpreter(program)(inputs)
    return output
