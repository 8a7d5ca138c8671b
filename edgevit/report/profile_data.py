"""What a page shows of profiles: a table of shares, bars of operators, points under a roof."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgevit.measure.profile import Profile
from edgevit.profiling.summary import Share, bounds, exp_shares, overhead, shares
from edgevit.report.columns import Column, pack

__all__ = ["newest_profiles", "profile_plots", "profile_table"]

#: So many operator types have a colour of their own; the rest share one.
SEGMENTS = 7
REST = "all others"
_COLUMNS = (
    Column("model", "model"),
    Column("format", "format"),
    Column("device", "device"),
    Column("threads", "threads", "count", minor=True),
    Column("batch", "batch", "count", minor=True),
    Column("plain_ms", "whole (ms)", "number", 4),
    Column("overhead", "profiler costs (%)", "number", minor=True),
    Column("ops", "operators of whole (%)", "number", minor=True),
    Column("products", "products (%)", "number"),
    Column("memory", "memory-bound (%)", "number"),
    Column("softmax", "softmax (%)", "number"),
    Column("exp", "exp (%)", "number"),
    Column("method", "times by", minor=True),
    Column("created", "started (UTC)", minor=True),
)


def newest_profiles(profiles: Iterable[Profile]) -> list[Profile]:
    """The newest of every subject, settings and device, by name."""
    found: dict[str, Profile] = {}
    for profile in sorted(profiles, key=lambda p: p.context.created):
        found[profile.filename] = profile
    return [found[name] for name in sorted(found)]


def profile_table(profiles: Sequence[Profile]) -> Mapping[str, Any]:
    """The table of profiles; of emulated devices it has no times."""
    return pack([_row(profile) for profile in profiles], _COLUMNS)


def profile_plots(profiles: Sequence[Profile]) -> dict[str, Any]:
    """Segments of bars, points, and roofs, for the page's script.

    Devices that are emulated have bars, which are shares, and no points, which are rates.
    """
    with_ops = [profile for profile in profiles if profile.ops]
    real = [profile for profile in with_ops if not profile.context.device.emulated]
    roofs = {_machine(p): p.roof for p in real if p.roof is not None}
    return {
        "segments": [s for profile in with_ops for s in _segments(profile, _named(with_ops))],
        "order": [*_named(with_ops), REST],
        "points": [p for profile in real for p in _points(profile)],
        "roofs": [
            {
                "name": name,
                "gflops": roof.flops_per_s / 1e9,
                "gbytes": roof.bytes_per_s / 1e9,
            }
            for name, roof in roofs.items()
        ],
    }


def _row(profile: Profile) -> dict[str, Any]:
    s, device = profile.subject, profile.context.device
    row: dict[str, Any] = {
        "model": s.name,
        "format": s.format,
        "device": f"{device.name} (emulated)" if device.emulated else device.name,
        "threads": s.threads,
        "batch": s.batch,
        "plain_ms": None if device.emulated else profile.plain_ms,
        "method": f"{profile.method}, estimated" if profile.estimated else profile.method,
        "created": profile.context.created[:16].replace("T", " "),
    }
    if not profile.ops:
        return row
    parts, cost, whole = bounds(profile), overhead(profile), profile.plain_ms
    row |= {
        "overhead": None if cost is None else 100 * cost,
        "ops": 100 * profile.ops_ms / whole if whole else None,
        "products": 100 * parts["products"],
        "memory": 100 * parts["memory_bound"],
        "softmax": 100 * parts["softmax"],
        "exp": 100 * exp_shares(profile)["total"],
    }
    return row


def _named(profiles: Sequence[Profile]) -> list[str]:
    """The operator types that take most, over all profiles."""
    totals: dict[str, float] = {}
    for profile in profiles:
        for share in shares(profile, "op"):
            totals[share.name] = totals.get(share.name, 0.0) + share.share
    return sorted(totals, key=lambda name: -totals[name])[:SEGMENTS]


@dataclass(frozen=True)
class _Part:
    name: str
    share: float
    ms: float


def _segments(profile: Profile, named: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of one bar, in the order of the legend."""
    own = {share.name: share for share in shares(profile, "op")}
    parts = [_Part(n, own[n].share, own[n].ms) for n in named if n in own]
    others = [share for name, share in own.items() if name not in named]
    if others:
        parts.append(_Part(REST, sum(s.share for s in others), sum(s.ms for s in others)))
    label, emulated = _label(profile), profile.context.device.emulated
    return [
        {
            "label": label,
            "series": part.name,
            "share": part.share,
            "order": place,
            "words": f"{label}: {part.name} {100 * part.share:.1f} %"
            + ("" if emulated else f", {part.ms:.3g} ms"),
        }
        for place, part in enumerate(parts)
    ]


def _points(profile: Profile) -> list[dict[str, Any]]:
    """The kinds of work that compute something, by intensity and rate."""
    label = _label(profile)
    return [_point(label, share) for share in shares(profile, "kind") if share.intensity]


def _point(label: str, share: Share) -> dict[str, Any]:
    return {
        "x": share.intensity,
        "y": share.gflops_per_s,
        "series": share.name,
        "words": f"{label}: {share.name}, {share.gflops_per_s:.3g} GFLOP/s at "
        f"{share.intensity:.3g} operations a byte ({share.gbytes_per_s:.3g} GB/s), "
        f"{100 * share.share:.1f} % of the time",
    }


def _label(profile: Profile) -> str:
    s, device = profile.subject, profile.context.device
    words = [f"{s.name} ({s.format})", device.name]
    words += [f"{s.threads} threads"] if s.threads > 1 else []
    words += [f"batch {s.batch}"] if s.batch > 1 else []
    return ", ".join(words) + (", emulated" if device.emulated else "")


def _machine(profile: Profile) -> str:
    threads = profile.roof.threads if profile.roof else profile.subject.threads
    return f"{profile.context.device.name}, threads {threads}"
