"""A saved Core ML package as plain data: its border, its constants and its ops in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgevit.errors import BundleError
from exporters.base import CannotVerifyError
from exporters.quiet import quiet

__all__ = ["Constant", "MilOp", "MilProgram", "MilType", "Slots", "read_package"]

#: A constant of the program: numbers, or the text of a mode.
Constant = Tensor | str
#: Where an argument comes from: one value's number, or several for a tuple such as concat's.
Slots = int | tuple[int, ...]


@dataclass(frozen=True)
class MilType:
    """Name, shape (None where it is not fixed) and element type (``"fp16"``, ``"int32"``, ...)."""

    name: str
    shape: tuple[int, ...] | None
    dtype: str


@dataclass(frozen=True)
class MilOp:
    """One op; values are known by number, since names may repeat.

    Args:
        type: the op's type (``"conv"``).
        name: its name in the file.
        arguments: parameter names to the values they get.
        results: numbers of the values it gives.
        types: their declared types.
    """

    type: str
    name: str
    arguments: Mapping[str, Slots]
    results: tuple[int, ...]
    types: tuple[MilType, ...]


@dataclass(frozen=True)
class MilProgram:
    """The main function of a Core ML program.

    Args:
        inputs: what it takes, in order; the values numbered by ``input_slots``.
        outputs: what it gives, likewise.
        constants: values that are fixed in the file; floats are widened to fp32.
        ops: the ops in the order of execution, without the constants.
        specification_version: of the file; 6 stands for iOS 15, 7 for iOS 16, and so on.
        single: numbers of the constants that the file holds in fp32.
    """

    inputs: tuple[MilType, ...]
    input_slots: tuple[int, ...]
    outputs: tuple[MilType, ...]
    output_slots: tuple[int, ...]
    constants: Mapping[int, Constant]
    ops: tuple[MilOp, ...]
    specification_version: int
    single: frozenset[int] = frozenset()


def read_package(path: Path) -> MilProgram:
    """Read a saved ``.mlpackage`` back, with its weights.

    coremltools infers every op's type again while it reads, so a file whose ops do not fit together
    is refused here.

    Raises:
        BundleError: the package is damaged, or its ops contradict the types that it declares.
        CannotVerifyError: it is no ML program, or has more than one function or control flow.
    """
    with quiet():
        try:
            spec, program = _load(path)
        except CannotVerifyError:
            raise
        except Exception as error:
            raise BundleError(
                f"{path.name} cannot be read back: {_first_line(error)}",
                hint="export it again; the package is damaged or was edited",
            ) from error
    if list(program.functions) != ["main"]:
        raise CannotVerifyError(f"the program has functions {', '.join(program.functions)}")
    read = _Reader(spec).read(program.functions["main"])
    _check_description(spec.description.input, read.inputs)
    _check_description(spec.description.output, read.outputs)
    return read


def _load(path: Path) -> tuple[Any, Any]:
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.models import MLModel

    model = MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    if spec.WhichOneof("Type") != "mlProgram":
        raise CannotVerifyError(f"the file is a {spec.WhichOneof('Type')}, not an ML program")
    _check_weights(spec.mlProgram, Path(model.weights_dir))
    version = spec.specificationVersion
    return spec, load(spec, specification_version=version, file_weights_dir=model.weights_dir)


def _check_description(features: Any, declared: Sequence[MilType]) -> None:
    """What the package says to its user has to be what its function says."""
    told = [f"{f.name} {tuple(f.type.multiArrayType.shape)}" for f in features]
    have = [f"{d.name} {d.shape}" for d in declared]
    if told != have:
        raise BundleError(
            f"the package describes {', '.join(told)}, but its function has {', '.join(have)}",
            hint="export it again; the package is damaged or was edited",
        )


def _check_weights(program: Any, folder: Path) -> None:
    """Every blob lies inside its file; the native reader does not look where a file ends."""
    for function in program.functions.values():
        for block in function.block_specializations.values():
            for op in block.operations:
                given = (b.value for a in op.inputs.values() for b in a.arguments)
                for value in (*op.attributes.values(), *given):
                    if value.WhichOneof("value") == "blobFileValue":
                        _check_blob(value, folder)


def _check_blob(value: Any, folder: Path) -> None:
    place = value.blobFileValue
    file = folder / Path(place.fileName).name
    tensor = value.type.tensorType
    size = int(np.prod([d.constant.size for d in tensor.dimensions])) * _width(tensor.dataType)
    # The blob's own header of 64 bytes precedes its data.
    if place.offset + 64 + size > file.stat().st_size:
        raise ValueError(f"{file.name} ends before the weights that the program refers to")


def _width(data_type: int) -> int:
    """Bytes of an element at least; types narrower than a byte count as nothing."""
    from coremltools.proto import MIL_pb2

    name = MIL_pb2.DataType.Name(data_type)
    bits = int("".join(filter(str.isdigit, name)) or 8)
    return bits // 8


class _Reader:
    """Numbers the values of one function and copies what stands about them."""

    def __init__(self, spec: Any) -> None:
        self.version = int(spec.specificationVersion)
        self._numbers: dict[int, int] = {}

    def read(self, function: Any) -> MilProgram:
        constants: dict[int, Constant] = {}
        single: set[int] = set()
        ops: list[MilOp] = []
        inputs = list(function.inputs.values())
        for op in function.operations:
            if op.blocks:
                raise CannotVerifyError(f"the program has control flow ({op.op_type} {op.name})")
            if op.op_type == "const":
                number, value = self._number(op.outputs[0]), op.outputs[0].val
                constants[number] = _constant(value)
                if np.asarray(value).dtype == np.float32:
                    single.add(number)
            else:
                ops.append(self._op(op))
        return MilProgram(
            tuple(_type(v) for v in inputs),
            tuple(self._number(v) for v in inputs),
            tuple(_type(v) for v in function.outputs),
            tuple(self._number(v) for v in function.outputs),
            constants,
            tuple(ops),
            self.version,
            frozenset(single),
        )

    def _op(self, op: Any) -> MilOp:
        return MilOp(
            op.op_type,
            op.outputs[0].name,
            {name: self._slots(v) for name, v in op.inputs.items() if v is not None},
            tuple(self._number(v) for v in op.outputs),
            tuple(_type(v) for v in op.outputs),
        )

    def _slots(self, value: Any) -> Slots:
        if isinstance(value, (list, tuple)):
            return tuple(self._number(v) for v in value)
        return self._number(value)

    def _number(self, var: Any) -> int:
        return self._numbers.setdefault(id(var), len(self._numbers))


def _type(var: Any) -> MilType:
    from coremltools.converters.mil.mil import types

    fixed = all(isinstance(size, (int, np.integer)) for size in var.shape)
    shape = tuple(int(size) for size in var.shape) if fixed else None
    return MilType(var.name, shape, str(types.builtin_to_string(var.dtype)))


def _constant(value: Any) -> Constant:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "U":
        return str(array)
    if array.dtype.kind == "f":
        return torch.tensor(array.astype(np.float32))
    return torch.tensor(array if array.dtype.kind == "b" else array.astype(np.int64))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
