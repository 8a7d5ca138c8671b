"""Two sets of results side by side: what got faster, slower, stopped working, or cannot be told.

A difference is called one only if the ratio of the medians is past a threshold *and* the exact rank
test over the round medians says so; otherwise no difference is shown. The interval of the ratio is
that of the rank test (:mod:`edgevit.measure.ranks`). Figures that have no rounds (memory, size,
instructions) have no test: there the threshold alone decides, for instructions the tolerance that
their method has.

Verdicts, the worst first:

    stopped working       base was measured, head failed or computes something else
    slower                past the threshold, and the rank test agrees; "more" or "larger" elsewhere
    unstable              measured, but one side was not steady: nothing can be said
    not comparable        no figure on one side, too few rounds for any test, or an emulated device
    works on neither side
    missing               in base alone
    new                   in head alone
    now works             base failed, head was measured
    faster                likewise
    no difference shown
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgevit.errors import OptionError, UnavailableError, UnknownNameError
from edgevit.measure.ranks import rank_test, ratio_interval, smallest_p
from edgevit.measure.results import Result
from edgevit.report.metrics import METRICS, Metric
from edgevit.report.pairs import Pairs, called, pair_up
from edgevit.report.rows import is_broken

__all__ = ["ALPHA", "Comparison", "Row", "compare_results"]

#: Significance level of the rank test, and what the interval of a ratio may miss.
ALPHA = 0.05
STOPPED_WORKING, NOW_WORKS = "stopped working", "now works"
UNSTABLE, NOT_COMPARABLE, NEITHER = "unstable", "not comparable", "works on neither side"
MISSING, NEW, NO_DIFFERENCE = "missing", "new", "no difference shown"
UNDECIDED = (UNSTABLE, NOT_COMPARABLE)


@dataclass(frozen=True)
class Row:
    """One subject on both sides.

    Args:
        verdict: see the module's text.
        base: its result there, None if it is new.
        head: its result there, None if it is missing.
        reason: why it could not be judged, or what else there is to know.
        base_figure: in the metric's unit; None where it means nothing.
        head_figure: likewise.
        ratio: head's figure over base's; above 1 is worse.
        interval: 95 % interval of the ratio, None without rounds.
        p_value: of the rank test, None without rounds.
        over: worse than the limit allows.
    """

    verdict: str
    base: Result | None = None
    head: Result | None = None
    reason: str | None = None
    base_figure: float | None = None
    head_figure: float | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    over: bool = False

    @property
    def result(self) -> Result:
        """Head's result, base's where there is none."""
        found = self.head or self.base
        assert found is not None
        return found

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            **called(self.result),
            "verdict": self.verdict,
            "reason": self.reason,
            "base": self.base_figure,
            "head": self.head_figure,
            "ratio": self.ratio,
            "interval": list(self.interval) if self.interval else None,
            "p_value": self.p_value,
            "over_limit": self.over,
            "base_status": self.base.status if self.base else None,
            "head_status": self.head.status if self.head else None,
            "same_file": _same_file(self.base, self.head),
        }


@dataclass(frozen=True)
class Comparison:
    """Every subject of both sides, judged.

    Args:
        metric: what was compared.
        rows: the worst first.
        fail_over: the share by which a figure may be worse; None only tells.
        notes: what a reader should know, in sentences.
    """

    metric: Metric
    rows: tuple[Row, ...]
    fail_over: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have each verdict."""
        return dict(Counter(row.verdict for row in self.rows))

    @property
    def regressions(self) -> tuple[Row, ...]:
        """Rows past the limit, and those that stopped working."""
        return tuple(r for r in self.rows if r.over or r.verdict == STOPPED_WORKING)

    @property
    def undecided(self) -> tuple[Row, ...]:
        """Rows on both sides that could not be judged."""
        return tuple(row for row in self.rows if row.verdict in UNDECIDED)

    @property
    def exit_code(self) -> int:
        """1 for a regression, 3 if what was asked could not be told, 0 otherwise.

        With a limit every row has to be judged; without one, a single row is enough.
        """
        if self.regressions:
            return 1
        judged = any(row.verdict not in (*UNDECIDED, MISSING, NEW, NEITHER) for row in self.rows)
        return 3 if not judged or (self.fail_over is not None and self.undecided) else 0


