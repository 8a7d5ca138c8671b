"""How much faster one file is than another, from CPU times of rounds that both took part in.

Where a runtime happens to put weights and buffers when it opens a file is worth some percent of
a small model's time, and stays as it is until the file is opened again. Rounds of one opening
tell that chance with great certainty; only several openings tell the file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Ratio", "Times", "compare", "mean", "pooled"]

#: Below it, a difference is none.
NONE = 0.02

#: Times of rounds, by opening.
Times = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Ratio:
    """Base's time by the file's, with its 95 % interval; infinite for a single opening."""

    value: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """The larger half of the interval."""
        return max(self.high - self.value, self.value - self.low)

    @property
    def slower(self) -> bool:
        """Slower than the base, past both the interval and what counts as a difference."""
        return self.high < 1 and self.value < 1 - NONE


def compare(base: Times, other: Times) -> Ratio:
    """The second's speed as a multiple of the first's.

    Of each opening the median over its rounds, each compared with the same round of the other; of
    all openings the geometric mean, with Student's interval of their logarithms.

    Args:
        base: times of its rounds.
        other: times of the same rounds.
    """
    medians = [
        statistics.median(b / o for b, o in zip(*rounds, strict=True))
        for rounds in zip(base, other, strict=True)
    ]
    value = mean(medians)
    if len(medians) == 1:
        return Ratio(value, 0, math.inf)
    from scipy import stats

    error = statistics.stdev(map(math.log, medians)) / math.sqrt(len(medians))
    reach = math.exp(float(stats.t.ppf(0.975, len(medians) - 1)) * error)
    return Ratio(value, value / reach, value * reach)


def pooled(times: Times) -> float:
    """Median over all rounds."""
    return statistics.median(time for opening in times for time in opening)


def mean(values: Iterable[float]) -> float:
    """Geometric mean; not a number for none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
