"""A paper's table beside our measurements of the same models, and whether its ordering holds.

Machines differ, so figures are compared as ratios, and rows by their order. Times are compared per
image, since batches may differ; of memory the published figures hold more than inference.

    rank correlation    Spearman's, of published against measured, ties at their mean rank; with the
                        number of rows, and how many of the pairs that the paper tells apart stand
                        in the same order here
    claim               holds, or does not: past the threshold, and the rank test over rounds
                        agrees; otherwise no difference is shown. Memory has no rounds: the
                        threshold alone. Marked where a row was not steady; rounds are interleaved,
                        so that whatever disturbs one row disturbs the others
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from edgevit.errors import UnavailableError
from edgevit.measure.ranks import rank_test, ratio_interval
from edgevit.measure.results import Result
from edgevit.measure.verdict import DRIFT_LIMIT
from edgevit.report.protocols import Claim, Protocol
from edgevit.report.published import Published, load_published
from edgevit.report.remarks import provenance_of
from edgevit.report.rows import MIB, measured_row
from edgevit.report.table import newest

__all__ = ["Column", "Judged", "Ordering", "Reproduction", "Row", "build_reproduction", "spearman"]

ALPHA = 0.05
#: Units of published figures, in ms or in bytes.
UNITS = {"s": 1e3, "ms": 1.0, "GB": 2.0**30, "MB": 2.0**20}
HOLDS, FAILS, UNDECIDED, UNMEASURED = (
    "holds", "does not hold", "no difference shown", "not measured",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column of published figures: what was printed under one heading.

    Args:
        metric: ``"latency"``, ``"throughput"``, ``"gpu_memory"`` or ``"size"``.
        unit: as printed.
        device: as far as the paper says.
        runtime: likewise.
        batch: likewise.
    """

    metric: str
    unit: str
    device: str
    runtime: str
    batch: str

    @property
    def heading(self) -> str:
        """For a reader."""
        where = [self.device or "device not stated", self.runtime]
        if self.metric == "size":
            where = ["size"]
        batch = f"batch {self.batch}" if self.batch else ""
        return ", ".join(part for part in (*where, batch) if part) + f" ({self.unit})"

    @property
    def of_time(self) -> bool:
        """Whether it says how fast a model is."""
        return self.metric in ("latency", "throughput")

    def cost(self, figure: Published) -> float:
        """What less is better of: milliseconds an image, or bytes."""
        if self.metric == "throughput":
            return 1e3 / figure.number
        per = int(figure.batch) if self.metric == "latency" and figure.batch else 1
        return figure.number * UNITS[figure.unit] / per


@dataclass(frozen=True)
class Row:
    """A model or block: what was printed of it, and what was measured here.

    Args:
        name: edgevit's.
        paper_name: the paper's.
        batch: images in one inference here.
        median_ms: of one inference; None where it means nothing.
        interval_ms: 95 % interval of the median.
        images_per_s: throughput.
        memory_mib: peak memory.
        status: of the measurement.
        reason: why there is no figure, or why it is not steady.
        published: the figure as printed, by heading.
        ratios: by heading. Of times: speed here over the paper's, an image; above 1 is faster here.
            Of memory and size: memory here over the paper's figure.
    """

    name: str
    paper_name: str
    batch: int
    median_ms: float | None
    interval_ms: tuple[float, float] | None
    images_per_s: float | None
    memory_mib: float | None
    status: str
    reason: str | None
    published: Mapping[str, str]
    ratios: Mapping[str, float]


@dataclass(frozen=True)
class Ordering:
    """How well a column's order is kept here.

    Args:
        heading: of the column.
        group: which part of the table, from 1.
        rows: how many rows have both figures.
        correlation: Spearman's; None with fewer than 3 rows, or where all are equal.
        agreeing: pairs in the paper's order.
        pairs: pairs that the paper tells apart.
    """

    heading: str
    group: int
    rows: int
    correlation: float | None
    agreeing: int
    pairs: int