def compare_results(
    base: Iterable[Result],
    head: Iterable[Result],
    *,
    metric: str = "latency",
    fail_over: float | None = None,
    threshold: float | None = None,
    across_devices: bool = False,
    across_versions: bool = False,
) -> Comparison:
    """Judge every subject of two sets of results.

    Args:
        base: what was before; of several results of one subject the newest counts.
        head: what is now.
        metric: ``"latency"``, ``"memory"``, ``"size"`` or ``"instructions"``.
        fail_over: the share by which a figure may be worse (0.05), None for no limit.
        threshold: the share below which nothing is called a difference; by metric without, and
            never more than ``fail_over``.
        across_devices: compare results of different devices; each side has one then.
        across_versions: compare results of different runtimes or operating systems.

    Raises:
        UnknownNameError: there is no such metric.
        UnavailableError: nothing in common, or another device or version that was not asked for.
    """
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    for option, share in (("fail_over", fail_over), ("threshold", threshold)):
        if share is not None and not 0 <= share < float("inf"):
            raise OptionError(option, expected="a share that is not negative", got=share)
    chosen = METRICS[metric]
    pairs = pair_up(base, head, across_devices=across_devices or not chosen.on_device)
    if not pairs.both:
        raise UnavailableError(
            f"nothing in common to compare: base has {_names(pairs.base_only)}; "
            f"head has {_names(pairs.head_only)}",
            hint="bench the same subjects, formats, threads and batch on both sides",
        )
    if chosen.on_device:
        pairs.refuse_differences(devices=not across_devices, versions=not across_versions)
    rows = [_judged(b, h, chosen, threshold, fail_over) for b, h in pairs.both]
    rows += [_alone(MISSING, chosen, b) for b in pairs.base_only]
    rows += [_alone(NEW, chosen, h) for h in pairs.head_only]
    ordered = tuple(sorted(rows, key=lambda row: _place(row, chosen)))
    return Comparison(chosen, ordered, fail_over, tuple(_notes(ordered, chosen, pairs)))


def _judged(
    base: Result, head: Result, metric: Metric, threshold: float | None, fail_over: float | None
) -> Row:
    row = Row(NO_DIFFERENCE, base, head)
    if is_broken(base) or is_broken(head):
        return _of_broken(row, base, head)
    row = _with_figures(row, base, head, metric)
    if row.reason is not None:
        return replace(row, verdict=NOT_COMPARABLE)
    unsteady = [f"{side}: {_why(r)}" for side, r in _sides(row) if r.status != "ok"]
    if unsteady and metric.rounds:
        return replace(row, verdict=UNSTABLE, reason="; ".join(unsteady))
    assert row.ratio is not None
    least = metric.steps(base, head) if threshold is None else threshold
    least = least if fail_over is None else min(least, fail_over)
    if row.p_value is not None and row.p_value >= ALPHA:
        return row
    if row.ratio > 1 + least:
        over = fail_over is not None and row.ratio > 1 + fail_over
        return replace(row, verdict=metric.worse, over=over)
    return replace(row, verdict=metric.better) if row.ratio * (1 + least) < 1 else row


def _with_figures(row: Row, base: Result, head: Result, metric: Metric) -> Row:
    """The row with figures and their ratio, or with the reason why there is none."""
    if not metric.emulated and (base.context.device.emulated or head.context.device.emulated):
        return replace(row, reason=f"the {metric.name} of an emulator is not the device's")
    figures = (metric.figure(base), metric.figure(head))
    for (side, _), figure in zip(_sides(row), figures, strict=True):
        if not figure:
            return replace(row, reason=f"{side} has no {metric.name}")
    if metric.method(base) != metric.method(head):
        words = f"{metric.method(base)} in base, {metric.method(head)} in head"
        return replace(row, reason=f"{metric.name} was taken differently: {words}")
    before, after = (figure or 0.0 for figure in figures)
    row = replace(row, base_figure=before, head_figure=after, ratio=after / before)
    return _with_test(row, base, head) if metric.rounds else row


