"""The papers' figures as rows of a table, beside the measured ones and never among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edgevit.measure.results import Result
from edgevit.report.published import Published, load_published

__all__ = ["published_rows"]

#: Metrics that say how fast a model is, with the power that turns them into a time.
TIMES = {"latency": 1, "throughput": -1}


def published_rows(
    model: str, results: Iterable[Result], relative_to: str | None = None
) -> list[dict[str, Any]]:
    """Rows of a model's published latencies and throughputs.

    Args:
        model: edgevit's name.
        results: the model's measured results; figures at an image size that none of them has are
            left out.
        relative_to: a model; adds the ratio that the paper's own figures make, from one table.

    Returns:
        One row a figure. Figures that several tables print alike share a row.
    """
    sizes = {size for result in results for size in _sizes(result)}
    figures = [
        f
        for f in load_published(model)
        if f.metric in TIMES and not (sizes and f.input.isdigit() and f.input not in sizes)
    ]
    alike: dict[tuple[str, ...], list[Published]] = {}
    for f in figures:
        key = (f.metric, f.value, f.unit, f.device, f.runtime, f.threads, f.batch)
        alike.setdefault(key, []).append(f)
    return [_row(group, relative_to) for group in alike.values()]


def _sizes(result: Result) -> list[str]:
    return [str(spec.shape[-2]) for spec in result.subject.inputs if spec.kind == "image"]


def _row(figures: Sequence[Published], relative_to: str | None) -> dict[str, Any]:
    first = figures[0]
    row = {
        "origin": "published",
        "model": first.model,
        "device": first.device or None,
        "threads": int(first.threads) if first.threads else None,
        "batch": int(first.batch) if first.batch else None,
        "runtime": first.runtime or None,
        "published": f"{first.value} {first.unit}",
        "published_value": first.number,
        "published_unit": first.unit,
        "published_metric": first.metric,
        "published_source": _source(figures),
        "published_note": "; ".join(dict.fromkeys(f.note for f in figures if f.note)) or None,
    }
    ratio = _ratio(first, relative_to)
    return row if ratio is None else row | {"published_speed_ratio": ratio}


def _source(figures: Sequence[Published]) -> str:
    first = figures[0]
    tables = " and ".join(dict.fromkeys(f.table for f in figures))
    inputs = dict.fromkeys(f"{f.input} px" if f.input.isdigit() else f.input for f in figures)
    return ", ".join(part for part in (first.paper, tables, first.runtime, *inputs) if part)


def _ratio(figure: Published, relative_to: str | None) -> float | None:
    """How many times as fast as the reference, by the same table, device and circumstances."""
    for other in load_published(relative_to) if relative_to else []:
        if _circumstances(other) == _circumstances(figure):
            return float((other.number / figure.number) ** TIMES[figure.metric])
    return None


def _circumstances(f: Published) -> tuple[str, ...]:
    return (
        f.paper, f.table, f.dataset, f.input, f.device, f.runtime, f.threads, f.batch, f.metric,
        f.unit,
    )  # fmt: skip
