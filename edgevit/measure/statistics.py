"""Statistics of timed runs: raw samples in, every figure a short property; and the verdict.

Samples come in *rounds*. Within a round they share what the machine was doing, so they are not
independent, and a thousand of them do not narrow an interval a thousandfold. Rounds are the unit of
all inference here:

* The interval of the median is made of order statistics of the R round medians: with
  B ~ Binomial(R, 1/2), the interval from the k-th smallest to the k-th largest covers the median
  of a round with probability P(k <= B <= R - k), whatever the distribution; k is the largest that
  covers at least 95 %. Fewer than 6 rounds cannot reach 95 %: then it spans all round medians, and
  ``interval_level`` says what that covers. One round has no interval.
* Drift compares the round medians of the first and the second half of the rounds by their ratio and
  an exact rank test (Mann and Whitney, 1947).

No sample is ever dropped or clipped; outliers are counted. Percentiles follow numpy's "linear"
rule, type 7 of Hyndman and Fan (1996).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import UsageError
from edgevit.measure.ranks import rank_test

__all__ = [
    "FEW_RUNS",
    "PERCENTILE_RULE",
    "Drift",
    "Samples",
    "Statistics",
]

PERCENTILE_RULE = "linear (Hyndman and Fan type 7)"
#: Below this many runs p99 leans on the slowest run alone.
FEW_RUNS = 100
_LEVEL_PERCENT = 95
_LEVEL = _LEVEL_PERCENT / 100
_TUKEY = 1.5
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class Samples:
    """The runs of one round.

    Args:
        round: number of the round, from 0.
        inner: inferences inside one timed region.
        ns: nanoseconds of one inference, one value a timed region (its mean where ``inner`` > 1).
    """

    round: int
    inner: int
    ns: tuple[int, ...]


@dataclass(frozen=True)
class Drift:
    """Second half of the rounds against the first.

    Args:
        ratio: median of the later round medians over that of the earlier; above 1 is slower.
        p_value: of the two-sided exact rank test between the two halves.
    """

    ratio: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of one subject's runs; times are milliseconds of one inference.

    Args:
        ns: nanoseconds of one inference, as measured (int64).
        rounds: number of the round that each value belongs to (int64, same length).

    Raises:
        UsageError: no samples, or samples that no clock gives (not whole, not positive, too large).
    """

    ns: NDArray[np.int64]
    rounds: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, least in (("ns", 1), ("rounds", 0)):
            object.__setattr__(self, name, _integers(name, getattr(self, name), least))
        if len(self.ns) != len(self.rounds):
            raise UsageError(f"{len(self.ns)} samples, but {len(self.rounds)} round numbers")
        if not len(self.ns):
            raise UsageError("no samples", hint="a statistic needs at least one timed run")

    @classmethod
    def from_samples(cls, samples: Iterable[Samples]) -> Statistics:
        """Statistics of the blocks of one subject, in any order."""
        blocks = list(samples)
        ns: Any = [value for block in blocks for value in block.ns]
        rounds: Any = [block.round for block in blocks for _ in block.ns]
        return cls(ns, rounds)

    @classmethod
    def from_rounds(cls, rounds: Sequence[Sequence[int]]) -> Statistics:
        """Statistics of rounds given as sequences of nanoseconds."""
        return cls.from_samples(Samples(i, 1, tuple(ns)) for i, ns in enumerate(rounds))

    @cached_property
    def round_medians_ms(self) -> NDArray[np.float64]:
        """The median of every round, in the order of the rounds."""
        order = np.unique(self.rounds)
        return np.array([np.median(self.ns[self.rounds == r]) for r in order]) / _NS_PER_MS

    @property
    def n(self) -> int:
        """How many runs were timed."""
        return len(self.ns)

    @property
    def round_count(self) -> int:
        """In how many rounds."""
        return len(self.round_medians_ms)

    @cached_property
    def median_ms(self) -> float:
        """Median of all samples: the headline."""
        return float(np.median(self.ns)) / _NS_PER_MS

    @cached_property
    def _order(self) -> tuple[int, float]:
        return _interval_order(self.round_count, _LEVEL_PERCENT)

    @cached_property
    def interval_ms(self) -> tuple[float, float] | None:
        """Confidence interval of the median; None for a single round.

        Widened to hold the headline in the rare case that the median of all samples lies outside.
        """
        if self.round_count < 2:
            return None
        ordered, k = np.sort(self.round_medians_ms), self._order[0]
        low, high = float(ordered[k - 1]), float(ordered[-k])
        return min(low, self.median_ms), max(high, self.median_ms)

    @property
    def interval_level(self) -> float | None:
        """What the interval covers: at least 0.95 from 6 rounds on; None for a single round."""
        return self._order[1] if self.round_count >= 2 else None

    @property
    def interval_width(self) -> float | None:
        """Width of the interval as a share of the median; None for a single round."""
        if self.interval_ms is None:
            return None
        low, high = self.interval_ms
        return (high - low) / self.median_ms

    def percentile_ms(self, q: float) -> float:
        """The q-th percentile, by the rule named in :data:`PERCENTILE_RULE`."""
        return float(np.percentile(self.ns, q, method="linear")) / _NS_PER_MS

    @cached_property
    def p90_ms(self) -> float:
        """90th percentile."""
        return self.percentile_ms(90)

    @cached_property
    def p99_ms(self) -> float:
        """99th percentile; see :attr:`notes` where there are few runs."""
        return self.percentile_ms(99)

    @cached_property
    def min_ms(self) -> float:
        """Fastest run."""
        return float(self.ns.min()) / _NS_PER_MS

    @cached_property
    def max_ms(self) -> float:
        """Slowest run."""
        return float(self.ns.max()) / _NS_PER_MS

    @cached_property
    def mean_ms(self) -> float:
        """Mean of all runs; nothing is trimmed."""
        return float(self.ns.mean()) / _NS_PER_MS

    @cached_property
    def stdev_ms(self) -> float | None:
        """Standard deviation of the sample (n - 1); None for a single run."""
        return float(self.ns.std(ddof=1)) / _NS_PER_MS if self.n > 1 else None

    @cached_property
    def mad_ms(self) -> float:
        """Median absolute deviation from the median, not rescaled."""
        return float(np.median(np.abs(self.ns - np.median(self.ns)))) / _NS_PER_MS

    @cached_property
    def outliers(self) -> int:
        """Runs outside Tukey's fences, 1.5 interquartile ranges beyond the quartiles; all kept."""
        low, high = np.percentile(self.ns, [25, 75], method="linear")
        reach = _TUKEY * (high - low)
        return int(((self.ns < low - reach) | (self.ns > high + reach)).sum())

    @cached_property
    def drift(self) -> Drift | None:
        """Second half of the rounds against the first, a middle round aside; None for one round."""
        medians, half = self.round_medians_ms, self.round_count // 2
        if half < 1:
            return None
        early, late = medians[:half], medians[-half:]
        return Drift(float(np.median(late) / np.median(early)), rank_test(early, late))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures should know, in sentences."""
        notes = []
        if self.n < FEW_RUNS:
            notes.append(
                f"p99 of {self.n} run{'s' * (self.n != 1)} hangs on the slowest alone; "
                f"at least {FEW_RUNS} make it a percentile"
            )
        if self.interval_level is None:
            notes.append("a single round: no interval of the median")
        elif self.interval_level < _LEVEL:
            notes.append(
                f"{self.round_count} rounds: the interval covers the median with "
                f"{100 * self.interval_level:.0f} % only; 6 rounds reach 95 %"
            )
        return tuple(notes)

    def to_json(self) -> dict[str, Any]:
        """As the result holds it; ``None`` where a figure is not defined."""
        drift = self.drift
        return {
            "n": self.n,
            "rounds": self.round_count,
            "median_ms": self.median_ms,
            "interval_ms": list(self.interval_ms) if self.interval_ms else None,
            "interval_level": self.interval_level,
            "p90_ms": self.p90_ms,
            "p99_ms": self.p99_ms,
            "min_ms": self.min_ms,
            "max_ms": self.max_ms,
            "mean_ms": self.mean_ms,
            "stdev_ms": self.stdev_ms,
            "mad_ms": self.mad_ms,
            "outliers": self.outliers,
            "drift": {"ratio": drift.ratio, "p_value": drift.p_value} if drift else None,
            "percentile_rule": PERCENTILE_RULE,
            "notes": list(self.notes),
        }


def _integers(name: str, values: Any, least: int) -> NDArray[np.int64]:
    """A read-only int64 copy of whole numbers of at least ``least``."""
    array = np.asarray(values if len(values) else np.zeros(0, np.int64))
    whole = array.dtype.kind in "iu" or (
        array.dtype.kind == "f" and (array == np.rint(array)).all()  # NaN equals nothing
    )
    if not whole or array.ndim != 1 or array.max(initial=0) >= 2**63:
        raise UsageError(
            f"samples: {name} must be a list of whole numbers below 2**63",
            hint="NaN, fractions and text are no measurements",
        )
    if (lowest := array.min(initial=least)) < least:
        raise UsageError(f"samples: {name} must be at least {least}, got {lowest}")
    copy = array.astype(np.int64)
    copy.flags.writeable = False
    return copy


def _interval_order(rounds: int, percent: int) -> tuple[int, float]:
    """The largest k whose interval covers ``percent``, or 1, and the share that it covers."""
    k, below = 1, 1  # below: outcomes of Binomial(rounds, 1/2) under k, of 2**rounds
    outcomes = 2**rounds  # whole numbers throughout: from 1024 rounds on, no float holds them
    while 2 * k < rounds and 100 * (outcomes - 2 * (below + comb(rounds, k))) >= percent * outcomes:
        below += comb(rounds, k)
        k += 1
    return k, (outcomes - 2 * below) / outcomes
