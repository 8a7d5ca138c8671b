"""A profile on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.cli.common import out_console

if TYPE_CHECKING:
    from edgevit.measure.profile import Profile
    from edgevit.profiling.summary import Share

__all__ = ["print_profile"]


def print_profile(profile: Profile, by: str, top: int) -> None:
    """Print where the time goes.

    Args:
        profile: the profile.
        by: which rows, one of :data:`edgevit.profiling.summary.BY`.
        top: so many rows; 0 for all.
    """
    _head(profile)
    if profile.ops:
        _rows(profile, by, top)
        _nature(profile)
    if profile.blocks:
        _blocks(profile)
    for note in profile.notes:
        _line(f"note: {note}")


def _head(profile: Profile) -> None:
    from edgevit.profiling.summary import overhead

    s, device = profile.subject, profile.context.device
    word = ", emulated: shares at best, its times are not the device's" if device.emulated else ""
    runtime = f"{s.backend} {s.runtime_version or ''}".strip()
    _line(f"{s.name} ({s.format}) on {device.name}{word}: {runtime}, threads {s.threads}, "
          f"batch {s.batch}; {profile.verification.status}")  # fmt: skip
    kind = ", estimated" if profile.estimated else ""
    _line(f"times by {profile.method}{kind}")
    cost = overhead(profile)
    if profile.ops and cost is not None and profile.plain_ms is not None:
        share = profile.ops_ms / profile.plain_ms
        _line(
            f"whole inference {profile.plain_ms:.4g} ms, with the profiler "
            f"{profile.profiled_ms:.4g} ms ({cost:+.1%}), in turns; sum of operators "
            f"{profile.ops_ms:.4g} ms, {share:.1%} of the whole without"
        )
        medians = sum(op.median_ms for op in profile.ops)
        _line(f"rows are medians of operators, together {medians:.4g} ms")


def _rows(profile: Profile, by: str, top: int) -> None:
    from edgevit.profiling.summary import of_roof, shares

    rows = shares(profile, by)
    shown = sorted(rows, key=lambda row: -row.ms)[:top] if top else rows
    heads = [by, "ms", "share", "ops", "GFLOP/s", "GB/s", "FLOP/byte"]
    heads += ["of roof"] if profile.roof else []
    kept = set(map(id, shown))
    lines = []
    for row in rows:
        if id(row) in kept:
            near = [_percent(of_roof(row, profile.roof))] if profile.roof else []
            lines.append([*_cells(row), *near])
    _table(heads, lines)
    if len(shown) < len(rows):
        _line(f"{len(rows) - len(shown)} more rows; --top 0 shows all")


def _cells(row: Share) -> list[str]:
    figures = (row.gflops_per_s, row.gbytes_per_s, row.intensity)
    return [
        row.name,
        f"{row.ms:.4g}",
        f"{row.share:.1%}",
        str(row.count),
        *("" if figure is None else f"{figure:.3g}" for figure in figures),
    ]


def _nature(profile: Profile) -> None:
    from edgevit.profiling.summary import bounds, exp_shares, of_roof, shares

    parts = bounds(profile)
    detail = ", ".join(
        f"{s.name} {s.share:.1%}" for s in shares(profile, "kind") if s.name != "product"
    )
    _line(
        f"bound: products {parts['products']:.1%}, memory-bound {parts['memory_bound']:.1%}, "
        f"softmax {parts['softmax']:.1%} ({detail})"
    )
    exp = exp_shares(profile)
    _line(
        f"exp: {exp['total']:.1%} (softmax {exp['softmax']:.1%}, GELU {exp['GELU']:.1%}, "
        f"sigmoid and others {exp['other']:.1%})"
    )
    if profile.roof is not None:
        roof = profile.roof
        _line(
            f"roof: {roof.flops_per_s / 1e9:.4g} GFLOP/s ({roof.methods['flops']}), "
            f"{roof.bytes_per_s / 1e9:.3g} GB/s ({roof.methods['bytes']}), threads {roof.threads}"
        )
        if any((of_roof(row, roof) or 0) > 1 for row in shares(profile, "kind")):
            _line("beyond the roof: data came from caches, or the peak was measured while busy")
    unsure = sum(op.median_ms for op in profile.ops if op.placed not in ("name", "tensor"))
    fused = sum(len(op.sources) > 1 for op in profile.ops)
    whole = sum(op.median_ms for op in profile.ops)
    _line(
        f"places: {fused} of {len(profile.ops)} operators stand for several of the file's nodes; "
        f"{unsure / whole:.1%} of the time is placed by a neighbour or not at all"
    )


def _blocks(profile: Profile) -> None:
    from edgevit.profiling.summary import shares

    charged = {s.name: s.ms for s in shares(profile, "block")} if profile.ops else {}
    left = [b for b in profile.blocks if b.takes_ms is not None]
    _line("blocks left out, in the same rounds as the whole:")
    lines = []
    for block in left:
        known = block.low_ms is not None and block.high_ms is not None
        between = f"{block.low_ms:.3g} to {block.high_ms:.3g}" if known else "few rounds"
        figures = (block.whole_ms, block.without_ms, block.takes_ms, charged.get(block.block))
        whole, without, takes, own = ("" if f is None else f"{f:.4g}" for f in figures)
        lines.append([block.block, whole, without, takes, between, own])
    heads = ["block", "whole ms", "without ms", "takes ms", "95 % interval", "its operators ms"]
    _table(heads, lines)
    if left:
        taken = sum(b.takes_ms or 0 for b in left)
        mean = sum(b.whole_ms or 0 for b in left) / len(left)
        sums = sum(charged.get(b.block, 0) for b in left)
        told = f"; their operators {sums:.4g} ms" if charged else ""
        _line(f"together they take {taken:.4g} ms of {mean:.4g} ms{told}")
    for reason in dict.fromkeys(b.reason for b in profile.blocks if b.reason):
        names = ", ".join(b.block for b in profile.blocks if b.reason == reason)
        _line(f"not left out: {names}: {reason}")


def _table(heads: list[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in [heads, *rows]:
        first, *rest = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        _line("  ".join([first, *rest]).rstrip())


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _line(text: str) -> None:
    out_console().print(text, highlight=False, markup=False)
