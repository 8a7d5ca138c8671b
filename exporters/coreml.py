"""Core ML: an ML program in an ``.mlpackage``, checked by the MIL reference interpreter."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgevit.errors import (
    BundleError,
    ConversionError,
    MissingExtraError,
    OptionError,
    VerificationError,
)
from edgevit.tensorspec import TensorSpec
from exporters.base import Array, Artifact, CannotVerifyError, ExporterOptions, Runner
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.capture import Program
    from exporters.mil import Interpreter, MilProgram, MilType

__all__ = ["CoreMLExporter", "CoreMLOptions"]

TARGETS = ("ios15", "ios16", "ios17", "ios18")
PRECISIONS = ("fp16", "fp32")
#: ``keep_fp32`` that keeps what overflows, and nothing else.
AUTO = "auto"
#: How often a package is converted anew because it overflows where it did not show before.
ROUNDS = 3


@dataclass(frozen=True)
class CoreMLOptions(ExporterOptions):
    """Options of the Core ML format.

    Args:
        target: the oldest system that has to run it, ``"ios15"`` to ``"ios18"``.
        precision: ``"fp16"``, which the Neural Engine needs, or ``"fp32"``.
        keep_fp32: types of Core ML ops that stay in fp32 in an fp16 file, such as ``layer_norm``;
            a tuple, or text with commas. ``"auto"`` keeps the types that overflow when the
            reference interpreter runs the file on noise and on a white picture, ``""`` none.

    Raises:
        OptionError: an option has a value it cannot have.
    """

    target: str = "ios16"
    precision: str = "fp16"
    keep_fp32: str | tuple[str, ...] = AUTO

    def __post_init__(self) -> None:
        for name, known in (("target", TARGETS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise OptionError(name, expected=" or ".join(known), got=getattr(self, name))
        if self.keep_fp32 == AUTO:
            return
        kept = self.keep_fp32.split(",") if isinstance(self.keep_fp32, str) else self.keep_fp32
        object.__setattr__(self, "keep_fp32", tuple(k.strip() for k in kept if k.strip()))
        if self.keep_fp32 and self.precision == "fp32":
            raise OptionError(
                "keep_fp32", expected="nothing with precision fp32", got=self.keep_fp32
            )


class CoreMLExporter:
    """Writes ML programs with coremltools: static shapes, inputs and outputs in fp32."""

    name: ClassVar[str] = "coreml"
    file: ClassVar[str] = "model.mlpackage"
    extra: ClassVar[str] = "coreml"
    options: ClassVar[type[ExporterOptions]] = CoreMLOptions
    dynamic_batch: ClassVar[bool] = False

    def missing(self) -> list[str]:
        """coremltools, if it is not installed."""
        return [] if importlib.util.find_spec("coremltools") else ["coremltools"]

    def export(self, program: Program, folder: Path, options: CoreMLOptions) -> Artifact:
        """Write ``folder / "model.mlpackage"`` and read it back once.

        Raises:
            ConversionError: coremltools cannot convert the program, or wrote an unreadable package.
            OptionError: the program has a dynamic batch, or ``keep_fp32`` names no type of op.
            MissingExtraError: coremltools is not installed.
            OutputError: the folder cannot be written.
        """
        if missing := self.missing():
            raise MissingExtraError("format coreml", missing, self.extra)
        if program.dynamic_batch:
            raise OptionError(
                "dynamic_batch",
                expected="a fixed batch for format coreml",
                got=True,
                hint="export without dynamic batch, once for each batch size",
            )
        facts, warnings = _write(program, folder / self.file, options)
        return Artifact(
            format=self.name,
            file=self.file,
            backend="coreml",
            precision=options.precision,
            inputs=program.inputs,
            outputs=program.outputs,
            layouts={spec.name: "NCHW" for spec in program.inputs if spec.kind == "image"},
            facts=facts,
            versions={name: version(name) for name in ("coremltools", "torch")},
            warnings=warnings,
        )

    def load(self, artifact: Artifact, folder: Path) -> list[Runner]:
        """The reference interpreter, in both precisions for an fp16 file; on macOS Core ML too.

        Raises:
            BundleError: the package is damaged.
            VerificationError: the package takes or gives something else than the artifact says.
            CannotVerifyError: it has ops that the interpreter does not know, and this is no Mac.
        """
        from exporters.mil import read_package

        path = folder / artifact.file
        program = read_package(path)
        _check_border("input", artifact.inputs, program.inputs)
        _check_border("output", artifact.outputs, program.outputs)
        native = [_native(path, artifact)] if sys.platform == "darwin" else []
        try:
            return [*native, *_references(program, artifact.precision)]
        except CannotVerifyError:
            if native:
                return native
            raise


class Reference:
    """A package run by the reference interpreter: arrays in, arrays out."""

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Run it once.

        Raises:
            VerificationError: fp16 overflowed, and the outputs are not finite.
        """
        import torch

        from exporters.coreml_range import kinds, told

        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
        outputs = [np.ascontiguousarray(out.numpy()) for out in self.interpreter(tensors)]
        over = self.interpreter.overflows
        if over and not all(np.isfinite(out).all() for out in outputs):
            raise VerificationError(
                f"the outputs are not finite: {told(over)}",
                hint=f"export with keep_fp32={kinds(over)}, or with precision=fp32",
            )
        return outputs


