"""What a written TFLite file must stand before it counts as written: an interpreter that runs it.

The converter writes operators that the interpreter does not know (``torch.eye`` becomes one), so
nothing is believed until the file was opened, run, and has the right tensors in the right order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.errors import ConversionError
from edgevit.tensorspec import TensorSpec
from exporters.base import Array, CannotVerifyError, numpy_outputs
from exporters.failure import listed, uses
from exporters.quiet import quiet

if TYPE_CHECKING:
    from edgevit.capture import Program

__all__ = ["check", "count_operators", "open_interpreter", "run_interpreter", "runtime_label"]

#: Packages that run such a file, the current one first, and their names in a package index.
RUNTIMES = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}
#: Operators that the interpreter does not know: what becomes one, and what to do about it.
UNKNOWN = {
    "STABLEHLO_IOTA": (("eye", "arange", "tril", "triu"), "make its result a buffer of the module"),
    "STABLEHLO_SORT": (("topk", "sort", "argsort"), "leave this format out"),
}


def runtime_label() -> str:
    """What runs a file here, with its version.

    Raises:
        CannotVerifyError: nothing does.
    """
    runtime = _runtime()
    name = "LiteRT" if runtime == "ai_edge_litert" else runtime
    return f"{name} {version(RUNTIMES[runtime])}"


def _runtime() -> str:
    for name in RUNTIMES:
        if find_spec(name) is not None:
            return name
    raise CannotVerifyError(f"neither {' nor '.join(RUNTIMES)} is installed")


def open_interpreter(path: Path) -> Any:
    """An interpreter with one thread, ready to run.

    Raises:
        CannotVerifyError: no runtime is installed.
        ConversionError: the runtime refuses the file.
    """
    runtime = _runtime()
    try:
        with quiet() as said:
            if runtime == "ai_edge_litert":
                from ai_edge_litert.interpreter import Interpreter
            else:
                from tflite_runtime.interpreter import Interpreter
            interpreter = Interpreter(model_path=str(path), num_threads=1)
            interpreter.allocate_tensors()
    except Exception as error:
        raise _refusal(path, error, said.tail(2)) from error
    return interpreter


def _refusal(path: Path, error: Exception, said: str) -> ConversionError:
    # What follows the first sentence is advice for those who build the runtime.
    message = (" ".join(str(error).split()) or said).partition(". ")[0]
    return ConversionError(f"{runtime_label()} refuses {path.name}: {message[:300]}")


def _explained(refusal: ConversionError, program: Program) -> ConversionError:
    """The refusal of a fresh file, with the model's operators that may be behind it."""
    for written, (operators, advice) in UNKNOWN.items():
        for operator, layers in uses(program, operators).items():
            if written in refusal.message:
                hint = f"{operator}{listed(layers)}, becomes {written}; {advice}"
                return ConversionError(refusal.message, hint=hint)
    return refusal


def run_interpreter(interpreter: Any, arrays: Sequence[Array]) -> list[Array]:
    """Inputs in the file's order and layout to outputs in the file's order."""
    for details, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(details["index"], np.ascontiguousarray(array))
    interpreter.invoke()
    return numpy_outputs(
        [interpreter.get_tensor(details["index"]) for details in interpreter.get_output_details()]
    )


def check(path: Path, program: Program, inputs: Sequence[TensorSpec]) -> None:
    """Open and run a fresh file; compare its tensors with what was asked for.

    Args:
        path: the file.
        program: what it was made from.
        inputs: the program's inputs as they should stand in the file.

    Raises:
        ConversionError: the runtime refuses the file, or a name, a shape or the order is wrong.
    """
    try:
        interpreter = open_interpreter(path)
        outputs = _try(interpreter, path, inputs)
    except ConversionError as refusal:
        raise _explained(refusal, program) from refusal
    signature = interpreter.get_signature_runner()
    _check_order(signature.get_input_details(), interpreter.get_input_details(), inputs)
    _check_order(signature.get_output_details(), interpreter.get_output_details(), program.outputs)
    for spec, output in zip(program.outputs, outputs, strict=True):
        if output.shape != spec.shape:
            raise ConversionError(f"TFLite: the file gives {spec.name} the shape {output.shape}")


def _try(interpreter: Any, path: Path, inputs: Sequence[TensorSpec]) -> list[Array]:
    generator = np.random.default_rng(0)
    noise = [generator.standard_normal(spec.shape, dtype=np.float32) for spec in inputs]
    try:
        with quiet() as said:
            return run_interpreter(interpreter, noise)
    except Exception as error:
        raise _refusal(path, error, said.tail(2)) from error


def _check_order(named: dict[str, Any], ordered: list[Any], specs: Sequence[TensorSpec]) -> None:
    """Whoever sets tensors by position must meet the same ones as who sets them by name."""
    want = [spec.name for spec in specs]
    by_name = [int(named[name]["index"]) if name in named else None for name in want]
    if by_name != [int(details["index"]) for details in ordered]:
        got = ", ".join(str(details["name"]) for details in ordered)
        raise ConversionError(f"TFLite: the file has {got} where {', '.join(want)} was expected")


def count_operators(path: Path) -> Counter[str]:
    """How often the file's graph has each operator."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = vars(schema.BuiltinOperator).items()
    names = {code: name for name, code in kinds if isinstance(code, int)}
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    codes = [model.OperatorCodes(i).BuiltinCode() for i in range(model.OperatorCodesLength())]
    graph = model.Subgraphs(0)
    used = (graph.Operators(i).OpcodeIndex() for i in range(graph.OperatorsLength()))
    return Counter(names[codes[index]] for index in used)
