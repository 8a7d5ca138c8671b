"""The range of an fp16 Core ML package: its largest values, and where half precision overflows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevit.tensorspec import TensorSpec
from exporters.mil import Extreme, Interpreter, MilOp, MilProgram

__all__ = ["Range", "find_range", "kinds", "told"]

#: Largest number of fp16, and the share of it at which the user is warned.
FP16_LARGEST, NEAR = 65504.0, 0.25
#: What white is in a picture normalised as ImageNet's are.
WHITE = 2.64


@dataclass(frozen=True)
class Range:
    """What running a package with every result rounded to fp16 showed.

    Args:
        largest: the ops with the largest results, largest first.
        overflows: ops where a finite value became infinite, in order.
    """

    largest: tuple[Extreme, ...]
    overflows: tuple[MilOp, ...]

    @property
    def warning(self) -> str | None:
        """What the user should know, if anything."""
        if self.overflows:
            return (
                f"{told(self.overflows)}; keep_fp32={kinds(self.overflows)} keeps such ops in "
                "fp32, precision=fp32 keeps all"
            )
        if self.largest and self.largest[0].largest > NEAR * FP16_LARGEST:
            first = self.largest[0]
            return (
                f"{first.type} {first.op} reaches {first.largest:.0f}, "
                f"near fp16's {FP16_LARGEST:.0f}"
            )
        return None


def find_range(program: MilProgram, inputs: Sequence[TensorSpec]) -> Range:
    """Run an fp16 package on seeded noise, and on a white picture if it takes one.

    Raises:
        CannotVerifyError: the reference interpreter does not know an op of the package.
    """
    interpreter = Interpreter(program, half=True)
    largest: dict[str, Extreme] = {}
    overflows: dict[str, MilOp] = {}
    for tensors in _inputs(inputs):
        interpreter(tensors)
        for extreme in interpreter.extremes[:5]:
            known = largest.get(extreme.op)
            if known is None or known.largest < extreme.largest:
                largest[extreme.op] = extreme
        overflows |= {op.name: op for op in interpreter.overflows}
    order = sorted(largest.values(), key=lambda extreme: -extreme.largest)
    return Range(tuple(order[:5]), tuple(overflows.values()))


def _inputs(specs: Sequence[TensorSpec]) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    runs = [[torch.randn(spec.shape, generator=generator) for spec in specs]]
    if all(spec.kind == "image" for spec in specs):
        runs.append([torch.full(spec.shape, WHITE) for spec in specs])
    return runs


def told(ops: Sequence[MilOp]) -> str:
    """Where it overflows, in words."""
    more = f" and {len(ops) - 1} more" if len(ops) > 1 else ""
    return f"fp16 overflows in {ops[0].type} {ops[0].name}{more}"


def kinds(ops: Sequence[MilOp]) -> str:
    """The ops' types, as ``keep_fp32`` takes them."""
    return ",".join(sorted({op.type for op in ops}))