def _references(program: MilProgram, precision: str) -> list[Runner]:
    import torch

    from exporters.mil import Interpreter

    def runner(precision: str, detail: str, interpreter: Interpreter) -> Runner:
        label = f"MIL reference interpreter, {detail}"
        return Runner(label, "reference", precision, Reference(interpreter))

    half = Interpreter(program, half=True)
    # What has no meaning to the interpreter shows here, not in the middle of a verification.
    half([torch.zeros(t.shape or ()) for t in program.inputs])
    if precision == "fp32":
        # Nothing is rounded but what the file itself casts to fp16.
        return [runner("fp32", "fp32", half)]
    return [
        runner("fp16-weights", "fp32 on fp16 weights", Interpreter(program)),
        runner("fp16", "every result rounded to fp16", half),
    ]


def _native(path: Path, artifact: Artifact) -> Runner:
    """Core ML itself, on the CPU.

    Written to the documentation of coremltools; no machine with Core ML has run it yet.
    """
    import coremltools

    with quiet():
        try:
            model = coremltools.models.MLModel(
                str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY
            )
        except Exception as error:
            raise ConversionError(f"Core ML refuses the package: {error}") from error

    def run(inputs: Sequence[Array]) -> list[Array]:
        named = {s.name: a for s, a in zip(artifact.inputs, inputs, strict=True)}
        outputs = model.predict(named)
        return [np.ascontiguousarray(outputs[spec.name]) for spec in artifact.outputs]

    label = f"Core ML of macOS {platform.mac_ver()[0]}, CPU only"
    return Runner(label, "verified", artifact.precision, run)


def _check_border(side: str, claimed: Sequence[TensorSpec], found: Sequence[MilType]) -> None:
    want = [(s.name, tuple(s.shape), _MIL_NAMES.get(s.dtype, s.dtype)) for s in claimed]
    have = [(t.name, t.shape, t.dtype) for t in found]
    if want != have:
        raise VerificationError(
            f"the package declares the {side}s {_listed(have)}, expected {_listed(want)}",
            hint="the file is not the one that the manifest describes",
        )


_MIL_NAMES = {"float32": "fp32", "float16": "fp16"}


def _listed(border: Sequence[tuple[Any, ...]]) -> str:
    return ", ".join(f"{name} {shape} {dtype}" for name, shape, dtype in border) or "none"


def _write(
    program: Program, path: Path, options: CoreMLOptions
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write the package; what it says of itself, and what the user should know."""
    from exporters.coreml_range import find_range, told
    from exporters.mil.islands import BORDER, find_islands

    kept = () if isinstance(options.keep_fp32, str) else options.keep_fp32
    facts: dict[str, Any] = {"target": options.target, "options": asdict(options)}
    reasons: list[str] = []
    while True:
        try:
            package = _convert(program, path, options, kept)
            facts |= _facts(package, path)
            if options.precision == "fp32":
                return facts, ()
            found = find_range(package, program.inputs)
        except CannotVerifyError as reason:
            return facts, (*reasons, f"the range of its values was not checked: {reason}")
        more = {op.type for op in found.overflows} - {*kept, *BORDER}
        if options.keep_fp32 != AUTO or not more or len(reasons) == ROUNDS:
            break
        reasons.append(f"{told(found.overflows)}: {', '.join(sorted(more))} stays in fp32")
        kept = (*kept, *sorted(more))
    facts["largest"] = [extreme.to_json() for extreme in found.largest]
    if (islands := find_islands(program, package)).ops:
        facts["kept_fp32"] = islands.to_json()
    return facts, (*reasons, *([found.warning] if found.warning else []))


def _convert(
    program: Program, path: Path, options: CoreMLOptions, kept: Sequence[str]
) -> MilProgram:
    """The package, written and read back."""
    from exporters.mil import read_package
    from exporters.mil.convert import convert, save

    half = options.precision == "fp16"
    save(convert(program, target=options.target, half=half, keep_fp32=kept), path)
    try:
        return read_package(path)
    except BundleError as error:
        raise ConversionError(f"coremltools wrote a damaged package: {error}") from error


def _facts(program: MilProgram, path: Path) -> dict[str, Any]:
    weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    return {
        "specification_version": program.specification_version,
        "ops": dict(sorted(Counter(op.type for op in program.ops).items())),
        "weights_bytes": weights.stat().st_size if weights.exists() else 0,
    }
