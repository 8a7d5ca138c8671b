"""Editing a saved Core ML package as a converter's bug, a bad disk or a hand might."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.quiet import quiet

DATA = Path("Data") / "com.apple.CoreML"


class Package:
    """The program and the weights of a package, to be changed and written back."""

    def __init__(self, path: Path) -> None:
        with quiet():
            from coremltools.proto import Model_pb2

        self._spec_file = path / DATA / "model.mlmodel"
        self._weights_file = path / DATA / "weights" / "weight.bin"
        self.spec = Model_pb2.Model.FromString(self._spec_file.read_bytes())
        self.weights = bytearray(self._weights_file.read_bytes())
        (function,) = self.spec.mlProgram.functions.values()
        (self.block,) = function.block_specializations.values()

    def write(self) -> None:
        self._spec_file.write_bytes(self.spec.SerializeToString())
        self._weights_file.write_bytes(self.weights)

    def op(self, kind: str, index: int = 0) -> Any:
        return [op for op in self.block.operations if op.type == kind][index]

    def source(self, op: Any, parameter: str) -> str:
        """Name of the value that a parameter gets."""
        return str(op.inputs[parameter].arguments[0].name)

    def connect(self, op: Any, parameter: str, name: str) -> None:
        op.inputs[parameter].arguments[0].name = name

    def maker(self, name: str) -> Any:
        """The op that gives a value."""
        return next(o for o in self.block.operations if o.outputs[0].name == name)

    def constant(self, op: Any, parameter: str) -> Any:
        """The numbers or texts of a small constant; they can be assigned to."""
        value = self.maker(self.source(op, parameter)).attributes["val"]
        tensor = value.immediateValue.tensor
        return getattr(tensor, tensor.WhichOneof("value")).values

    def set_number(self, op: Any, parameter: str, number: float) -> None:
        """Replace a constant; those of fp16 are kept as bytes."""
        value = self.maker(self.source(op, parameter)).attributes["val"]
        tensor = value.immediateValue.tensor
        if tensor.WhichOneof("value") == "bytes":
            tensor.bytes.values = np.float16(number).tobytes()
        else:
            tensor.floats.values[:] = [number]

    def array(self, op: Any, parameter: str) -> NDArray[Any]:
        """A weight, in its shape; changing it changes the file."""
        value = self.maker(self.source(op, parameter)).attributes["val"]
        _, _, size, place = struct.unpack_from("<IIQQ", self.weights, value.blobFileValue.offset)
        shape = [d.constant.size for d in value.type.tensorType.dimensions]
        flat = np.frombuffer(self.weights, np.uint8, size, place)
        wide = size == 4 * int(np.prod(shape))
        return flat.view(np.float32 if wide else np.float16).reshape(shape)

    def bypass(self, op: Any, parameter: str) -> None:
        """Take an op out; whoever read its result reads one of its inputs."""
        name, instead = op.outputs[0].name, self.source(op, parameter)
        self.block.operations.remove(op)
        for other in self.block.operations:
            for argument in other.inputs.values():
                for binding in argument.arguments:
                    if binding.name == name:
                        binding.name = instead
