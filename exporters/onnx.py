"""ONNX files, written by torch's own exporters and run by onnxruntime.

The older of torch's exporters comes first and the newer one is only asked where it failed; why, and
what each of them needs, is told in :mod:`exporters.onnx_routes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgevit.errors import ConversionError, MissingExtraError, OptionError
from exporters.base import Array, Artifact, CannotVerifyError, ExporterOptions, Runner
from exporters.onnx_attention import join_attention
from exporters.onnx_biases import join_biases
from exporters.onnx_checks import check_model, check_runs, open_session, run_session
from exporters.onnx_maps import turn_maps
from exporters.onnx_norms import keep_norms_apart
from exporters.onnx_routes import WRITERS, restore_inputs, simplified
from exporters.onnx_single import leave_out_batch
from exporters.onnx_sums import sums_as_products
from exporters.onnx_turns import join_turns

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["OnnxExporter", "OnnxOptions"]

#: The IR version that an opset came out with, which is the oldest that it may stand in.
ERA_IR = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
NEWEST_IR = 13
#: The opset of a file that needs no other, and the first in which GELU is one operator. onnxruntime
#: fuses what the exact one is written as before, but not its tanh form, which takes five times as
#: long in parts (1.31 on AVX-512).
USUAL_OPSET, GELU_OPSET = 17, 20
#: The first opset in which attention is one operator.
ATTENTION_OPSET = 23
AUTO = "auto"
#: What onnxruntime runs faster than what means the same. A batch is left out where permutations are
#: left by those before; then some scores are matrices that were none.
REWRITES = (
    keep_norms_apart, sums_as_products, turn_maps, join_turns, leave_out_batch, join_biases,
)  # fmt: skip


@dataclass(frozen=True)
class OnnxOptions(ExporterOptions):
    """What kind of ONNX file to write.

    Args:
        opset: 13 to 23; if None 17, or 20 for a model with a GELU in its tanh form, or 23 with
            ``attention``. Boards with old runtimes need old ones (onnxruntime 1.10: at most 15).
        ir_version: of the file format, at least what the opset needs; just that if None.
        rewrite: write what onnxruntime runs fast in place of what means the same, see
            :mod:`exporters.onnx_norms`, ``onnx_sums``, ``onnx_maps``, ``onnx_turns``,
            ``onnx_single`` and ``onnx_biases``. What it does to the speed of other runtimes was not
            measured.
        attention: write attention as one operator, see :mod:`exporters.onnx_attention`; runtimes
            know it since they read opset 23 (onnxruntime 1.23).
        simplify: run onnxsim over the model.
        exporter: ``"torchscript"``, ``"dynamo"``, or ``"auto"``: the first, and the second if the
            first fails.

    Raises:
        OptionError: a value that an option cannot have.
        MissingExtraError: ``simplify`` without onnxsim.
    """

    opset: int | None = None
    ir_version: int | None = None
    rewrite: bool = True
    attention: bool = False
    simplify: bool = False
    exporter: str = AUTO

    def __post_init__(self) -> None:
        for option in ("rewrite", "attention", "simplify"):
            if not isinstance(value := getattr(self, option), bool):
                raise OptionError(option, expected="true or false", got=value)
        least = ATTENTION_OPSET if self.attention else USUAL_OPSET
        opset = least if self.opset is None else self.opset
        _check_number("opset", opset, min(ERA_IR), max(ERA_IR))
        if self.attention and opset < ATTENTION_OPSET:
            expected = f"{ATTENTION_OPSET}, the first with one operator for attention"
            raise OptionError("opset", expected=expected, got=opset, hint="leave attention out")
        if self.ir_version is not None:
            hint = f"opset {opset} came with IR version {ERA_IR[opset]}"
            _check_number("ir_version", self.ir_version, ERA_IR[opset], NEWEST_IR, hint)
        if self.exporter not in (AUTO, *WRITERS):
            expected = " or ".join((AUTO, *WRITERS))
            raise OptionError("exporter", expected=expected, got=self.exporter)
        if self.simplify and find_spec("onnxsim") is None:
            raise MissingExtraError("onnx option simplify", ["onnxsim"], OnnxExporter.extra)

    @property
    def opsets(self) -> tuple[int, ...]:
        """Those that a file may get, the usual one first."""
        if self.opset is not None:
            return (self.opset,)
        if self.attention:
            return (ATTENTION_OPSET,)
        most = self.ir_version or NEWEST_IR
        return tuple(o for o in (USUAL_OPSET, GELU_OPSET) if ERA_IR[o] <= most)

    def ir_of(self, opset: int) -> int:
        """The IR version that a file of that opset gets."""
        return self.ir_version or ERA_IR[opset]

    def fitted(self, program: Program) -> OnnxOptions:
        """With the opset that suits the program, where none was asked for."""
        usual, *others = self.opsets
        suits = GELU_OPSET in others and _has_tanh_gelu(program)
        return replace(self, opset=GELU_OPSET if suits else usual)

    @property
    def routes(self) -> tuple[str, ...]:
        """The exporters to try, in order."""
        return tuple(WRITERS) if self.exporter == AUTO else (self.exporter,)


def _check_number(option: str, got: object, low: int, high: int, hint: str | None = None) -> None:
    if isinstance(got, bool) or not isinstance(got, int) or not low <= got <= high:
        expected = f"a whole number from {low} to {high}"
        raise OptionError(option, expected=expected, got=got, hint=hint)


def _has_tanh_gelu(program: Program) -> bool:
    nodes = program.origin.graph.nodes
    return any("gelu" in str(n.target) and n.kwargs.get("approximate") == "tanh" for n in nodes)


class OnnxExporter:
    """ONNX, run by onnxruntime on the CPU."""

    name: ClassVar[str] = "onnx"
    file: ClassVar[str] = "model.onnx"
    extra: ClassVar[str] = "onnx"
    options: ClassVar[type[ExporterOptions]] = OnnxOptions
    dynamic_batch: ClassVar[bool] = True

    def missing(self) -> list[str]:
        """Importable packages that it needs and that are not installed."""
        return [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]

    def export(self, program: Program, folder: Path, options: OnnxOptions) -> Artifact:
        """Write ``folder / "model.onnx"``, one file with its weights, and run it once.

        Raises:
            ConversionError: no exporter could, or the file is not what was asked for, or
                onnxruntime refuses it, or there is no attention where it was to be one operator.
        """
        failures, options = [], options.fitted(program)
        for route in options.routes:
            written = _attempt(route, program, folder / self.file, options)
            if isinstance(written, Artifact):
                _require_attention(written, options)
                return written
            failures.append(written)
        raise _joined(failures)

    def load(self, artifact: Artifact, folder: Path) -> list[Runner]:
        """onnxruntime on one thread; a second time, with more rows, where the batch is dynamic.

        Raises:
            CannotVerifyError: onnxruntime is not installed.
            ConversionError: it refuses the file.
        """
        if find_spec("onnxruntime") is None:
            raise CannotVerifyError("onnxruntime is not installed")
        session = open_session(folder / artifact.file)
        label = f"onnxruntime {version('onnxruntime')}"

        def run(arrays: Sequence[Array]) -> list[Array]:
            return run_session(session, artifact.inputs, arrays)

        def run_among_others(arrays: Sequence[Array]) -> list[Array]:
            # Other rows stand before the ones that count, so a row that leaks into another shows.
            outputs = run([np.concatenate([array * 0.5, -array, array]) for array in arrays])
            return [output[-len(arrays[0]) :] for output in outputs]

        runners = [Runner(label, "verified", "fp32", run)]
        if artifact.facts["dynamic_batch"]:
            runners.append(Runner(f"{label}, batch x 3", "verified", "fp32", run_among_others))
        return runners


def _attempt(
    route: str, program: Program, path: Path, options: OnnxOptions
) -> Artifact | ConversionError:
    (opset,) = options.opsets
    try:
        made = WRITERS[route](program, opset, path)
        rewritten = _write(made, path, program, options)
        model = _read(path)
        check_model(model, program, opset=opset, ir_version=options.ir_of(opset))
        check_runs(path, program)
    except ConversionError as failure:
        return failure
    return _artifact(model, path, program, options, route, rewritten)


def _write(model: Any, path: Path, program: Program, options: OnnxOptions) -> dict[str, int]:
    """Finish a model and write it; returns what was rewritten how often."""
    import onnx

    model = simplified(model) if options.simplify else model
    restore_inputs(model, program)
    rewritten = {}
    if options.attention:
        rewritten["join_attention"] = join_attention(model)
    if options.rewrite:
        rewritten |= {rule.__name__: rule(model) for rule in REWRITES}
    (opset,) = options.opsets
    model.ir_version = options.ir_of(opset)
    try:
        onnx.save_model(model, path)
    except ValueError as error:
        raise ConversionError(
            f"ONNX: the model does not fit into one file: {error}",
            hint="a protobuf file ends at 2 GB",
        ) from error
    return rewritten


def _read(path: Path) -> Any:
    import onnx

    return onnx.load_model(path, load_external_data=False)


def _artifact(
    model: Any,
    path: Path,
    program: Program,
    options: OnnxOptions,
    route: str,
    rewritten: dict[str, int],
) -> Artifact:
    operators = Counter(node.op_type for node in model.graph.node)
    tools = ["torch", "onnx", "onnxruntime"]
    tools += ["onnxsim"] if options.simplify else []
    tools += ["onnxscript"] if route == "dynamo" else []
    return Artifact(
        format=OnnxExporter.name,
        file=path.name,
        backend="onnxruntime",
        precision="fp32",
        inputs=program.inputs,
        outputs=program.outputs,
        layouts={spec.name: "NCHW" for spec in program.inputs if spec.kind == "image"},
        facts={
            "opset": options.opset,
            "ir_version": model.ir_version,
            "exporter": route,
            "simplified": options.simplify,
            "rewritten": rewritten,
            "dynamic_batch": program.dynamic_batch,
            "nodes": sum(operators.values()),
            "operators": dict(sorted(operators.items())),
            "size_bytes": path.stat().st_size,
        },
        versions={tool: version(tool) for tool in tools},
    )


def _require_attention(written: Artifact, options: OnnxOptions) -> None:
    if options.attention and not written.facts["rewritten"]["join_attention"]:
        raise ConversionError(
            "ONNX: no attention of this model can be one operator", hint="leave attention out"
        )


def _joined(failures: Sequence[ConversionError]) -> ConversionError:
    """The first exporter's failure; what the newer one said goes into the hint."""
    first, *others = failures
    parts = [first.hint]
    for other in others:
        same = _gist(other) == _gist(first)
        parts.append(f"torch's newer exporter {'cannot either' if same else f'says: {other}'}")
        parts.append(other.hint if other.hint != first.hint else None)
    return ConversionError(first.message, hint="; ".join(filter(None, parts)) or None)


def _gist(failure: ConversionError) -> list[str]:
    """Who gave up on which operator, without the converter's own words."""
    return failure.message.split(": ")[:2]