def _with_test(row: Row, base: Result, head: Result) -> Row:
    assert base.statistics
    assert head.statistics
    assert row.ratio is not None
    before, after = base.statistics.round_medians_ms, head.statistics.round_medians_ms
    p_value, interval = rank_test(before, after), ratio_interval(before, after, ALPHA)
    if interval is not None:
        # As for a single median: the headline may lie outside in rare cases.
        interval = min(interval[0], row.ratio), max(interval[1], row.ratio)
    row = replace(row, p_value=p_value, interval=interval)
    if smallest_p(len(before), len(after)) < ALPHA:
        return row
    return replace(
        row, reason=f"{len(before)} and {len(after)} rounds are too few for the rank test"
    )


def _of_broken(row: Row, base: Result, head: Result) -> Row:
    if is_broken(base) and is_broken(head):
        return replace(row, verdict=NEITHER, reason=_why(head))
    if is_broken(head):
        return replace(row, verdict=STOPPED_WORKING, reason=_why(head))
    return replace(row, verdict=NOW_WORKS, reason=f"base: {_why(base)}")


def _alone(verdict: str, metric: Metric, result: Result) -> Row:
    base, head = (result, None) if verdict == MISSING else (None, result)
    row = Row(verdict, base, head, reason=_why(result) if result.status != "ok" else None)
    if is_broken(result) or (result.context.device.emulated and not metric.emulated):
        return row
    figure = metric.figure(result)
    if verdict == MISSING:
        return replace(row, base_figure=figure)
    return replace(row, head_figure=figure)


def _why(result: Result) -> str:
    reason = result.reason or result.verification.reason
    return f"{result.status}: {reason}" if reason else result.status


def _sides(row: Row) -> Iterator[tuple[str, Result]]:
    for name, result in (("base", row.base), ("head", row.head)):
        if result is not None:
            yield name, result


def _same_file(base: Result | None, head: Result | None) -> bool | None:
    hashes = [r.subject.file_sha256 for r in (base, head) if r is not None]
    return hashes[0] == hashes[1] if len(hashes) == 2 and all(hashes) else None


def _place(row: Row, metric: Metric) -> tuple[int, float]:
    order = (
        STOPPED_WORKING, metric.worse, UNSTABLE, NOT_COMPARABLE, NEITHER, MISSING, NEW, NOW_WORKS,
        metric.better, NO_DIFFERENCE,
    )  # fmt: skip
    return order.index(row.verdict), -(row.ratio or 0.0)


def _names(results: Sequence[Result]) -> str:
    words = [f"{r.subject.name} {r.subject.format} on {r.context.device.name}" for r in results]
    shown = ", ".join(words[:3]) or "nothing"
    return shown if len(words) <= 3 else f"{shown} and {len(words) - 3} more"


#: From so many rows on, some pass the rank test by chance.
MANY = 20


def _notes(rows: Sequence[Row], metric: Metric, pairs: Pairs) -> Iterator[str]:
    yield from pairs.notes
    judged = sum(row.p_value is not None for row in rows)
    if metric.rounds:
        yield (
            "base and head were measured at different times: what changed on the machine in "
            "between looks like a difference too"
        )
    if judged >= MANY:
        yield (
            f"of {judged} rows about {round(ALPHA * judged)} pass the rank test by chance; "
            "the threshold is there for them"
        )
    if any(row.base_figure is not None for row in rows) and not metric.rounds:
        yield f"{metric.name} is one figure a side: there is no test, the threshold decides"