@dataclass(frozen=True)
class Judged:
    """A claim of the paper, and what became of it here.

    Args:
        better: the row that is said to be faster, or smaller.
        than: the other.
        metric: ``"time"`` or ``"memory"``.
        published: the other's cost over its own, by heading; above 1 by how much it is better.
        measured: likewise here.
        interval: 95 % interval of that.
        p_value: of the rank test.
        verdict: ``"holds"``, ``"does not hold"``, ``"no difference shown"`` or ``"not measured"``.
        steady: whether both rows were.
    """

    better: str
    than: str
    metric: str
    published: Mapping[str, float]
    measured: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    verdict: str
    steady: bool = True


@dataclass(frozen=True)
class Reproduction:
    """A table of a paper and its measurements with one format.

    Args:
        protocol: what was reproduced.
        format: of the files.
        device: they were measured on.
        deviations: in what the run differs from the protocol, in sentences.
        columns: of published figures.
        rows: in the table's order.
        orderings: one a column and group.
        claims: as they came out.
        provenance: where the measured figures come from.
    """

    protocol: Protocol
    format: str
    device: str
    deviations: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    orderings: tuple[Ordering, ...]
    claims: tuple[Judged, ...]
    provenance: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        p = self.protocol
        told = asdict(self) | {"columns": [c.heading for c in self.columns]}
        head = {key: getattr(p, key) for key in ("name", "paper", "table", "stated")}
        return told | {"protocol": head | {"batch": p.batch, "threads": p.threads, "runs": p.runs}}


def build_reproduction(
    protocol: Protocol, results: Iterable[Result], deviations: Sequence[str] = ()
) -> Reproduction:
    """A paper's table beside results of one device and format.

    Args:
        protocol: which table.
        results: of its models; of several of the same row the newest counts. Of several batches
            the largest stands beside all figures but the size column, which is of one image.
        deviations: in what they were measured otherwise than the protocol says.

    Raises:
        UnavailableError: there is no result of any of the models.
    """
    latest = [r for r in newest(results)[0] if r.subject.name in protocol.subjects]
    if not latest:
        raise UnavailableError(
            f"none of the results is of a model in {protocol.title}",
            hint=f"edgevit reproduce {protocol.name}",
        )
    table = _Table(protocol, latest)
    return Reproduction(
        protocol,
        latest[0].subject.format,
        latest[0].context.device.name,
        tuple(deviations),
        table.columns,
        tuple(table.row(name) for name in protocol.subjects),
        tuple(table.orderings()),
        tuple(table.judged(claim) for claim in protocol.claims),
        tuple(provenance_of(latest)),
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None if a side is all alike.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) + 1) / 2
    squares = [sum((x - mean) ** 2 for x in side) for side in (a, b)]
    if not all(squares):
        return None
    products = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return float(products / (squares[0] * squares[1]) ** 0.5)


def _ranks(values: Sequence[float]) -> list[float]:
    below = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) for value in values]
    return [b + (e + 1) / 2 for b, e in zip(below, equal, strict=True)]


