"""Suites: sets of subjects that are benched together under one name, and sweeps over shapes.

SimA's Table 3 and Figure 1 time single attention blocks without their projections, D being the
width of one head. The order of the product Q Kᵀ V is fixed, so that all blocks of a table do the
same multiplications and only the exponentials differ: (Q Kᵀ) V where N > D, Q (Kᵀ V) where N < D.
A block without that choice (softmax, XCA) has the table's order by nature.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

from edgevit.errors import OptionError, UnknownNameError, UsageError
from edgevit.source import BlockSpec

__all__ = ["DEFAULT", "SUITES", "Suite", "find_suite", "fixed_order", "sweep"]

#: The suite that is run when nothing else is named.
DEFAULT = "default"
#: Runs of one subject in the papers' protocol.
PAPER_RUNS = 1000
AXES = {"n": "tokens", "d": "head_dim", "h": "heads"}
ORDERS = ("nn", "dd")


@dataclass(frozen=True)
class Suite:
    """A named set of subjects.

    Args:
        name: as ``--suite`` takes it.
        title: one line about it.
        subjects: models by name, and blocks; no two alike.
        runs: exactly so many timed runs of each; None leaves the schedule as it is.
        published: whether papers printed figures of these very subjects.
    """

    name: str
    title: str
    subjects: tuple[str | BlockSpec, ...]
    runs: int | None = None
    published: bool = False

    def __post_init__(self) -> None:
        labels = [_label(subject) for subject in self.subjects]
        if not labels or len(set(labels)) != len(labels):
            raise UsageError(f"suite {self.name} needs subjects, no two alike; it has {labels}")

    def with_projections(self) -> Suite:
        """The same with every block's projections inside."""
        chosen = tuple(
            replace(s, projections=True) if isinstance(s, BlockSpec) else s for s in self.subjects
        )
        return replace(self, subjects=chosen)


def _label(subject: str | BlockSpec) -> str:
    return subject.label if isinstance(subject, BlockSpec) else subject


def _blocks(names: str, tokens: int, head_dim: int) -> tuple[BlockSpec, ...]:
    """Blocks such as ``"softmax elu:nn"``, some with their order, at a shape and eight heads."""
    parts = [name.partition(":") for name in names.split()]
    return tuple(
        BlockSpec(name, tokens, head_dim, heads=8, options={"order": order} if order else {})
        for name, _, order in parts
    )


#: More tokens than channels: all products through the tokens x tokens map.
TALL = "softmax elu:nn sima:nn"
#: More channels than tokens: all products through the channels x channels map.
WIDE = "soft:dd xca elu:dd sima:dd"
TABLE_3 = (*_blocks(TALL, 256, 64), *_blocks(WIDE, 64, 256))
FIGURE_1 = (
    *(block for tokens in (128, 256, 512) for block in _blocks(TALL, tokens, 64)),
    *(block for width in (128, 256, 512) for block in _blocks(WIDE, 64, width)),
)
#: The smallest model of each family, in the variant that its paper proposes.
FAMILIES = (
    "elevit", "efficientvit_m0", "efficientformerv2_l", "swiftformer_l3", "deit_tiny", "lavit_t",
    "pvt_tiny", "swin_tiny", "ceit_tiny", "deepvit_small", "hvt_tiny", "cvt_13", "xcit_tiny_20_p16",
    "soft_tiny", "vin_cifar10", "ccn_cifar10", "cvn_cifar10", "levin_cifar10", "pin_cifar10",
)  # fmt: skip

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(DEFAULT, "a model of each family, and the blocks of SimA's Table 3",
              (*FAMILIES, *TABLE_3)),
        Suite("sima-table3", "SimA, Table 3: attention blocks at (N, D) = (256, 64) and (64, 256)",
              TABLE_3, runs=PAPER_RUNS, published=True),
        Suite("sima-figure1", "SimA, Figure 1: the same blocks, and at half and twice N or D",
              FIGURE_1, runs=PAPER_RUNS, published=True),
        Suite("families", "a model of each family", FAMILIES),
    )
}  # fmt: skip


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES, listing="edgevit bench --list-suites")
    return SUITES[name]


def sweep(blocks: Iterable[BlockSpec], axes: Mapping[str, Sequence[int]]) -> list[BlockSpec]:
    """Every block at every combination of sizes.

    Args:
        blocks: whose other sizes stay as they are.
        axes: sizes by axis: ``"n"`` tokens, ``"d"`` width of a head, ``"h"`` heads.

    Raises:
        OptionError: an axis that there is not, or a size below 1.
    """
    for axis, sizes in axes.items():
        if axis not in AXES:
            raise OptionError("sweep", expected=f"axes {', '.join(AXES)}", got=axis)
        if not sizes or min(sizes) < 1:
            raise OptionError("sweep", expected=f"sizes {axis} of at least 1", got=list(sizes))
    combinations = [dict(zip(axes, sizes, strict=True)) for sizes in product(*axes.values())]
    shapes = [{AXES[axis]: size for axis, size in sizes.items()} for sizes in combinations]
    swept = [replace(block, **shape) for shape in shapes for block in blocks]  # type: ignore[arg-type]
    return list({block.label: block for block in swept}.values())


def fixed_order(block: BlockSpec, order: str) -> BlockSpec:
    """The block with its product taken in that order, if it has the choice.

    Args:
        block: a block.
        order: ``"nn"`` for (Q Kᵀ) V, ``"dd"`` for Q (Kᵀ V).

    Raises:
        OptionError: the order is neither.
    """
    if order not in ORDERS:
        raise OptionError("order", expected=" or ".join(ORDERS), got=order)
    if not _takes_order(block.name):
        return block
    return replace(block, options={**block.options, "order": order})


@lru_cache
def _takes_order(name: str) -> bool:
    from edgevit.registry import load_object
    from edgevit.zoo.registry import block_info

    info = block_info(name)
    return "order" in inspect.signature(load_object(f"{info.module}:{info.function}")).parameters
