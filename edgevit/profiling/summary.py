"""What a profile says, in figures: shares by operator, block and stage, what bounds them, exp."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from edgevit.errors import OptionError
from edgevit.measure.profile import OpTime, Profile, Roof
from edgevit.profiling.layers import group_of
from edgevit.profiling.operators import EXP, MEMORY_BOUND, exp_part

__all__ = ["BY", "Share", "bounds", "exp_shares", "shares", "summary"]

BY = ("op", "kind", "block", "module", "stage", "node")


@dataclass(frozen=True)
class Share:
    """A part of a profile.

    Args:
        name: of the operator type, kind, block, module or stage.
        ms: sum of its operators' medians.
        share: of the sum of all operators' medians.
        count: executed operators.
        gflops_per_s: achieved; None where nothing is computed or no time was seen.
        gbytes_per_s: achieved, inputs and outputs counted once.
        intensity: operations a byte.
        placed: share of its time whose place is known by name or tensor, not by a neighbour.
    """

    name: str
    ms: float
    share: float
    count: int
    gflops_per_s: float | None
    gbytes_per_s: float | None
    intensity: float | None
    placed: float


def shares(profile: Profile, by: str) -> list[Share]:
    """Parts of a profile; blocks, modules and stages in the model's order, others by their time.

    Args:
        profile: with operators.
        by: one of :data:`BY`.

    Raises:
        OptionError: it is another word.
    """
    if by not in BY:
        raise OptionError("--by", expected=" or ".join(BY), got=by)
    key: Callable[[OpTime], str] = {
        "op": lambda op: op.op,
        "kind": lambda op: op.kind,
        "node": lambda op: op.name,
    }.get(by, lambda op: group_of(op.layer, by))
    groups: dict[str, list[OpTime]] = {}
    for op in profile.ops:
        groups.setdefault(key(op), []).append(op)
    whole = sum(op.median_ms for op in profile.ops)
    found = [_share(name, ops, whole) for name, ops in groups.items()]
    return found if by not in ("op", "kind") else sorted(found, key=lambda s: -s.ms)


def bounds(profile: Profile) -> dict[str, float]:
    """Shares of products, softmax and the memory-bound rest, as in EfficientViT's Figure 2."""
    parts = {s.name: s.share for s in shares(profile, "kind")}
    memory = sum(parts.get(kind, 0.0) for kind in MEMORY_BOUND)
    product, softmax = parts.get("product", 0.0), parts.get("softmax", 0.0)
    return {
        "products": product,
        "softmax": softmax,
        "memory_bound": memory,
        "other": max(0.0, 1.0 - product - softmax - memory) if parts else 0.0,
    }


def exp_shares(profile: Profile) -> dict[str, float]:
    """Shares of what needs the exponential function, by part and in total."""
    whole = sum(op.median_ms for op in profile.ops)
    spent = dict.fromkeys(EXP, 0.0)
    for op in profile.ops:
        if (part := exp_part(op.op)) is not None:
            spent[part] += op.median_ms
    parts = {part: ms / whole if whole else 0.0 for part, ms in spent.items()}
    return {**parts, "total": sum(parts.values())}


def summary(profile: Profile) -> dict[str, Any]:
    """Everything that follows from a profile, for ``--json``."""
    told: dict[str, Any] = {
        "plain_ms": profile.plain_ms,
        "profiled_ms": profile.profiled_ms,
        "ops_ms": profile.ops_ms if profile.ops else None,
        "overhead": overhead(profile),
        "ops_over_plain": _ratio(profile.ops_ms, profile.plain_ms) if profile.ops else None,
    }
    if profile.ops:
        told |= {
            "bounds": bounds(profile),
            "exp": exp_shares(profile),
            "by": {by: [asdict(s) for s in shares(profile, by)] for by in BY if by != "node"},
        }
    return told


def overhead(profile: Profile) -> float | None:
    """How much longer an inference takes with the profiler, as a share of one without."""
    ratio = _ratio(profile.profiled_ms, profile.plain_ms)
    return None if ratio is None else ratio - 1


def of_roof(share: Share, roof: Roof) -> float | None:
    """How close a part comes to what the machine could do at its intensity, from 0 to 1."""
    if share.gflops_per_s is None or share.intensity is None:
        return None
    reachable = min(roof.flops_per_s, share.intensity * roof.bytes_per_s) / 1e9
    return share.gflops_per_s / reachable if reachable else None


def _share(name: str, ops: Iterable[OpTime], whole: float) -> Share:
    own = list(ops)
    ms, flops = sum(op.median_ms for op in own), sum(op.flops for op in own)
    moved = sum(op.moved_bytes for op in own)
    sure = sum(op.median_ms for op in own if op.placed in ("name", "tensor"))
    return Share(
        name,
        ms,
        ms / whole if whole else 0.0,
        len(own),
        flops / ms / 1e6 if ms and flops else None,
        moved / ms / 1e6 if ms and moved else None,
        flops / moved if flops and moved else None,
        sure / ms if ms else 0.0,
    )


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None
