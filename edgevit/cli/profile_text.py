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
    from rich.table import Table

    from edgevit.profiling.summary import of_roof, shares

    rows = shares(profile, by)
    shown = sorted(rows, key=lambda row: -row.ms)[:top] if top else rows
    table = Table(box=None, pad_edge=False)
    table.add_column(by, overflow="fold")
    heads = ["ms", "share", "ops", "GFLOP/s", "GB/s", "FLOP/byte"]
    heads += ["of roof"] if profile.roof else []
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    kept = set(map(id, shown))
    for row in rows:
        if id(row) in kept:
            near = of_roof(row, profile.roof) if profile.roof else None
            table.add_row(*_cells(row), *([_percent(near)] if profile.roof else []))
    out_console().print(table, highlight=False, markup=False)
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
    from edgevit.profiling.summary import bounds, exp_shares, shares

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
    unsure = sum(op.median_ms for op in profile.ops if op.placed not in ("name", "tensor"))
    fused = sum(len(op.sources) > 1 for op in profile.ops)
    whole = sum(op.median_ms for op in profile.ops)
    _line(
        f"places: {fused} of {len(profile.ops)} operators stand for several of the file's nodes; "
        f"{unsure / whole:.1%} of the time is placed by a neighbour or not at all"
    )


def _blocks(profile: Profile) -> None:
    from rich.table import Table

    from edgevit.profiling.summary import shares

    charged = {s.name: s.ms for s in shares(profile, "block")} if profile.ops else {}
    table = Table(box=None, pad_edge=False)
    for head in ("block", "without it (ms)", "whole (ms)", "takes (ms)", "its operators (ms)"):
        table.add_column(head, justify="left" if head == "block" else "right")
    for block in profile.blocks:
        figures = (block.without_ms, block.whole_ms, block.ms, charged.get(block.block))
        cells = ["" if figure is None else f"{figure:.4g}" for figure in figures]
        if block.ms is None:
            cells[2] = block.reason or "not timed"
        table.add_row(block.block, *cells)
    out_console().print(table, highlight=False, markup=False)
    sums = [b.ms for b in profile.blocks if b.ms is not None]
    wholes = [b.whole_ms for b in profile.blocks if b.whole_ms is not None]
    if sums:
        _line(
            f"{len(sums)} of {len(profile.blocks)} blocks can be left out; together they take "
            f"{sum(sums):.4g} ms of {sum(wholes) / len(wholes):.4g} ms"
        )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _line(text: str) -> None:
    out_console().print(text, highlight=False, markup=False)
