"""How much faster one file is than another, from CPU times of rounds that both took part in."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb

__all__ = ["Ratio", "compare", "interval", "mean"]

#: Below it, a difference is none: the same file loaded twice can differ by as much.
NONE = 0.02


@dataclass(frozen=True)
class Ratio:
    """Median over the rounds of (base's time / file's time), with its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """The larger half of the interval."""
        return max(self.high - self.median, self.median - self.low)

    @property
    def slower(self) -> bool:
        """Slower than the base, past both the interval and what counts as a difference."""
        return self.high < 1 and self.median < 1 - NONE


def compare(base: Sequence[float], other: Sequence[float]) -> Ratio:
    """The second's speed as a multiple of the first's, round by round.

    Args:
        base: times of its rounds.
        other: times of the same rounds.
    """
    pairs = sorted(b / o for b, o in zip(base, other, strict=True))
    return Ratio(statistics.median(pairs), *interval(pairs))


def interval(ordered: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval of the median by order statistics; all there is where that is too little."""
    n = len(ordered)
    k, below = 0, 1 / 2**n
    while 2 * (k + 1) < n and 1 - 2 * (below + comb(n, k + 1) / 2**n) >= level:
        k += 1
        below += comb(n, k) / 2**n
    return ordered[k], ordered[n - 1 - k]


def mean(values: Iterable[float]) -> float:
    """Geometric mean; not a number for none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
