"""Running a Core ML program op by op on torch, in fp32 or as half precision would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgevit.errors import VerificationError
from exporters.base import CannotVerifyError
from exporters.mil import constants, elementwise, indexing, layers, reductions, resizing, tensors
from exporters.mil.program import Constant, MilOp, MilProgram, MilType, Slots
from exporters.mil.registry import OPS, OpFunction

__all__ = ["Extreme", "Interpreter"]

#: The modules whose import fills the table of ops.
OP_MODULES = (constants, elementwise, indexing, layers, reductions, resizing, tensors)


@dataclass(frozen=True)
class Extreme:
    """The largest magnitude that an op of the last run gave; infinite for NaN too."""

    op: str
    type: str
    largest: float

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it; infinite becomes null."""
        finite = self.largest < float("inf")
        return {"op": self.op, "type": self.type, "max_abs": self.largest if finite else None}


class Interpreter:
    """A Core ML program, ready to run.

    Args:
        program: from :func:`exporters.mil.read_package`.
        half: round the result of every op that the file declares as fp16 to fp16, as well as the
            intermediate results of the norms; sums inside an op are kept in fp32. Without it all
            arithmetic is fp32 on the weights as stored.

    Raises:
        CannotVerifyError: the program has ops, parameters or modes that are not implemented here.
    """

    def __init__(self, program: MilProgram, *, half: bool = False) -> None:
        missing = sorted({op.type for op in program.ops} - set(OPS))
        if missing:
            raise CannotVerifyError(
                f"the reference interpreter does not know the Core ML ops {', '.join(missing)}"
            )
        self.program, self.half = program, half
        self._steps = [_Step(op, OPS[op.type], program.constants) for op in program.ops]
        self._release = _last_uses(program)
        self._largest: dict[int, float] = {}
        self._overflows: set[int] = set()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the program; inputs and outputs in the file's order.

        Raises:
            VerificationError: an op gives another shape than the file declares.
            CannotVerifyError: a value has no meaning here.
        """
        self._largest, self._overflows = {}, set()
        values: dict[int, Any] = dict(self.program.constants)
        with torch.inference_mode():
            for slot, declared, given in zip(
                self.program.input_slots, self.program.inputs, inputs, strict=True
            ):
                values[slot] = self._rounded(None, declared, _widened(given))
            for index, step in enumerate(self._steps):
                self._run(index, step, values)
                for slot in self._release.get(index, ()):
                    del values[slot]
        return [values[slot] for slot in self.program.output_slots]

    @property
    def extremes(self) -> tuple[Extreme, ...]:
        """The largest magnitude of each op in the last run, largest first."""
        ops = self.program.ops
        found = (Extreme(ops[i].name, ops[i].type, v) for i, v in self._largest.items())
        return tuple(sorted(found, key=lambda extreme: -extreme.largest))

    @property
    def overflows(self) -> tuple[MilOp, ...]:
        """Ops of the last run, in order, where rounding to fp16 made a finite value infinite."""
        return tuple(self.program.ops[index] for index in sorted(self._overflows))

    def _run(self, index: int, step: _Step, values: dict[int, Any]) -> None:
        arguments = step.arguments(values)
        if step.function.rounds:
            arguments["rounded"] = lambda t: self._rounded(index, step.op.types[0], t)
        results = step.function.run(**arguments)
        results = (results,) if isinstance(results, Tensor) else tuple(results)
        for slot, declared, result in zip(step.op.results, step.op.types, results, strict=True):
            _check_shape(step.op, declared, result)
            values[slot] = self._rounded(index, declared, result)
            if result.is_floating_point() and result.numel():
                self._largest[index] = max(self._largest.get(index, 0.0), _largest(values[slot]))

    def _rounded(self, index: int | None, declared: MilType, value: Tensor) -> Tensor:
        if not self.half or declared.dtype != "fp16" or not value.is_floating_point():
            return value
        narrow = value.half().float()
        if index is not None and bool((narrow.isinf() & value.isfinite()).any()):
            self._overflows.add(index)
        return narrow


class _Step:
    """An op with its constant parameters converted once, and the others still to come."""

    def __init__(self, op: MilOp, function: OpFunction, known: Mapping[int, Constant]) -> None:
        function.check(op.type, op.arguments)
        self.op, self.function = op, function
        self._fixed: dict[str, Any] = {}
        self._later: dict[str, Slots] = {}
        for name, slots in op.arguments.items():
            if known.keys() >= set((slots,) if isinstance(slots, int) else slots):
                self._fixed[name] = function.convert(op.type, name, _gather(slots, known))
            else:
                self._later[name] = slots

    def arguments(self, values: Mapping[int, Any]) -> dict[str, Any]:
        later = {
            name: self.function.convert(self.op.type, name, _gather(slots, values))
            for name, slots in self._later.items()
        }
        return self._fixed | later


def _gather(slots: Slots, values: Mapping[int, Any]) -> Any:
    return values[slots] if isinstance(slots, int) else tuple(values[s] for s in slots)


def _last_uses(program: MilProgram) -> dict[int, list[int]]:
    """For each op the values that nothing after it reads."""
    last: dict[int, int] = {}
    for index, op in enumerate(program.ops):
        for slots in (*op.arguments.values(), op.results):
            last |= dict.fromkeys((slots,) if isinstance(slots, int) else slots, index)
    release: dict[int, list[int]] = {}
    for slot, index in last.items():
        if slot not in program.output_slots:
            release.setdefault(index, []).append(slot)
    return release


def _widened(given: Tensor) -> Tensor:
    if given.is_floating_point():
        return given.float()
    return given if given.dtype == torch.bool else given.long()


def _check_shape(op: MilOp, declared: MilType, result: Tensor) -> None:
    if declared.shape is not None and tuple(result.shape) != declared.shape:
        raise VerificationError(
            f"Core ML op {op.type} {op.name} declares shape {declared.shape} "
            f"and computes {tuple(result.shape)}"
        )


def _largest(value: Tensor) -> float:
    low, high = (float(bound) for bound in torch.aminmax(value))
    # NaN compares false with everything.
    return max(-low, high) if max(-low, high) < float("inf") else float("inf")
