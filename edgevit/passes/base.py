"""What a pass is, and what it says it did.

A pass is a rule with three parts: the pattern it looks for, a check that refuses *with a reason*,
and the rewrite. It works in place on the GraphModule of a captured program.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import fx

__all__ = ["Pass", "PassReport", "Refusal"]


@dataclass(frozen=True)
class Refusal:
    """A place where the pattern was found and not rewritten.

    Args:
        layer: path of the module in the source model, or the graph's own name of a bare call.
        reason: why, in plain words.
    """

    layer: str
    reason: str


@dataclass(frozen=True)
class PassReport:
    """What one pass did: how many places it rewrote, where it refused and why."""

    name: str
    rewritten: int
    refusals: tuple[Refusal, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "name": self.name,
            "rewritten": self.rewritten,
            "refused": [{"layer": r.layer, "reason": r.reason} for r in self.refusals],
            "details": self.details,
        }


class Pass(Protocol):
    """A rewrite of the captured graph."""

    name: ClassVar[str]
    #: True for a pass that computes something else on purpose (ReLU for GELU).
    changes_model: ClassVar[bool]

    def __call__(self, module: fx.GraphModule) -> PassReport:
        """Rewrite in place; dead nodes, lint and recompilation are the pipeline's business."""
        ...
