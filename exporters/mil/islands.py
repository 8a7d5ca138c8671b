"""Which ops of an fp16 package stay in fp32, and which of the program's constants with them.

A package of half precision stores most constants rounded. An op that is kept in fp32 keeps its own
constants as they are, and the program that the file is compared with has to keep them too. They are
told by their values, which the file either holds or does not; their order is left out, since
coremltools transposes some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgevit.capture import FACTORS, Program

if TYPE_CHECKING:
    from exporters.mil.program import MilProgram

__all__ = ["Islands", "find_islands"]

#: Ops that only lead from one precision to the other.
BORDER = ("cast",)
#: Parameters that are numbers of an op and no constants of the program.
SETTINGS = ("epsilon",)


@dataclass(frozen=True)
class Islands:
    """What an fp16 package computes in fp32.

    Args:
        ops: how many ops of each type.
        tensors: the program's parameters and buffers that the file does not round.
        factors: numbers of the program that the file does not round.
    """

    ops: dict[str, int]
    tensors: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def find_islands(program: Program, package: MilProgram) -> Islands:
    """The fp32 ops of a package and their constants, by the program's own names.

    A constant that the file holds in both precisions counts as rounded.

    Args:
        program: what the package was written from.
        package: an fp16 package, read back.
    """
    ops = Counter(
        op.type for op in package.ops if op.types[0].dtype == "fp32" and op.type not in BORDER
    )
    if not ops:
        return Islands({})
    whole, rounded = _stored(package)

    def kept(values: Tensor) -> bool:
        half = values.half().float()
        if torch.equal(half, values):
            return False
        return _values(values) in whole and _values(half) not in rounded

    tensors = tuple(name for name, tensor in _tensors(program) if kept(tensor))
    factors = tuple(sorted({f for f in _factors(program) if kept(torch.tensor(f))}))
    return Islands(dict(sorted(ops.items())), tensors, factors)


def _stored(package: MilProgram) -> tuple[set[bytes], set[bytes]]:
    """Values of the constants that float ops take in fp32, and of those in fp16."""
    whole: set[bytes] = set()
    rounded: set[bytes] = set()
    for op in package.ops:
        for name, slots in op.arguments.items():
            for slot in (slots,) if isinstance(slots, int) else slots:
                constant = package.constants.get(slot)
                if isinstance(constant, Tensor) and constant.is_floating_point():
                    if slot not in package.single:
                        rounded.add(_values(constant))
                    elif name not in SETTINGS:
                        whole.add(_values(constant))
    return whole, rounded


def _values(tensor: Tensor) -> bytes:
    flat: Tensor = tensor.detach().float().flatten().sort().values
    return flat.numpy().tobytes()


def _tensors(program: Program) -> Iterator[tuple[str, Tensor]]:
    module = program.graph_module()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor.detach()


def _factors(program: Program) -> Iterator[float]:
    for node in program.exported.graph.nodes:
        if node.op == "call_function" and node.target in FACTORS:
            yield from (a for a in node.args if isinstance(a, float))