class _Table:
    """Published figures and results by name."""

    def __init__(self, protocol: Protocol, results: Sequence[Result]) -> None:
        self.protocol = protocol
        figures = [
            f
            for f in load_published(paper=protocol.paper)
            if f.table == protocol.table and f.model in protocol.subjects
        ]
        self.names = {f.model: f.paper_name for f in figures}
        self.figures: dict[Column, dict[str, Published]] = {}
        for f in figures:
            if f.metric in ("latency", "throughput", "gpu_memory", "size"):
                column = Column(f.metric, f.unit, f.device, f.runtime, f.batch)
                # Of the same figure under several data sets, the first.
                self.figures.setdefault(column, {}).setdefault(f.model, f)
        self.columns = tuple(self.figures)
        by_batch = sorted(results, key=lambda r: r.subject.batch)
        self.largest = {r.subject.name: r for r in by_batch}
        self.smallest = {r.subject.name: r for r in reversed(by_batch)}

    def result(self, name: str, column: Column | None = None) -> Result | None:
        """The result that stands beside a column's figure."""
        sizes = column is not None and column.metric == "size"
        return (self.smallest if sizes else self.largest).get(name)

    def row(self, name: str) -> Row:
        """What is known of a model."""
        result = self.result(name)
        published = {c.heading: f[name].value for c, f in self.figures.items() if name in f}
        told: dict[str, Any] = measured_row(result) if result else {}
        low, high = told.get("interval_low_ms"), told.get("interval_high_ms")
        return Row(
            name=name,
            paper_name=self.names.get(name, name),
            batch=told.get("batch", self.protocol.batch),
            median_ms=told.get("median_ms"),
            interval_ms=None if low is None or high is None else (low, high),
            images_per_s=told.get("images_per_s"),
            memory_mib=told.get("memory_mib"),
            status=told.get("status", "missing"),
            reason=told.get("reason") if result else "no result",
            published=published,
            ratios=dict(self._ratios(name)),
        )

    def _ratios(self, name: str) -> Iterator[tuple[str, float]]:
        for column, figures in self.figures.items():
            here = self._cost(name, column)
            if name in figures and here:
                there = column.cost(figures[name])
                yield column.heading, there / here if column.of_time else here / there

    def _cost(self, name: str, column: Column) -> float | None:
        """The measured counterpart of a column's cost; None where it means nothing."""
        result = self.result(name, column)
        told = measured_row(result) if result else {}
        if column.of_time:
            speed = told.get("images_per_s")
            return 1e3 / speed if speed else None
        memory = told.get("memory_mib")
        return memory * MIB if memory else None

    def orderings(self) -> Iterator[Ordering]:
        """Of each column and group with at least two rows."""
        for column, figures in self.figures.items():
            for number, group in enumerate(self.protocol.groups, 1):
                both = [
                    (column.cost(figures[name]), cost)
                    for name in group
                    if name in figures and (cost := self._cost(name, column)) is not None
                ]
                if len(both) > 1:
                    yield _ordering(column.heading, number, both)

    def judged(self, claim: Claim) -> Judged:
        """What became of a claim."""
        published = {
            c.heading: c.cost(f[claim.than]) / c.cost(f[claim.better])
            for c, f in self.figures.items()
            if c.of_time == (claim.metric == "time") and {claim.better, claim.than} <= f.keys()
        }
        sides = [self.result(name) for name in (claim.better, claim.than)]
        told = [measured_row(r) if r else {} for r in sides]
        key = "images_per_s" if claim.metric == "time" else "memory_mib"
        better, than = (row.get(key) for row in told)
        words = (claim.better, claim.than, claim.metric, published)
        if not better or not than:
            return Judged(*words, None, None, None, UNMEASURED)
        if claim.metric == "memory":
            return Judged(*words, than / better, None, None, _verdict(than / better, None))
        first, second = (_per_image(result) for result in sides)
        p_value, interval = rank_test(first, second), ratio_interval(first, second, ALPHA)
        ratio = better / than
        if interval is not None:
            interval = min(interval[0], ratio), max(interval[1], ratio)
        steady = all(row["status"] != "unstable" for row in told)
        return Judged(*words, ratio, interval, p_value, _verdict(ratio, p_value), steady)


def _per_image(result: Result | None) -> list[float]:
    assert result is not None
    assert result.statistics is not None
    return [ms / result.subject.batch for ms in result.statistics.round_medians_ms]


def _verdict(ratio: float, p_value: float | None) -> str:
    significant = p_value is None or p_value < ALPHA
    if significant and ratio > 1 + DRIFT_LIMIT:
        return HOLDS
    return FAILS if significant and ratio * (1 + DRIFT_LIMIT) < 1 else UNDECIDED


def _ordering(heading: str, group: int, both: Sequence[tuple[float, float]]) -> Ordering:
    told = [(a, b) for a, b in combinations(both, 2) if a[0] != b[0]]
    agreeing = sum((a[0] < b[0]) == (a[1] < b[1]) and a[1] != b[1] for a, b in told)
    published, measured = ([pair[side] for pair in both] for side in (0, 1))
    correlation = spearman(published, measured) if len(both) > 2 else None
    return Ordering(heading, group, len(both), correlation, agreeing, len(told))
